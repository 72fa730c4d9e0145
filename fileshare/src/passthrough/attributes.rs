//! From the host's attributes to those the guest sees.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{Statx, StatxFlags, StatxTimestamp};

use super::Passthrough;
use super::discovery::kind;
use super::mounts::Mount;
use super::node::{Node, Watch};
use super::ownership::{self, Record};
use super::resolve::asker;
use super::sys;
use crate::filesystem::{Attr, Context, Entry, NodeId, Result};
use crate::wire::ROOT_ID;

/// As good as for ever, and far from what overflows anywhere.
const UNLIMITED: Duration = Duration::from_secs(u32::MAX as u64);

/// Inode number of the directory that the shares are in; the host's never are so high.
pub(super) const VIRTUAL_ROOT_INO: u64 = u64::MAX >> 1;

impl Passthrough {
    /// A node's attributes and how long they may be cached, from what `fd` refers to.
    pub(super) fn attr(&self, ctx: &Context, node: &Node, fd: impl AsFd) -> Result<(Attr, Duration)> {
        let st = sys::stat(&fd)?;
        let mount = self.mount_of(node)?;
        let record = self.record(node, &mount, &st, fd);
        let last = self.attributes_last(node, &st, None);
        Ok(self.shown(ctx, node, &mount, &st, &record, last))
    }

    /// Whether the guest may keep names in a directory for as long as it likes: it is told when they change.
    pub(super) fn names_last(&self, parent: &Node) -> bool {
        parent.watch() == Watch::Watched && self.watcher.get().is_some_and(|watcher| watcher.is_live())
    }

    /// The same for a node's attributes and contents. `parent` is the directory it was found in just now; without it, it is
    /// the one it was found in before.
    pub(super) fn attributes_last(&self, node: &Node, st: &Statx, parent: Option<&Node>) -> bool {
        if node.is_dir() {
            return self.names_last(node);
        }
        // What happens to it under another name is told to who watches there.
        if st.stx_nlink != 1 || self.watcher.get().is_none() {
            return false;
        }
        match parent {
            Some(parent) => self.names_last(parent),
            None => self.name_lasts(node),
        }
    }

    /// Whether the guest is told of what happens in the directory that a node was found in before.
    pub(super) fn name_lasts(&self, node: &Node) -> bool {
        node.place().is_some_and(|place| self.names_last(&place.parent))
    }

    /// How long the guest may keep what lasts, or else what does not.
    pub(super) fn lifetime(&self, lasts: bool, otherwise: Duration) -> Duration {
        if lasts { UNLIMITED } else { otherwise }
    }

    /// The same with what is known already; `lasts` as [`Passthrough::attributes_last`] says.
    pub(super) fn shown(
        &self,
        ctx: &Context,
        node: &Node,
        mount: &Mount,
        st: &Statx,
        record: &Record,
        lasts: bool,
    ) -> (Attr, Duration) {
        let asker = asker(ctx);
        let shown = ownership::show(u32::from(st.stx_mode), record, self.view(asker, st));
        let marks = self.marks.load(Ordering::Relaxed);
        // The guest's kernel shows it as each caller's by itself; what has only a user or only a group on record it cannot.
        let caller_owns = marks && shown.asker && record.uid.is_none() && record.gid.is_none();
        let for_all = !shown.asker || caller_owns;
        let cacheable = for_all || !marks && node.share.viewers.cacheable(asker.0, self.now());
        // An answer that depends on who asks is right for a moment only.
        let lasts = lasts && for_all;
        let device = kind(st) == libc::S_IFCHR || kind(st) == libc::S_IFBLK;
        let attr = Attr {
            ino: mount.ino(st.stx_ino),
            size: st.stx_size,
            blocks: st.stx_blocks,
            atime: time(&st.stx_atime),
            mtime: time(&st.stx_mtime),
            ctime: time(&st.stx_ctime),
            btime: (st.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| time(&st.stx_btime)),
            mode: shown.mode,
            nlink: st.stx_nlink,
            uid: shown.uid,
            gid: shown.gid,
            rdev: if device {
                encode_device(st.stx_rdev_major, st.stx_rdev_minor)
            } else {
                0
            },
            blksize: st.stx_blksize,
            submount: node.submount && self.submounts.load(Ordering::Relaxed),
            caller_owns,
            local_open: lasts && marks && (node.is_file() || node.is_dir()) && is_readable(st),
            no_names: false,
        };
        let timeout = if cacheable {
            self.lifetime(lasts, self.config.attr_timeout)
        } else {
            Duration::ZERO
        };
        (attr, timeout)
    }

    /// The answer to a lookup of `node`, which has been counted; when this fails, it is no longer.
    pub(super) fn entry(&self, ctx: &Context, node: &Arc<Node>, fd: impl AsFd) -> Result<Entry> {
        match self.attr(ctx, node, fd) {
            Ok((attr, attr_timeout)) => Ok(self.entry_of(node.id, attr, attr_timeout, false)),
            Err(error) => {
                self.drop_lookups(node.id, 1);
                Err(error)
            }
        }
    }

    /// `lasts`: the name does.
    pub(super) fn entry_of(&self, node: NodeId, attr: Attr, attr_timeout: Duration, lasts: bool) -> Entry {
        // Node ids are not used again, so there is one generation.
        Entry {
            node,
            generation: 0,
            attr,
            attr_timeout,
            entry_timeout: self.lifetime(lasts, self.config.entry_timeout),
        }
    }

    /// Attributes of the directory that the shares are in: root's, for everybody to look at.
    pub(super) fn virtual_root_attr(&self) -> Attr {
        Attr {
            ino: VIRTUAL_ROOT_INO,
            mode: libc::S_IFDIR | 0o555,
            nlink: 2,
            blksize: 4096,
            ..Attr::default()
        }
    }

    pub(super) fn virtual_root_entry(&self) -> Entry {
        self.entry_of(ROOT_ID, self.virtual_root_attr(), self.config.attr_timeout, false)
    }
}

/// "There is nothing, and this may be remembered for so long."
pub(super) fn negative_entry(timeout: Duration) -> Entry {
    Entry {
        node: 0,
        generation: 0,
        attr: Attr::default(),
        attr_timeout: Duration::ZERO,
        entry_timeout: timeout,
    }
}

/// Whether this process can open something for reading, by its permissions on the host. The guest opens by itself only what
/// it would be permitted to open here.
fn is_readable(st: &Statx) -> bool {
    let mode = u32::from(st.stx_mode);
    if mode & 0o444 == 0o444 {
        return true;
    }
    let user = rustix::process::geteuid();
    user.is_root() || (st.stx_uid == user.as_raw() && mode & 0o400 != 0)
}

fn time(time: &StatxTimestamp) -> (i64, u32) {
    (time.tv_sec, time.tv_nsec)
}

/// A device number as FUSE sends it (`new_encode_dev` of Linux).
fn encode_device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_encoded_as_linux_does() {
        assert_eq!(encode_device(8, 1), 0x801);
        for (major, minor) in [(1, 3), (259, 0x123), (0xfff, 0xf_ffff)] {
            assert_eq!(
                crate::wire::device_numbers(encode_device(major, minor)),
                (major, minor)
            );
        }
    }
}
