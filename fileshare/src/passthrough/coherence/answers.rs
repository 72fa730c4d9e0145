//! What the agent's requests are answered: the host as it is by now, and nothing is done to it.
//!
//! What is gone again by the time that its making is replayed has a placeholder: a node without anything on the host, which
//! nobody may cache and whose next lookup by anybody else finds what is really there.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::super::Passthrough;
use super::super::discovery::{Found, identify};
use super::super::node::{Identity, Node};
use super::Watcher;
use super::action::{Action, STAGING, STAGING_PARENT, What};
use super::armed::Armed;
use crate::filesystem::{Attr, Context, Entry, Errno, Handle, NodeId, Opened, Result};
use crate::wire::ROOT_ID;

/// Node ids from here on are not in the store. Those that are count up from 1.
const INVENTED: NodeId = 1 << 62;
/// The directory [`STAGING`].
const STAGING_NODE: NodeId = INVENTED | 1;
/// Ids of placeholders have their type from this bit on.
const KIND_SHIFT: u32 = 40;
/// The handle of what the agent opens. There is nothing behind it.
const AGENT_HANDLE: Handle = u64::MAX;

/// In whose name the agent's questions are answered: the guest's kernel keeps the answers for everybody.
const NOBODY_IN_PARTICULAR: Context = Context {
    uid: 0,
    gid: 0,
    pid: 0,
};

const REFUSED: Errno = Errno(libc::EPERM);

/// The agent's side of the file system, for one request.
pub(in super::super) struct Answers<'a> {
    fs: &'a Passthrough,
    armed: Option<Arc<Armed>>,
}

impl Passthrough {
    /// What answers the agent, when it is the one who asks.
    fn agents_watcher(&self, ctx: &Context) -> Option<&Watcher> {
        let watcher = self.watcher.get()?;
        (ctx.uid == watcher.agent_uid).then_some(watcher)
    }

    /// Answers for the agent, when the request is one of its.
    pub(in super::super) fn for_agent(&self, ctx: &Context) -> Option<Answers<'_>> {
        self.agents_watcher(ctx).map(|watcher| Answers {
            fs: self,
            armed: watcher.board.get(ctx.gid),
        })
    }

    /// Who asks, or nobody in particular when it is the agent on its way to a node.
    pub(in super::super) fn on_whose_behalf(&self, ctx: &Context) -> Context {
        match self.agents_watcher(ctx) {
            Some(_) => NOBODY_IN_PARTICULAR,
            None => *ctx,
        }
    }

    /// Whether a handle is what the agent got for opening something.
    pub(in super::super) fn is_agents(&self, handle: Handle) -> bool {
        handle == AGENT_HANDLE && self.watcher.get().is_some()
    }

    /// Refuses a change that the agent has no business with.
    pub(in super::super) fn not_for_agent(&self, ctx: &Context) -> Result<()> {
        match self.agents_watcher(ctx) {
            Some(_) => Err(REFUSED),
            None => Ok(()),
        }
    }

    /// The identity of what was found in a directory.
    pub(super) fn identity_of(&self, dir: &Node, found: &Found) -> Identity {
        identify(&dir.share, &found.mount, &found.st, found.fd.as_fd(), c"")
    }
}

impl Answers<'_> {
    fn action(&self) -> Option<&Action> {
        self.armed.as_ref().map(|armed| &armed.action)
    }

    pub(in super::super) fn lookup(&self, parent: NodeId, name: &CStr) -> Result<Entry> {
        let at = (parent, name.to_bytes());
        // Before anything is looked up: what is found counts as known by its name from then on.
        let victim = self.victim();
        if parent == STAGING_NODE {
            return match self.action() {
                Some(Action::Rename {
                    from: STAGING_PARENT,
                    name,
                    to,
                    new_name,
                    ..
                }) if **name == *at.1 => self.moved(victim, *to, new_name),
                _ => Err(Errno(libc::ENOENT)),
            };
        }
        // In the root of all, whether that is a share's or the one the shares are in.
        if at == (ROOT_ID, STAGING.as_bytes()) {
            return Ok(zero_lived(STAGING_NODE, libc::S_IFDIR));
        }
        match self.action() {
            // Hidden, or it could not be made. Not so a directory that the guest knows by this name already: what is mounted on
            // it there would be detached.
            Some(Action::Make { parent, name, what }) if at == (*parent, &**name) => {
                match self.fs.store.named(*parent, name) {
                    Some(known) if known.is_dir() && *what == What::Directory => self.real(*parent, name),
                    _ => Err(Errno(libc::ENOENT)),
                }
            }
            Some(Action::Confirm { parent, name }) if at == (*parent, &**name) => self.real(*parent, name),
            Some(Action::Remove {
                parent,
                name,
                directory,
            }) if at == (*parent, &**name) => {
                let kind = if *directory { libc::S_IFDIR } else { libc::S_IFREG };
                let known = self
                    .fs
                    .store
                    .named(*parent, name)
                    .filter(|node| node.is_dir() == *directory);
                self.last_seen(known).or_else(|_| Ok(placeholder(kind)))
            }
            Some(Action::Rename {
                from,
                name,
                to,
                new_name,
                exchange,
            }) => {
                if at == (*from, &**name) {
                    self.moved(victim, *to, new_name)
                } else if at == (*to, &**new_name) && *exchange {
                    self.real_or_placeholder(*from, name, libc::S_IFREG)
                } else if at == (*to, &**new_name) {
                    self.last_seen(victim)
                } else {
                    self.real(parent, at.1)
                }
            }
            Some(Action::Touch {
                parent,
                name: Some(name),
                ..
            }) if at == (*parent, &**name) => self.real_or_placeholder(*parent, name, libc::S_IFREG),
            // On the way there.
            _ => self.real(parent, at.1),
        }
    }

    /// A node on the way to what is to be done. A directory that the host has removed since is still in the guest, which has to be
    /// told what was moved out of it before.
    pub(in super::super) fn lookup_self(&self, id: NodeId) -> Result<Entry> {
        match self.fs.look_up_self(&NOBODY_IN_PARTICULAR, id) {
            Err(Errno(libc::ESTALE)) => {
                let node = self.removed_directory(id)?;
                self.fs.store.count(&node)?;
                Ok(zero_lived(id, libc::S_IFDIR))
            }
            found => found,
        }
    }

    /// A directory that the guest knows, the host having it no more. ESTALE when the guest does not know it either.
    fn removed_directory(&self, id: NodeId) -> Result<Arc<Node>> {
        let node = self.fs.node(id)?;
        if node.is_dir() {
            Ok(node)
        } else {
            Err(Errno(libc::ESTALE))
        }
    }

    /// What the guest knows by the name that something is renamed to.
    fn victim(&self) -> Option<Arc<Node>> {
        let armed = self.armed.as_ref()?;
        let Action::Rename { to, new_name, .. } = &armed.action else {
            return None;
        };
        armed.victim(|| self.fs.store.named(*to, new_name))
    }

    /// An entry of what the guest knows and the host has no more, so that the guest's kernel can take leave of it. Only while
    /// it is open here: what is still read through open files must keep its size. ENOENT otherwise.
    fn last_seen(&self, node: Option<Arc<Node>>) -> Result<Entry> {
        let gone = Errno(libc::ENOENT);
        let node = node.ok_or(gone)?;
        let fd = self.fs.path_fd(&node).map_err(|_| gone)?;
        self.fs.store.count(&node).map_err(|_| gone)?;
        let entry = self.fs.entry(&NOBODY_IN_PARTICULAR, &node, fd)?;
        Ok(Entry {
            attr_timeout: Duration::ZERO,
            entry_timeout: Duration::ZERO,
            ..entry
        })
    }

    /// What is renamed: it is where it came to. When the guest knows it there already, because it looked or because more has
    /// happened since, something else has to be moved there, for Linux does nothing where both names are one inode's.
    fn moved(&self, victim: Option<Arc<Node>>, to: NodeId, new_name: &[u8]) -> Result<Entry> {
        let entry = self.real_or_placeholder(to, new_name, libc::S_IFREG)?;
        if victim.is_none_or(|victim| victim.id != entry.node) {
            return Ok(entry);
        }
        self.fs.drop_lookups(entry.node, 1);
        Ok(placeholder(entry.attr.mode & libc::S_IFMT))
    }

    /// What is at a name on the host; a placeholder when it is gone, or when only the guest has the directory.
    fn real_or_placeholder(&self, parent: NodeId, name: &[u8], kind: u32) -> Result<Entry> {
        match self.real(parent, name) {
            Err(Errno(libc::ENOENT | libc::ESTALE | libc::ENOTDIR)) => Ok(placeholder(kind)),
            found => found,
        }
    }

    fn real(&self, parent: NodeId, name: &[u8]) -> Result<Entry> {
        let parent = self.fs.node(parent)?;
        let name = std::ffi::CString::new(name).map_err(|_| Errno(libc::EINVAL))?;
        self.fs.look_up_in(&NOBODY_IN_PARTICULAR, &parent, &name)
    }

    /// MKNOD, MKDIR and SYMLINK.
    pub(in super::super) fn make(&self, at: NodeId, at_name: &CStr, made: u32) -> Result<Entry> {
        let Some(Action::Make { parent, name, what }) = self.action() else {
            return Err(REFUSED);
        };
        if (*parent, &**name) != (at, at_name.to_bytes()) || what.kind() != made {
            return Err(REFUSED);
        }
        match self.real(*parent, name) {
            Ok(entry) if entry.attr.mode & libc::S_IFMT == made => Ok(entry),
            // Something else has come since, or nothing is there any more: what comes next tells.
            Ok(other) => {
                self.fs.drop_lookups(other.node, 1);
                Ok(placeholder(made))
            }
            Err(_) => Ok(placeholder(made)),
        }
    }

    /// UNLINK and RMDIR.
    pub(in super::super) fn remove(&self, at: NodeId, at_name: &CStr, dir: bool) -> Result<()> {
        match self.action() {
            Some(Action::Remove {
                parent,
                name,
                directory,
            }) if (*parent, &**name) == (at, at_name.to_bytes()) && *directory == dir => Ok(()),
            _ => Err(REFUSED),
        }
    }

    pub(in super::super) fn rename(&self, at: (NodeId, &CStr), at_new: (NodeId, &CStr)) -> Result<()> {
        let Some(Action::Rename {
            from,
            name,
            to,
            new_name,
            ..
        }) = self.action()
        else {
            return Err(REFUSED);
        };
        let real = |id: NodeId| if id == STAGING_NODE { STAGING_PARENT } else { id };
        if (real(at.0), at.1.to_bytes()) != (*from, &**name)
            || (real(at_new.0), at_new.1.to_bytes()) != (*to, &**new_name)
        {
            return Err(REFUSED);
        }
        self.note_move((*from, at.1), (*to, at_new.1));
        Ok(())
    }

    /// The guest will not look up again what it has moved: its node is found at its new place from now on.
    fn note_move(&self, from: (NodeId, &CStr), to: (NodeId, &CStr)) {
        let fs = self.fs;
        let (Ok(to_dir), to_name) = (fs.node(to.0), to.1) else {
            return;
        };
        let Ok(found) = fs.find(&to_dir, to_name) else {
            return;
        };
        let Some(node) = fs.store.find(&fs.identity_of(&to_dir, &found)) else {
            return;
        };
        if node.is_dir() {
            node.set_exclusion(found.position);
        }
        // Fails when the directory has been forgotten meanwhile; then the guest looks the name up again.
        let _ = fs
            .store
            .put_place(&node, &to_dir, to_name.to_bytes(), node.is_dir());
        if let Ok(from_dir) = fs.node(from.0)
            && (from.0, from.1) != (to.0, to.1)
        {
            fs.store.take_place(&node, &from_dir, from.1.to_bytes());
        }
    }

    /// SETATTR, which is how contents and attributes that have changed are told.
    pub(in super::super) fn setattr(&self, node: NodeId) -> Result<(Attr, Duration)> {
        let Some(Action::Touch { modified, .. }) = self.action() else {
            return Err(REFUSED);
        };
        if let Some(kind) = kind_of_placeholder(node) {
            return Ok((invented(node, kind), Duration::ZERO));
        }
        let (attr, timeout) = self.attributes(node)?;
        Ok(if *modified {
            (nudged(attr), Duration::ZERO)
        } else {
            (attr, timeout)
        })
    }

    /// GETATTR and STATX.
    pub(in super::super) fn getattr(&self, node: NodeId) -> Result<(Attr, Duration)> {
        if let Some(kind) = kind_of_placeholder(node) {
            return Ok((invented(node, kind), Duration::ZERO));
        }
        let (attr, timeout) = self.attributes(node)?;
        // Not one for another node, which permissions may need.
        let first = |armed: &Arc<Armed>| {
            matches!(armed.action, Action::Refresh { node: of } if of == node) && armed.is_first_question()
        };
        Ok(if self.armed.as_ref().is_some_and(first) {
            (nudged(attr), Duration::ZERO)
        } else {
            (attr, timeout)
        })
    }

    fn attributes(&self, node: NodeId) -> Result<(Attr, Duration)> {
        match self.fs.get_attributes(&NOBODY_IN_PARTICULAR, node, None) {
            Err(Errno(libc::ESTALE)) => {
                let removed = self.removed_directory(node)?;
                Ok((invented(removed.id, libc::S_IFDIR), Duration::ZERO))
            }
            found => found,
        }
    }

    /// OPEN for writing. Nothing is opened; what is cached of the contents is dropped, for FOPEN_KEEP_CACHE is not said.
    pub(in super::super) fn open(&self) -> Result<Opened> {
        match self.action() {
            Some(Action::Touch { open: true, .. }) => Ok(Opened {
                handle: AGENT_HANDLE,
                flags: 0,
            }),
            _ => Err(REFUSED),
        }
    }
}

/// Another time of the last change than the real one. When the real one follows, the guest drops what it has cached of the
/// contents, whatever size and time were before.
fn nudged(mut attr: Attr) -> Attr {
    attr.mtime.1 = if attr.mtime.1 == 0 { 1 } else { attr.mtime.1 - 1 };
    attr
}

/// Something of that type that is nowhere.
fn placeholder(kind: u32) -> Entry {
    zero_lived(placeholder_id(kind), kind)
}

/// An id for something of that type that is nowhere.
fn placeholder_id(kind: u32) -> NodeId {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(2);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) & ((1 << KIND_SHIFT) - 1);
    INVENTED | u64::from(kind >> 12) << KIND_SHIFT | number
}

/// The type that a placeholder stands for.
fn kind_of_placeholder(node: NodeId) -> Option<u32> {
    match node {
        STAGING_NODE => Some(libc::S_IFDIR),
        node if node & INVENTED != 0 => Some((node >> KIND_SHIFT & 0xf) as u32 * 0o10000),
        _ => None,
    }
}

/// Attributes of something that is nowhere.
fn invented(node: NodeId, kind: u32) -> Attr {
    let permissions = if kind == libc::S_IFDIR { 0o700 } else { 0o600 };
    Attr {
        ino: node,
        mode: kind | permissions,
        nlink: if kind == libc::S_IFDIR { 2 } else { 1 },
        blksize: 4096,
        ..Attr::default()
    }
}

/// An entry that nobody may cache.
fn zero_lived(node: NodeId, kind: u32) -> Entry {
    Entry {
        node,
        generation: 0,
        attr: invented(node, kind),
        attr_timeout: Duration::ZERO,
        entry_timeout: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_s_id_tells_its_type() {
        for kind in [
            libc::S_IFREG,
            libc::S_IFDIR,
            libc::S_IFLNK,
            libc::S_IFIFO,
            libc::S_IFSOCK,
        ] {
            let id = placeholder_id(kind);
            assert_eq!(kind_of_placeholder(id), Some(kind));
            assert_ne!(id, placeholder_id(kind));
        }
        assert_eq!(kind_of_placeholder(STAGING_NODE), Some(libc::S_IFDIR));
        assert_eq!(kind_of_placeholder(5), None);
    }

    #[test]
    fn a_nudged_time_is_another_and_still_one() {
        for nanoseconds in [0, 1, 999_999_999] {
            let attr = Attr {
                mtime: (5, nanoseconds),
                ..Attr::default()
            };
            let nudged = nudged(attr).mtime;
            assert_ne!(nudged, attr.mtime);
            assert!(nudged.1 < 1_000_000_000);
        }
    }
}
