//! From what is found at a name on the host to a node: what an inode's identity is, and what of a share is out of
//! sight.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Statx, StatxFlags};

use super::Passthrough;
use super::exclusions::{OFF, Position, Step};
use super::mounts::Mount;
use super::node::{Identity, Node, Place, Seed};
use super::shares::Share;
use super::sys;
use crate::filesystem::{Errno, NodeId, Result};

/// What is at a name of a directory.
pub(super) struct Found<F = OwnedFd> {
    pub(super) fd: F,
    pub(super) st: Statx,
    pub(super) mount: Arc<Mount>,
    /// Position among the exclusions.
    pub(super) position: Position,
}

/// That nothing is excluded at a position: for nodes that are made without a name.
pub(super) const NOWHERE: Position = OFF;

impl Passthrough {
    /// What is at a name of a directory. ENOENT for what is excluded.
    pub(super) fn find(&self, parent: &Arc<Node>, name: &CStr) -> Result<Found> {
        let hidden = Err(Errno(libc::ENOENT));
        let exclusions = &parent.share.exclusions;
        let Step::Open(position) = exclusions.step(parent.exclusion(), name.to_bytes()) else {
            return hidden;
        };
        let dir = self.path_fd(parent)?;
        let fd = self.with_descriptors(|| sys::open_path(&dir, name))?;
        let st = sys::stat(&fd)?;
        if is_hidden_alias(parent, &dir, &st) {
            return hidden;
        }
        let mount = self.mounts.enter(&st, fd.as_fd())?;
        Ok(Found {
            fd,
            st,
            mount,
            position,
        })
    }

    /// The position of a name among the exclusions, for an operation that makes it, removes it or moves it. EACCES for
    /// what is excluded.
    pub(super) fn position_to_make(&self, parent: &Node, name: &CStr) -> Result<Position> {
        match parent.share.exclusions.step(parent.exclusion(), name.to_bytes()) {
            Step::Open(position) => Ok(position),
            Step::Hidden => Err(Errno(libc::EACCES)),
        }
    }

    /// The node of what was found at a name of a directory, with one more lookup.
    pub(super) fn know<F: AsFd>(
        &self,
        parent: &Arc<Node>,
        name: &CStr,
        found: &Found<F>,
    ) -> Result<Arc<Node>> {
        let node = self.enter_node(parent, found);
        let only = node.is_dir() || found.st.stx_nlink <= 1;
        if let Err(error) = self.store.put_place(&node, parent, name.to_bytes(), only) {
            self.drop_lookups(node.id, 1);
            return Err(error);
        }
        Ok(node)
    }

    /// The node of something new that has no name, or not yet, with one more lookup.
    pub(super) fn enter_node<F: AsFd>(&self, parent: &Node, found: &Found<F>) -> Arc<Node> {
        let Found {
            fd,
            st,
            mount,
            position,
        } = found;
        let fd = fd.as_fd();
        let share = &parent.share;
        let identity = identify(share, mount, st, fd, c"");
        let node = self.store.enter(&identity, || {
            // A handle is good for files of the file system that the share's root is on.
            let same_mount = share.by_handle && share.mount == mount.number;
            Seed {
                identity,
                share: share.clone(),
                kind: kind(st),
                submount: kind(st) == libc::S_IFDIR
                    && self
                        .mounts
                        .get(parent.identity.mount)
                        .is_some_and(|other| !other.same_device(mount)),
                exclusion: *position,
                handle: if same_mount {
                    sys::file_handle(fd, c"").ok()
                } else {
                    None
                },
            }
        });
        if node.is_dir() && !node.permanent {
            node.set_exclusion(*position);
        }
        node
    }

    /// The node of what is at a name, when the guest knows it. Does not count as a lookup.
    pub(super) fn known(
        &self,
        parent: &Node,
        dir: BorrowedFd<'_>,
        name: &CStr,
        st: &Statx,
    ) -> Option<Arc<Node>> {
        let mount = self.mounts.find(st)?;
        self.store.find(&identify(&parent.share, &mount, st, dir, name))
    }

    /// Takes lookups back, and forgets what nobody needs any more.
    pub(super) fn drop_lookups(&self, id: NodeId, count: u64) {
        self.store
            .forget(id, count, &mut |dead, places| self.node_died(dead, places));
    }

    /// Lets go of what is kept for a node.
    pub(super) fn node_died(&self, dead: &Node, places: &[Place]) {
        self.stop_watching(dead, places);
        self.paths.remove(&dead.id);
        self.transient_files.remove(&(dead.id, false));
        self.transient_files.remove(&(dead.id, true));
        self.transient_dirs.remove(&dead.id);
        self.locks.forget(dead.id);
        if dead.state().removed {
            self.memory.remove(&dead.identity);
        }
    }
}

/// S_IF* of attributes.
pub(super) fn kind(st: &Statx) -> u32 {
    u32::from(st.stx_mode) & libc::S_IFMT
}

/// The identity of what `st` are the attributes of; `fd` and `name` say where it is, should its handle be needed.
pub(super) fn identify(
    share: &Share,
    mount: &Mount,
    st: &Statx,
    fd: BorrowedFd<'_>,
    name: &CStr,
) -> Identity {
    let birth = if st.stx_mask & StatxFlags::BTIME.bits() != 0 {
        (st.stx_btime.tv_sec as u64)
            .wrapping_mul(1_000_000_000)
            .wrapping_add(u64::from(st.stx_btime.tv_nsec))
    } else {
        // Handles have the inode's generation in them.
        sys::file_handle(fd, name).map_or(0, |handle| {
            handle.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            })
        })
    };
    // With the type, which never changes: the least that can be told where there is neither.
    let stamp = birth << 4 | u64::from(kind(st) >> 12);
    Identity {
        share: share.number,
        mount: mount.number,
        ino: st.stx_ino,
        stamp,
    }
}

/// Whether what has been found in a directory is, under another name, an excluded one: a directory of a file system
/// that does not distinguish upper and lower case has such names.
pub(super) fn is_hidden_alias(parent: &Node, dir: &OwnedFd, st: &Statx) -> bool {
    // A file with several links may well be in sight under one of them.
    if !parent.holds_exclusions() || kind(st) != libc::S_IFDIR && st.stx_nlink > 1 {
        return false;
    }
    parent.share.exclusions.hidden_in(parent.exclusion()).any(|name| {
        let Ok(name) = CString::new(name) else {
            return false;
        };
        sys::stat_name(dir, &name)
            .is_ok_and(|hidden| hidden.stx_ino == st.stx_ino && sys::device(&hidden) == sys::device(st))
    })
}
