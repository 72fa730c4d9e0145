//! From the host's attributes to those the guest sees.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{Statx, StatxFlags, StatxTimestamp};

use super::Passthrough;
use super::discovery::kind;
use super::mounts::Mount;
use super::node::Node;
use super::ownership::{self, Record};
use super::resolve::asker;
use super::shares::Share;
use super::sys;
use crate::filesystem::{Attr, Context, Entry, NodeId, Result};
use crate::wire::ROOT_ID;

/// Inode number of the directory that the shares are in; the host's never are so high.
pub(super) const VIRTUAL_ROOT_INO: u64 = u64::MAX >> 1;

impl Passthrough {
    /// A node's attributes and how long they may be cached, from what `fd` refers to.
    pub(super) fn attr(&self, ctx: &Context, node: &Node, fd: impl AsFd) -> Result<(Attr, Duration)> {
        let st = sys::stat(&fd)?;
        let mount = self.mount_of(node)?;
        let record = self.record(node, &mount, &st, fd);
        Ok(self.shown(ctx, &node.share, &mount, &st, &record, node.submount))
    }

    /// The same with what is known already.
    pub(super) fn shown(
        &self,
        ctx: &Context,
        share: &Share,
        mount: &Mount,
        st: &Statx,
        record: &Record,
        submount: bool,
    ) -> (Attr, Duration) {
        let asker = asker(ctx);
        let shown = ownership::show(u32::from(st.stx_mode), record, self.view(asker, st));
        let cacheable = !shown.asker || share.viewers.cacheable(asker.0, self.now());
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
            submount: submount && self.submounts.load(Ordering::Relaxed),
        };
        (
            attr,
            if cacheable {
                self.config.attr_timeout
            } else {
                Duration::ZERO
            },
        )
    }

    /// The answer to a lookup of `node`, which has been counted; when this fails, it is no longer.
    pub(super) fn entry(&self, ctx: &Context, node: &Arc<Node>, fd: impl AsFd) -> Result<Entry> {
        match self.attr(ctx, node, fd) {
            Ok((attr, attr_timeout)) => Ok(self.entry_of(node.id, attr, attr_timeout)),
            Err(error) => {
                self.drop_lookups(node.id, 1);
                Err(error)
            }
        }
    }

    pub(super) fn entry_of(&self, node: NodeId, attr: Attr, attr_timeout: Duration) -> Entry {
        // Node ids are not used again, so there is one generation.
        Entry {
            node,
            generation: 0,
            attr,
            attr_timeout,
            entry_timeout: self.config.entry_timeout,
        }
    }

    /// "There is nothing, and this may be remembered."
    pub(super) fn negative_entry(&self) -> Entry {
        let attr = Attr::default();
        Entry {
            node: 0,
            generation: 0,
            attr,
            attr_timeout: Duration::ZERO,
            entry_timeout: self.config.negative_timeout,
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
        self.entry_of(ROOT_ID, self.virtual_root_attr(), self.config.attr_timeout)
    }
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
