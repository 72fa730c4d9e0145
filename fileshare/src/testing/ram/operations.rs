//! The requests.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::time::Duration;

use super::{Content, RamFs, TIMEOUT, error, resize};
use crate::buffers::{ReplyBuffer, RequestBuffer};
use crate::filesystem::{
    Attr, Context, DirSink, Entry, Errno, FileSystem, Handle, Interruption, Lock, NodeId, Opened, Result,
    SetAttr, SetTime,
};
use crate::wire;

impl FileSystem for RamFs {
    fn init(&self, offered: u64) -> u64 {
        // Either, not both.
        offered & !wire::NO_EXPORT_SUPPORT
    }

    fn destroy(&self) {
        let mut state = self.lock();
        state.handles.clear();
        for node in state.nodes.values_mut() {
            (node.lookups, node.opens, node.lock) = (0, 0, None);
        }
        let all: Vec<NodeId> = state.nodes.keys().copied().collect();
        for id in all {
            state.collect(id);
        }
    }

    fn lookup(&self, _: &Context, parent: NodeId, name: &CStr) -> Result<Entry> {
        let mut state = self.lock();
        let id = state.find(parent, name)?;
        state.entry(id)
    }

    fn lookup_self(&self, _: &Context, node: NodeId) -> Result<Entry> {
        self.lock().entry(node)
    }

    fn lookup_parent(&self, _: &Context, node: NodeId) -> Result<Entry> {
        let mut state = self.lock();
        match state.node(node)?.content {
            Content::Directory { parent, .. } => state.entry(parent),
            _ => error(libc::ENOTDIR),
        }
    }

    fn forget(&self, id: NodeId, count: u64) {
        let mut state = self.lock();
        if let Ok(node) = state.node(id) {
            node.lookups = node.lookups.saturating_sub(count);
            state.collect(id);
        }
    }

    fn getattr(&self, _: &Context, node: NodeId, _: Option<Handle>) -> Result<(Attr, Duration)> {
        Ok((self.lock().attr(node)?, TIMEOUT))
    }

    fn setattr(&self, _: &Context, id: NodeId, _: Option<Handle>, set: &SetAttr) -> Result<(Attr, Duration)> {
        let mut state = self.lock();
        let node = state.node(id)?;
        if let Some(size) = set.size {
            match &mut node.content {
                Content::File(bytes) => resize(bytes, size)?,
                _ => return error(libc::EINVAL),
            }
        }
        let attr = &mut node.attr;
        if let Some(mode) = set.mode {
            attr.mode = attr.mode & libc::S_IFMT | mode;
        }
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        for (time, set) in [(&mut attr.atime, set.atime), (&mut attr.mtime, set.mtime)] {
            match set {
                Some(SetTime::At(seconds, nanoseconds)) => *time = (seconds, nanoseconds),
                Some(SetTime::Now) => *time = (time.0.saturating_add(1), 0),
                None => {}
            }
        }
        Ok((state.attr(id)?, TIMEOUT))
    }

    fn readlink(&self, _: &Context, node: NodeId) -> Result<Vec<u8>> {
        match &self.lock().node(node)?.content {
            Content::Symlink(target) => Ok(target.clone()),
            _ => error(libc::EINVAL),
        }
    }

    fn symlink(&self, ctx: &Context, parent: NodeId, name: &CStr, target: &CStr) -> Result<Entry> {
        let mut state = self.lock();
        let content = Content::Symlink(target.to_bytes().to_vec());
        let id = state.make(ctx, parent, name, content, libc::S_IFLNK | 0o777)?;
        state.entry(id)
    }

    fn mknod(
        &self,
        ctx: &Context,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> Result<Entry> {
        let mut state = self.lock();
        let content = match mode & libc::S_IFMT {
            libc::S_IFREG => Content::File(Vec::new()),
            _ => Content::Other,
        };
        let id = state.make(ctx, parent, name, content, mode & !umask)?;
        state.node(id)?.attr.rdev = rdev;
        state.entry(id)
    }

    fn mkdir(&self, ctx: &Context, parent: NodeId, name: &CStr, mode: u32, umask: u32) -> Result<Entry> {
        let mut state = self.lock();
        let names = BTreeMap::new();
        let content = Content::Directory { parent, names };
        let id = state.make(ctx, parent, name, content, libc::S_IFDIR | mode & !umask)?;
        state.entry(id)
    }

    fn unlink(&self, _: &Context, parent: NodeId, name: &CStr) -> Result<()> {
        self.lock().remove(parent, name, false)
    }

    fn rmdir(&self, _: &Context, parent: NodeId, name: &CStr) -> Result<()> {
        self.lock().remove(parent, name, true)
    }

    fn rename(
        &self,
        _: &Context,
        parent: NodeId,
        name: &CStr,
        new_parent: NodeId,
        new_name: &CStr,
        flags: u32,
    ) -> Result<()> {
        let mut state = self.lock();
        if flags & !libc::RENAME_NOREPLACE != 0 {
            return error(libc::EINVAL);
        }
        let id = state.find(parent, name)?;
        state.names(new_parent)?;
        state.alive(new_parent)?;
        if state.is_above(id, new_parent) {
            return error(libc::EINVAL);
        }
        match state.find(new_parent, new_name) {
            Ok(_) if flags & libc::RENAME_NOREPLACE != 0 => return error(libc::EEXIST),
            Ok(old) if old == id => return Ok(()),
            Ok(_) => {
                let directory = matches!(state.node(id)?.content, Content::Directory { .. });
                state.remove(new_parent, new_name, directory)?;
            }
            Err(_) => {}
        }
        state.names(parent)?.remove(name.to_bytes());
        state.names(new_parent)?.insert(new_name.to_bytes().to_vec(), id);
        if let Content::Directory { parent, .. } = &mut state.node(id)?.content {
            *parent = new_parent;
        }
        Ok(())
    }

    fn link(&self, _: &Context, id: NodeId, new_parent: NodeId, new_name: &CStr) -> Result<Entry> {
        let mut state = self.lock();
        let node = state.node(id)?;
        if matches!(node.content, Content::Directory { .. }) || node.attr.nlink == 0 {
            return error(libc::EPERM);
        }
        if state.names(new_parent)?.contains_key(new_name.to_bytes()) {
            return error(libc::EEXIST);
        }
        state.alive(new_parent)?;
        state.names(new_parent)?.insert(new_name.to_bytes().to_vec(), id);
        state.node(id)?.attr.nlink += 1;
        state.entry(id)
    }

    fn open(&self, _: &Context, node: NodeId, flags: u32, _: bool) -> Result<Opened> {
        let mut state = self.lock();
        match &mut state.node(node)?.content {
            Content::File(bytes) if flags & libc::O_TRUNC as u32 != 0 => bytes.clear(),
            Content::File(_) => {}
            Content::Directory { .. } => return error(libc::EISDIR),
            _ => return error(libc::ENXIO),
        }
        state.open(node, false)
    }

    fn create(
        &self,
        ctx: &Context,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        flags: u32,
        umask: u32,
        kill_suidgid: bool,
    ) -> Result<(Entry, Opened)> {
        let found = self.lock().find(parent, name);
        let (id, opened) = match found {
            Ok(_) if flags & libc::O_EXCL as u32 != 0 => return error(libc::EEXIST),
            Ok(id) => (id, self.open(ctx, id, flags, kill_suidgid)?),
            Err(_) => {
                let mut state = self.lock();
                let content = Content::File(Vec::new());
                let id = state.make(ctx, parent, name, content, libc::S_IFREG | mode & !umask)?;
                (id, state.open(id, false)?)
            }
        };
        Ok((self.lock().entry(id)?, opened))
    }

    fn tmpfile(
        &self,
        ctx: &Context,
        parent: NodeId,
        mode: u32,
        _: u32,
        umask: u32,
    ) -> Result<(Entry, Opened)> {
        let mut state = self.lock();
        state.names(parent)?;
        let id = state.insert(Content::File(Vec::new()), libc::S_IFREG | mode & !umask, ctx);
        let opened = state.open(id, false)?;
        Ok((state.entry(id)?, opened))
    }

    fn read(
        &self,
        _: &Context,
        node: NodeId,
        handle: Handle,
        offset: u64,
        size: u32,
        into: &mut dyn ReplyBuffer,
    ) -> Result<usize> {
        let mut state = self.lock();
        let bytes = state.file(node, handle)?;
        let start = bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let end = bytes.len().min(start + size as usize);
        Ok(into.write(&bytes[start..end]))
    }

    fn write(
        &self,
        _: &Context,
        node: NodeId,
        handle: Handle,
        offset: u64,
        size: u32,
        from: &mut dyn RequestBuffer,
        _: bool,
        _: bool,
        _: u32,
    ) -> Result<usize> {
        let mut state = self.lock();
        let bytes = state.file(node, handle)?;
        let end = offset.saturating_add(u64::from(size));
        if end > bytes.len() as u64 {
            resize(bytes, end)?;
        }
        Ok(from.read(&mut bytes[offset as usize..end as usize]))
    }

    fn flush(&self, _: &Context, node: NodeId, handle: Handle, lock_owner: u64) -> Result<()> {
        let mut state = self.lock();
        state.file(node, handle)?;
        let lock = &mut state.node(node)?.lock;
        if lock.is_some_and(|(owner, _)| owner == lock_owner) {
            *lock = None;
        }
        Ok(())
    }

    fn fsync(&self, _: &Context, node: NodeId, handle: Handle, _: bool) -> Result<()> {
        self.lock().file(node, handle).map(|_| ())
    }

    fn release(&self, _: &Context, node: NodeId, handle: Handle, flock_owner: Option<u64>) -> Result<()> {
        let mut state = self.lock();
        state.opened(node, handle, false)?;
        let lock = &mut state.node(node)?.lock;
        if lock.is_some_and(|(owner, _)| Some(owner) == flock_owner) {
            *lock = None;
        }
        state.close(node, handle, false)
    }

    fn opendir(&self, _: &Context, node: NodeId, _: u32) -> Result<Opened> {
        let mut state = self.lock();
        state.names(node)?;
        state.open(node, true)
    }

    fn readdir(
        &self,
        _: &Context,
        node: NodeId,
        handle: Handle,
        offset: u64,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        let mut state = self.lock();
        state.opened(node, handle, true)?;
        let names: Vec<(Vec<u8>, Option<NodeId>)> = [(b".".to_vec(), None), (b"..".to_vec(), None)]
            .into_iter()
            .chain(
                state
                    .names(node)?
                    .iter()
                    .map(|(name, id)| (name.clone(), Some(*id))),
            )
            .collect();
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (name, id)) in names.iter().enumerate().skip(skip) {
            let next = at as u64 + 1;
            let fitted = match id {
                Some(id) if sink.plus() => {
                    let kind = (state.attr(*id)?.mode >> 12) as u8;
                    let entry = state.entry(*id)?;
                    let fitted = sink.add_plus(Some(&entry), *id, next, kind, name);
                    if !fitted {
                        state.node(*id)?.lookups -= 1;
                    }
                    fitted
                }
                Some(id) => sink.add(*id, next, (state.attr(*id)?.mode >> 12) as u8, name),
                None => sink.add(node, next, libc::DT_DIR, name),
            };
            if !fitted {
                break;
            }
        }
        Ok(())
    }

    fn fsyncdir(&self, _: &Context, node: NodeId, handle: Handle, _: bool) -> Result<()> {
        self.lock().opened(node, handle, true)
    }

    fn releasedir(&self, _: &Context, node: NodeId, handle: Handle) -> Result<()> {
        self.lock().close(node, handle, true)
    }

    fn statfs(&self, _: &Context, node: NodeId) -> Result<libc::statvfs64> {
        let mut state = self.lock();
        state.node(node)?;
        // SAFETY: a structure of integers, for which zeros are valid.
        let mut stat: libc::statvfs64 = unsafe { std::mem::zeroed() };
        (stat.f_bsize, stat.f_frsize, stat.f_namemax) = (4096, 4096, 255);
        stat.f_files = state.nodes.len() as u64;
        Ok(stat)
    }

    fn syncfs(&self, _: &Context, node: NodeId) -> Result<()> {
        self.lock().node(node).map(|_| ())
    }

    fn setxattr(&self, _: &Context, node: NodeId, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
        let mut state = self.lock();
        let xattrs = &mut state.node(node)?.xattrs;
        match xattrs.contains_key(name.to_bytes()) {
            true if flags & libc::XATTR_CREATE as u32 != 0 => return error(libc::EEXIST),
            false if flags & libc::XATTR_REPLACE as u32 != 0 => return error(libc::ENODATA),
            _ => {}
        }
        xattrs.insert(name.to_bytes().to_vec(), value.to_vec());
        Ok(())
    }

    fn getxattr(&self, _: &Context, node: NodeId, name: &CStr) -> Result<Vec<u8>> {
        let mut state = self.lock();
        let value = state.node(node)?.xattrs.get(name.to_bytes()).cloned();
        value.ok_or(Errno(libc::ENODATA))
    }

    fn listxattr(&self, _: &Context, node: NodeId) -> Result<Vec<u8>> {
        let mut state = self.lock();
        let names = state.node(node)?.xattrs.keys();
        Ok(names.flat_map(|name| [name.as_slice(), b"\0"].concat()).collect())
    }

    fn removexattr(&self, _: &Context, node: NodeId, name: &CStr) -> Result<()> {
        let mut state = self.lock();
        let removed = state.node(node)?.xattrs.remove(name.to_bytes());
        removed.map(|_| ()).ok_or(Errno(libc::ENODATA))
    }

    fn access(&self, _: &Context, node: NodeId, _: u32) -> Result<()> {
        self.lock().node(node).map(|_| ())
    }

    fn getlk(&self, _: &Context, node: NodeId, handle: Handle, asking: u64, lock: &Lock) -> Result<Lock> {
        let mut state = self.lock();
        state.file(node, handle)?;
        match state.node(node)?.lock {
            Some((owner, held)) if owner != asking => Ok(held),
            _ => Ok(Lock {
                kind: libc::F_UNLCK,
                ..*lock
            }),
        }
    }

    fn setlk(
        &self,
        _: &Context,
        node: NodeId,
        handle: Handle,
        owner: u64,
        lock: &Lock,
        _: bool,
        waiting: Option<&dyn Interruption>,
    ) -> Result<()> {
        let mut state = self.lock();
        loop {
            state.file(node, handle)?;
            let held = &mut state.node(node)?.lock;
            if held.is_none_or(|(holder, _)| holder == owner) {
                *held = (lock.kind != libc::F_UNLCK).then_some((owner, *lock));
                return Ok(());
            }
            if lock.kind == libc::F_UNLCK {
                return Ok(());
            }
            let Some(interruption) = waiting else {
                return error(libc::EAGAIN);
            };
            drop(state);
            if interruption.wait(Duration::from_millis(5)) {
                return error(libc::EINTR);
            }
            state = self.lock();
        }
    }

    fn lseek(&self, _: &Context, node: NodeId, handle: Handle, offset: u64, whence: u32) -> Result<u64> {
        let mut state = self.lock();
        let size = state.file(node, handle)?.len() as u64;
        match whence == libc::SEEK_HOLE as u32 {
            _ if offset >= size => error(libc::ENXIO),
            true => Ok(size),
            false => Ok(offset),
        }
    }

    fn fallocate(
        &self,
        _: &Context,
        node: NodeId,
        handle: Handle,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        let mut state = self.lock();
        let bytes = state.file(node, handle)?;
        match mode {
            0 if offset + length > bytes.len() as u64 => resize(bytes, offset + length),
            0 => Ok(()),
            _ => error(libc::EOPNOTSUPP),
        }
    }

    fn copy_file_range(
        &self,
        _: &Context,
        from: (NodeId, Handle, u64),
        to: (NodeId, Handle, u64),
        length: u64,
        _: u64,
    ) -> Result<usize> {
        let mut state = self.lock();
        let source = state.file(from.0, from.1)?;
        let start = (source.len() as u64).min(from.2);
        let end = (source.len() as u64).min(start.saturating_add(length));
        let bytes = source[start as usize..end as usize].to_vec();
        let target = state.file(to.0, to.1)?;
        let end = to.2.saturating_add(bytes.len() as u64);
        if end > target.len() as u64 {
            resize(target, end)?;
        }
        target[to.2 as usize..end as usize].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}
