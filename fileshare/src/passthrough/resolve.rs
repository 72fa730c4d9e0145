//! From a node to a descriptor of what it is on the host, and from what is found on the host to a node.
//!
//! Every step from a directory to something in it is one name against an O_PATH descriptor of the directory, and never
//! follows a symbolic link; there is no `..`. A node whose descriptor has been evicted is opened again by its file
//! handle, where that is permitted, or by the names that lead to it from the nearest directory that is open, in one
//! openat2(2) that can neither leave that directory nor follow a link, or from what the guest has open of it. Either
//! way it counts only when it is the same inode as before; otherwise the answer is ESTALE, and the guest's kernel looks
//! the path up again.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno as HostErrno;

use super::Passthrough;
use super::discovery::identify;
use super::node::{Node, Place};
use super::sys;
use crate::filesystem::{Context, Errno, NodeId, Result};
use crate::wire::{NAME_MAX, ROOT_ID};

/// As many directories above one another are walked. Nobody has more; a picture of ours that has become wrong could
/// have a loop.
const DEEPEST: usize = 4096;
/// The longest path given to the host at once; PATH_MAX with its NUL.
const LONGEST_PATH: usize = 4095;

/// Checks a name once more, whatever the layer above has done: everything depends on its being one.
pub(super) fn check_name(name: &CStr) -> Result<()> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(Errno(libc::EINVAL)),
        name if name.contains(&b'/') => Err(Errno(libc::EINVAL)),
        name if name.len() > NAME_MAX => Err(Errno(libc::ENAMETOOLONG)),
        _ => Ok(()),
    }
}

impl Passthrough {
    /// Whether the id is that of the directory that the shares are in.
    pub(super) fn is_virtual_root(&self, id: NodeId) -> bool {
        id == ROOT_ID && self.shares.several
    }

    /// The node of an id. ESTALE when there is none or its share is gone; EOPNOTSUPP for the virtual root, which is
    /// nothing on the host.
    pub(super) fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        if self.is_virtual_root(id) {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let node = self.store.get(id).ok_or(Errno(libc::ESTALE))?;
        if node.share.is_removed() {
            return Err(Errno(libc::ESTALE));
        }
        Ok(node)
    }

    /// The same for a request made by somebody, who may have to wait: see [`super::viewers`].
    pub(super) fn node_for(&self, ctx: &Context, id: NodeId) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        if self.asker_matters && !self.marks.load(Ordering::Relaxed) {
            let wait = node.share.viewers.enter(asker(ctx).0, self.now());
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
        }
        Ok(node)
    }

    /// The same for a change. EROFS in a read-only share and in the virtual root.
    pub(super) fn node_to_change(&self, ctx: &Context, id: NodeId) -> Result<Arc<Node>> {
        if self.is_virtual_root(id) {
            return Err(Errno(libc::EROFS));
        }
        let node = self.node_for(ctx, id)?;
        if node.share.read_only {
            return Err(Errno(libc::EROFS));
        }
        Ok(node)
    }

    /// An O_PATH descriptor of a node.
    pub(super) fn path_fd(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.open_path_fd(node) {
            return Ok(fd);
        }
        let fd = Arc::new(self.reopen_node(node)?);
        self.paths.insert(node.id, fd.clone());
        Ok(fd)
    }

    /// The descriptor of a node when it is open.
    fn open_path_fd(&self, node: &Node) -> Option<Arc<OwnedFd>> {
        if node.permanent {
            return Some(node.share.root.clone());
        }
        self.paths.get(&node.id).or_else(|| node.pinned())
    }

    fn reopen_node(&self, node: &Arc<Node>) -> Result<OwnedFd> {
        if let (Some(handle), Some(mount)) = (&node.handle, &node.share.readable) {
            let opened = self.with_descriptors(|| sys::open_file_handle(mount.as_fd(), handle));
            match opened {
                Ok(fd) if self.is_node(node, &fd) => return Ok(fd),
                Err(Errno(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => return opened,
                _ => {}
            }
        }
        for place in node.places() {
            match self.open_place(place) {
                Ok(fd) if self.is_node(node, &fd) => return Ok(fd),
                Err(error @ Errno(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => return Err(error),
                _ => {}
            }
        }
        // The host has taken it away, but what is open is still there.
        if let Some(file) = self.files.any_of(node) {
            return self.with_descriptors(|| self.proc()?.reopen(&*file, OFlags::PATH));
        }
        if let Some(dir) = self.dirs.any_of(node) {
            return self.with_descriptors(|| self.proc()?.reopen(&dir.fd, OFlags::PATH));
        }
        Err(Errno(libc::ESTALE))
    }

    /// Opens what is at a place, from the nearest directory above it that is open.
    pub(super) fn open_place(&self, place: Place) -> Result<OwnedFd> {
        let mut names = vec![place.name];
        let mut above = place.parent;
        let anchor = loop {
            if let Some(fd) = self.open_path_fd(&above) {
                break fd;
            }
            let place = above
                .place()
                .filter(|_| names.len() < DEEPEST)
                .ok_or(Errno(libc::ESTALE))?;
            names.push(place.name);
            above = place.parent;
        };
        let mut dir: Option<OwnedFd> = None;
        let mut path = Vec::new();
        while let Some(name) = names.pop() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            if names
                .last()
                .is_some_and(|next| path.len() + 1 + next.len() <= LONGEST_PATH)
            {
                continue;
            }
            let stage = CString::new(std::mem::take(&mut path)).map_err(|_| Errno(libc::EINVAL))?;
            let from = dir.as_ref().unwrap_or(&anchor);
            dir = Some(self.with_descriptors(|| beneath(from.as_fd(), &stage))?);
        }
        dir.ok_or(Errno(libc::ESTALE))
    }

    fn is_node(&self, node: &Node, fd: &OwnedFd) -> bool {
        let Ok(st) = sys::stat(fd) else { return false };
        let Some(mount) = self.mounts.find(&st) else {
            return false;
        };
        identify(&node.share, &mount, &st, fd.as_fd(), c"") == node.identity
    }

    /// Runs what opens descriptors, once more with the cached ones closed when there are too many.
    pub(super) fn with_descriptors<T, E: Into<Errno>>(
        &self,
        open: impl Fn() -> std::result::Result<T, E>,
    ) -> Result<T> {
        match open().map_err(Into::into) {
            Err(Errno(libc::EMFILE | libc::ENFILE)) if self.close_cached() => open().map_err(Into::into),
            result => result,
        }
    }

    /// Opens a node for reading or writing. EPERM for what is neither a file nor a directory: FIFOs, sockets and
    /// devices are the guest's own business or nobody's.
    pub(super) fn reopen(&self, node: &Arc<Node>, flags: OFlags) -> Result<OwnedFd> {
        if node.kind == libc::S_IFLNK {
            return Err(Errno(libc::ELOOP));
        }
        if !node.is_file() && !node.is_dir() {
            return Err(Errno(libc::EPERM));
        }
        let path = self.path_fd(node)?;
        self.with_descriptors(|| match self.proc()?.reopen(&path, flags) {
            // Permitted to the owner only; it is a hint.
            Err(HostErrno::PERM) if flags.contains(OFlags::NOATIME) => {
                self.proc()?.reopen(&path, flags - OFlags::NOATIME)
            }
            result => result,
        })
    }
}

/// Who asks. Root stands for nobody in particular.
pub(super) fn asker(ctx: &Context) -> (u32, u32) {
    let known = |id: u32| if id == u32::MAX { 0 } else { id };
    (known(ctx.uid), known(ctx.gid))
}

/// Opens a path as O_PATH, without leaving the directory and without following any link.
fn beneath(dir: BorrowedFd<'_>, path: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
        // Before Linux 5.6, or where a filter does not know the call: name by name is as good, for there is no `..` in
        // it.
        Err(HostErrno::NOSYS | HostErrno::PERM) => step_by_step(dir, path),
        result => Ok(result?),
    }
}

fn step_by_step(dir: BorrowedFd<'_>, path: &CStr) -> io::Result<OwnedFd> {
    let mut at: Option<OwnedFd> = None;
    for name in path.to_bytes().split(|byte| *byte == b'/') {
        let name = CString::new(name)?;
        // Of a symbolic link in the middle this gives the link itself, in which the next name is not found.
        at = Some(sys::open_path(at.as_ref().map_or(dir, |fd| fd.as_fd()), &name)?);
    }
    at.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passthrough::discovery::kind;

    #[test]
    fn names_are_names() {
        assert_eq!(check_name(c"a"), Ok(()));
        assert_eq!(check_name(c"..."), Ok(()));
        for bad in [c"", c".", c"..", c"a/b", c"/", c"../x"] {
            assert_eq!(check_name(bad), Err(Errno(libc::EINVAL)), "{bad:?}");
        }
        let name = |length| CString::new(vec![b'n'; length]).unwrap();
        assert_eq!(check_name(&name(255)), Ok(()));
        assert_eq!(check_name(&name(256)), Err(Errno(libc::ENAMETOOLONG)));
    }

    #[test]
    fn no_way_of_opening_a_path_leaves_or_follows() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), "").unwrap();
        std::os::unix::fs::symlink("d", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("d/out")).unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        for open in [beneath, step_by_step] {
            let file = open(root.as_fd(), c"d/f").unwrap();
            assert_eq!(kind(&sys::stat(&file).unwrap()), libc::S_IFREG);
            let link = open(root.as_fd(), c"d/out").unwrap();
            assert_eq!(kind(&sys::stat(&link).unwrap()), libc::S_IFLNK, "the link itself");
            assert!(open(root.as_fd(), c"link/f").is_err());
            assert!(open(root.as_fd(), c"d/out/etc").is_err());
        }
    }
}
