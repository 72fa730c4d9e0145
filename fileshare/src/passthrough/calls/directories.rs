//! Directories: opening, reading and syncing them.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::OFlags;

use super::super::Passthrough;
use super::super::attributes::VIRTUAL_ROOT_INO;
use super::super::config::CachePolicy;
use super::super::directory::{OpenDir, RawEntry};
use super::super::discovery::is_hidden_alias;
use super::super::exclusions::Step;
use super::super::node::Node;
use super::super::sys;
use crate::filesystem::{Context, DirSink, Errno, Handle, NodeId, Opened, Result};
use crate::wire::{FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE};

impl Passthrough {
    pub(super) fn open_directory(&self, ctx: &Context, node: NodeId) -> Result<Opened> {
        if self.is_virtual_root(node) {
            return Ok(Opened::default());
        }
        let node = self.node_for(ctx, node)?;
        self.dirs.check_room()?;
        let dir = self.open_dir(&node)?;
        let flags = match self.config.cache {
            CachePolicy::Always => FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE,
            // Entries cached in the guest would not bring their attributes along (READDIRPLUS), which costs more.
            CachePolicy::Never | CachePolicy::Auto => 0,
        };
        Ok(Opened {
            handle: self.dirs.add(dir)?,
            flags,
        })
    }

    fn open_dir(&self, node: &Arc<Node>) -> Result<OpenDir> {
        if !node.is_dir() {
            return Err(Errno(libc::ENOTDIR));
        }
        let fd = self.reopen(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(OpenDir::new(node.clone(), fd))
    }

    /// The open directory a request is about. Without a handle, one that is opened for the moment.
    fn dir(&self, node: NodeId, handle: Handle) -> Result<Arc<OpenDir>> {
        if handle != 0 {
            return self.dirs.get(node, handle);
        }
        let node = self.node(node)?;
        if let Some(dir) = self.transient_dirs.get(&node.id) {
            return Ok(dir);
        }
        let dir = Arc::new(self.open_dir(&node)?);
        self.transient_dirs.insert(node.id, dir.clone());
        Ok(dir)
    }

    pub(super) fn read_directory(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Handle,
        offset: u64,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        if self.is_virtual_root(node) {
            return self.read_virtual_root(ctx, offset, sink);
        }
        if offset > i64::MAX as u64 {
            return Err(Errno(libc::EINVAL));
        }
        self.node_for(ctx, node)?;
        let dir = self.dir(node, handle)?;
        let mount = self.mount_of(&dir.node)?;
        dir.read(offset, |entry| {
            let ino = mount.ino(entry.ino);
            match entry.name {
                b"." => put(sink, None, ino, libc::DT_DIR, &entry),
                b".." => {
                    // What a share's root is in is not the guest's to know.
                    let ino = if dir.node.permanent {
                        mount.ino(dir.node.identity.ino)
                    } else {
                        ino
                    };
                    put(sink, None, ino, libc::DT_DIR, &entry)
                }
                _ => self.put_child(ctx, &dir, ino, &entry, sink),
            }
        })
    }

    /// Hands on an entry that is not `.` or `..`. Returns whether to go on.
    fn put_child(
        &self,
        ctx: &Context,
        dir: &OpenDir,
        ino: u64,
        entry: &RawEntry<'_>,
        sink: &mut dyn DirSink,
    ) -> bool {
        let parent = &dir.node;
        if self.is_hidden(dir, entry.name) {
            return true;
        }
        if !sink.plus() {
            return put(sink, None, ino, entry.kind, entry);
        }
        if !sink.fits(entry.name) {
            return false;
        }
        let Ok(name) = CString::new(entry.name) else {
            return true;
        };
        match self.look_up_in(ctx, parent, &name) {
            Ok(found) => {
                let kind = (found.attr.mode >> 12) as u8;
                let fitted = sink.add_plus(Some(&found), found.attr.ino, entry.next, kind, entry.name);
                if !fitted {
                    self.drop_lookups(found.node, 1);
                }
                fitted
            }
            // Gone since the directory was read.
            Err(Errno(libc::ENOENT)) => true,
            Err(_) => put(sink, None, ino, entry.kind, entry),
        }
    }

    fn is_hidden(&self, dir: &OpenDir, name: &[u8]) -> bool {
        let parent = &dir.node;
        if !parent.holds_exclusions() {
            return false;
        }
        if parent.share.exclusions.step(parent.exclusion(), name) == Step::Hidden {
            return true;
        }
        let Ok(name) = CString::new(name) else { return true };
        sys::stat_name(&dir.fd, &name).is_ok_and(|st| is_hidden_alias(parent, &dir.fd, &st))
    }

    /// The shares. An entry's offset is its share's number and three, so that it stays good when others come and go.
    fn read_virtual_root(&self, ctx: &Context, offset: u64, sink: &mut dyn DirSink) -> Result<()> {
        for (at, name) in [(0, &b"."[..]), (1, b"..")] {
            let entry = RawEntry {
                ino: VIRTUAL_ROOT_INO,
                next: at + 1,
                kind: libc::DT_DIR,
                name,
            };
            if offset <= at && !put(sink, None, entry.ino, entry.kind, &entry) {
                return Ok(());
            }
        }
        for (id, listed) in self.shares.all() {
            let next = u64::from(listed.share.number) + 3;
            if next <= offset {
                continue;
            }
            let Ok(root) = self.node_for(ctx, listed.root) else {
                continue;
            };
            let Ok((attr, timeout)) = self.attr(ctx, &root, &root.share.root) else {
                continue;
            };
            let entry = RawEntry {
                ino: attr.ino,
                next,
                kind: libc::DT_DIR,
                name: id.as_bytes(),
            };
            let found = self.entry_of(root.id, attr, timeout, false);
            if !put(sink, Some(&found), attr.ino, libc::DT_DIR, &entry) {
                return Ok(());
            }
        }
        Ok(())
    }

    pub(super) fn release_directory(&self, node: NodeId, handle: Handle) -> Result<()> {
        if handle == 0 {
            Ok(())
        } else {
            self.dirs.remove(node, handle)
        }
    }

    pub(super) fn sync_directory(&self, node: NodeId, handle: Handle, datasync: bool) -> Result<()> {
        if self.is_virtual_root(node) {
            return Ok(());
        }
        let dir = self.dir(node, handle)?;
        let fd = dir.fd.as_fd();
        let synced = if datasync {
            rustix::fs::fdatasync(fd)
        } else {
            rustix::fs::fsync(fd)
        };
        Ok(synced?)
    }
}

/// Hands an entry to the sink in the form it wants. Returns whether it fitted.
fn put(
    sink: &mut dyn DirSink,
    found: Option<&crate::filesystem::Entry>,
    ino: u64,
    kind: u8,
    entry: &RawEntry<'_>,
) -> bool {
    if sink.plus() {
        sink.add_plus(found, ino, entry.next, kind, entry.name)
    } else {
        sink.add(ino, entry.next, kind, entry.name)
    }
}
