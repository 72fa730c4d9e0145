//! Opening, creating and closing files.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno as HostErrno;

use super::super::Passthrough;
use super::super::coherence::OwnFd;
use super::super::config::CachePolicy;
use super::super::contents;
use super::super::discovery::{Found, NOWHERE};
use super::super::handles::OpenFile;
use super::super::node::Node;
use super::super::ownership;
use super::super::resolve::check_name;
use super::super::sys;
use super::making::undo;
use crate::filesystem::{Context, Entry, Errno, Handle, NodeId, Opened, Result};
use crate::wire::{FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, FOPEN_PARALLEL_DIRECT_WRITES};

/// The flags of the guest's that the host is to know of. Not O_APPEND: a write says itself whether it appends, and with
/// it every write would. Not O_DIRECT: the guest's kernel goes past its own cache on its own, and the host's alignment
/// is not the guest's.
const TO_HOST: u32 =
    (libc::O_ACCMODE | libc::O_TRUNC | libc::O_DSYNC | libc::O_SYNC | libc::O_NOATIME) as u32;

/// What opening for `flags` of the guest's does on the host.
fn host_flags(flags: u32) -> OFlags {
    OFlags::from_bits_retain(flags & TO_HOST)
}

fn writes(flags: u32) -> bool {
    flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32 || flags & libc::O_TRUNC as u32 != 0
}

/// FOPEN_DIRECT_IO for what is opened only to be written. It can be neither read nor mapped through that descriptor, and the
/// next open would drop what it leaves in the guest's cache, for the file has changed. A write then is one request as it
/// would be anyway (Linux's writes through), but without the question for `security.capability` that Linux asks before it
/// writes into its cache: one request for each file that is made. The kernel drops what others have cached of the range,
/// and lets several threads write at once while nobody else has the file open, except at its end.
fn past_the_cache(flags: u32) -> u32 {
    if flags & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32 {
        FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES
    } else {
        0
    }
}

impl Passthrough {
    pub(super) fn open_file(
        &self,
        ctx: &Context,
        node: NodeId,
        flags: u32,
        kill_suidgid: bool,
    ) -> Result<Opened> {
        let node = self.node_for(ctx, node)?;
        self.open_node(&node, flags, kill_suidgid)
    }

    fn open_node(&self, node: &Arc<Node>, flags: u32, kill_suidgid: bool) -> Result<Opened> {
        if node.share.read_only && writes(flags) {
            return Err(Errno(libc::EROFS));
        }
        if node.is_dir() {
            return Err(Errno(libc::EISDIR));
        }
        self.files.check_room()?;
        let fd = self.reopen(node, host_flags(flags))?;
        if flags & libc::O_TRUNC as u32 != 0 {
            self.drop_privileges(node, fd.as_fd(), kill_suidgid)?;
        }
        let cache = self.cache_flags(node, &fd, flags)?;
        let fd = self.own_fd(node, fd);
        let handle = self.files.add(OpenFile::new(node.clone(), fd))?;
        Ok(Opened { handle, flags: cache })
    }

    fn cache_flags(&self, node: &Node, fd: &OwnedFd, flags: u32) -> Result<u32> {
        Ok(match self.config.cache {
            CachePolicy::Never => FOPEN_DIRECT_IO,
            CachePolicy::Always => FOPEN_KEEP_CACHE,
            CachePolicy::Auto => {
                let unchanged = contents::unchanged(&node.contents, &sys::stat(fd)?, SystemTime::now());
                past_the_cache(flags) | if unchanged { FOPEN_KEEP_CACHE } else { 0 }
            }
        } | self.close_flags(node))
    }

    /// FOPEN_NOFLUSH where the guest may close without asking. On file systems that others change too, which are not watched so, that is when
    /// what became of writing is said. Locks are let go of with a FLUSH all the same.
    fn close_flags(&self, node: &Node) -> u32 {
        if self.marks.load(Ordering::Relaxed) && self.name_lasts(node) {
            FOPEN_NOFLUSH
        } else {
            0
        }
    }

    pub(super) fn create_file(
        &self,
        ctx: &Context,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        flags: u32,
        kill_suidgid: bool,
    ) -> Result<(Entry, Opened)> {
        check_name(name)?;
        let parent = self.node_to_change(ctx, parent)?;
        let position = self.position_to_make(&parent, name)?;
        self.files.check_room()?;
        let dir = self.path_fd(&parent)?;
        let mode = libc::S_IFREG | mode & 0o7777;
        let new = self.new_node(ctx, &parent, dir.as_fd(), mode)?;
        let host_mode = Mode::from_raw_mode(ownership::host_mode(mode & libc::S_IFMT, mode));
        let how = (host_flags(flags) - OFlags::NOATIME) | OFlags::CREATE | OFlags::EXCL;
        let how = how | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match self.with_descriptors(|| rustix::fs::openat(&dir, name, how, host_mode)) {
            // It has appeared on the host since the guest looked.
            Err(Errno(libc::EEXIST)) if flags & libc::O_EXCL as u32 == 0 => {
                return self.open_existing(ctx, &parent, name, flags, kill_suidgid);
            }
            result => result?,
        };
        let st = sys::stat(&fd)?;
        let mount = self.mounts.enter(&st, fd.as_fd())?;
        let found = Found {
            fd: fd.as_fd(),
            st,
            mount,
            position,
        };
        let (node, entry) = self
            .finish_new(ctx, &parent, Some(name), found, &new)
            .inspect_err(|_| undo(dir.as_fd(), name, &st))?;
        self.created(node, entry, fd, flags)
    }

    /// Opens what is already there in place of creating it.
    fn open_existing(
        &self,
        ctx: &Context,
        parent: &Arc<Node>,
        name: &CStr,
        flags: u32,
        kill_suidgid: bool,
    ) -> Result<(Entry, Opened)> {
        let entry = self.look_up_in(ctx, parent, name)?;
        let opened = self.node(entry.node).and_then(|node| {
            // The guest's kernel looks the path up again, and finds the link, FIFO or directory then.
            if node.is_file() {
                self.open_node(&node, flags, kill_suidgid)
            } else {
                Err(Errno(libc::ESTALE))
            }
        });
        match opened {
            Ok(opened) => Ok((entry, opened)),
            Err(error) => {
                self.drop_lookups(entry.node, 1);
                Err(error)
            }
        }
    }

    pub(super) fn create_unnamed(
        &self,
        ctx: &Context,
        parent: NodeId,
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        let parent = self.node_to_change(ctx, parent)?;
        self.files.check_room()?;
        let dir = self.path_fd(&parent)?;
        let mode = libc::S_IFREG | mode & 0o7777;
        let new = self.new_node(ctx, &parent, dir.as_fd(), mode)?;
        let host_mode = Mode::from_raw_mode(ownership::host_mode(mode & libc::S_IFMT, mode));
        // O_EXCL says that it may never be linked.
        let excl = OFlags::from_bits_retain(flags & libc::O_EXCL as u32);
        let how = (host_flags(flags) - OFlags::NOATIME - OFlags::TRUNC) | excl;
        let how = how | OFlags::TMPFILE | OFlags::CLOEXEC;
        let fd = self.with_descriptors(|| rustix::fs::openat(&dir, c".", how, host_mode))?;
        let st = sys::stat(&fd)?;
        let mount = self.mounts.enter(&st, fd.as_fd())?;
        let path = Arc::new(self.with_descriptors(|| self.proc()?.reopen(&fd, OFlags::PATH))?);
        let found = Found {
            fd: fd.as_fd(),
            st,
            mount,
            position: NOWHERE,
        };
        let (node, entry) = self.finish_new(ctx, &parent, None, found, &new)?;
        // There is no name to find it by later.
        if !node.state().pin(&path, self.store.pins()) {
            tracing::debug!(
                "too many files without a name are in use: node {} will be stale",
                node.id
            );
        }
        self.created(node, entry, fd, flags)
    }

    /// Gives out the handle of something new.
    fn created(&self, node: Arc<Node>, entry: Entry, fd: OwnedFd, flags: u32) -> Result<(Entry, Opened)> {
        let flags = match self.config.cache {
            CachePolicy::Never => FOPEN_DIRECT_IO,
            CachePolicy::Auto => past_the_cache(flags) | FOPEN_KEEP_CACHE,
            CachePolicy::Always => FOPEN_KEEP_CACHE,
        } | self.close_flags(&node);
        let fd = self.own_fd(&node, fd);
        match self.files.add(OpenFile::new(node, fd)) {
            Ok(handle) => Ok((entry, Opened { handle, flags })),
            Err(error) => {
                self.drop_lookups(entry.node, 1);
                Err(error)
            }
        }
    }

    /// The open file a request is about. Without a handle, one that is opened for the moment: for writing when `write`.
    pub(super) fn file(&self, node: NodeId, handle: Handle, write: bool) -> Result<Arc<OpenFile>> {
        if handle != 0 {
            return self.files.get(node, handle);
        }
        let node = self.node(node)?;
        if !node.is_file() {
            return Err(Errno(if node.is_dir() { libc::EISDIR } else { libc::EBADF }));
        }
        if write && node.share.read_only {
            return Err(Errno(libc::EROFS));
        }
        let key = (node.id, write);
        if let Some(file) = self.transient_files.get(&key) {
            return Ok(file);
        }
        let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let fd = match self.reopen(&node, flags) {
            Err(Errno(libc::EACCES)) if write => self.reopen(&node, OFlags::WRONLY)?,
            result => result?,
        };
        let fd = self.own_fd(&node, fd);
        let file = Arc::new(OpenFile::new(node, fd));
        self.transient_files.insert(key, file.clone());
        Ok(file)
    }

    pub(super) fn flush_file(&self, node: NodeId, handle: Handle, lock_owner: u64) -> Result<()> {
        self.locks.release(node, lock_owner, false);
        if handle == 0 {
            return Ok(());
        }
        let file = self.files.get(node, handle)?;
        if file.written.swap(false, Ordering::Relaxed) {
            // File systems that write later (NFS) say now what came of it.
            sys::close_copy(&*file)?;
        }
        Ok(())
    }

    pub(super) fn release_file(&self, node: NodeId, handle: Handle, flock_owner: Option<u64>) -> Result<()> {
        if let Some(owner) = flock_owner {
            self.locks.release(node, owner, true);
        }
        if handle == 0 {
            Ok(())
        } else {
            self.files.remove(node, handle)
        }
    }

    pub(super) fn sync_file(&self, node: NodeId, handle: Handle, datasync: bool) -> Result<()> {
        let file = self.file(node, handle, false)?;
        let synced = if datasync {
            rustix::fs::fdatasync(&*file)
        } else {
            rustix::fs::fsync(&*file)
        };
        Ok(synced?)
    }

    pub(super) fn sync_file_system(&self, node: NodeId) -> Result<()> {
        if self.is_virtual_root(node) {
            for (_, listed) in self.shares.all() {
                self.sync_file_system(listed.root)?;
            }
            return Ok(());
        }
        let node = self.node(node)?;
        match (&node.share.readable, node.permanent) {
            (Some(readable), true) => Ok(rustix::fs::syncfs(readable)?),
            _ if node.is_dir() || node.is_file() => {
                let fd = self.reopen(&node, OFlags::RDONLY)?;
                Ok(rustix::fs::syncfs(&fd)?)
            }
            (Some(readable), false) => Ok(rustix::fs::syncfs(readable)?),
            (None, _) => Err(HostErrno::ACCESS.into()),
        }
    }

    /// A description of the file that locks can be taken on: for writing too when that is permitted, as a write lock
    /// needs.
    pub(super) fn open_to_lock(&self, node: &Arc<Node>) -> Result<OwnFd> {
        Ok(self.own_fd(node, self.reopen_to_lock(node)?))
    }

    fn reopen_to_lock(&self, node: &Arc<Node>) -> Result<OwnedFd> {
        if node.is_file() && !node.share.read_only {
            match self.reopen(node, OFlags::RDWR) {
                Err(Errno(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY)) => {}
                result => return result,
            }
        }
        self.reopen(node, OFlags::RDONLY)
    }
}
