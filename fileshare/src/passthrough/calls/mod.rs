//! The requests, by groups; here is which group answers what. What changes something on the host is noted as this process's
//! own doing while it lasts.

mod attributes;
mod directories;
mod files;
mod io;
mod locking;
mod making;
mod names;
mod session;
mod xattrs;

use std::ffi::CStr;
use std::time::Duration;

use super::Passthrough;
use crate::buffers::{ReplyBuffer, RequestBuffer};
use crate::filesystem::{
    Attr, Context, DirSink, Entry, FileSystem, Handle, Interruption, Lock, NodeId, Opened, Result, SetAttr,
};

impl FileSystem for Passthrough {
    fn init(&self, offered: u64) -> u64 {
        self.start_session(offered)
    }

    fn destroy(&self) {
        self.end_session();
    }

    fn lookup(&self, ctx: &Context, parent: NodeId, name: &CStr) -> Result<Entry> {
        if let Some(agent) = self.for_agent(ctx) {
            return agent.lookup(parent, name);
        }
        self.look_up(ctx, parent, name)
    }

    fn lookup_self(&self, ctx: &Context, node: NodeId) -> Result<Entry> {
        if let Some(agent) = self.for_agent(ctx) {
            return agent.lookup_self(node);
        }
        self.look_up_self(ctx, node)
    }

    fn lookup_parent(&self, ctx: &Context, node: NodeId) -> Result<Entry> {
        self.look_up_parent(&self.on_whose_behalf(ctx), node)
    }

    fn forget(&self, node: NodeId, count: u64) {
        self.drop_lookups(node, count);
    }

    fn getattr(&self, ctx: &Context, node: NodeId, handle: Option<Handle>) -> Result<(Attr, Duration)> {
        if let Some(agent) = self.for_agent(ctx) {
            return agent.getattr(node);
        }
        self.get_attributes(ctx, node, handle)
    }

    fn setattr(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Option<Handle>,
        set: &SetAttr,
    ) -> Result<(Attr, Duration)> {
        if let Some(agent) = self.for_agent(ctx) {
            return agent.setattr(node);
        }
        let _doing = self.doing_to(node);
        self.set_attributes(ctx, node, handle, set)
    }

    fn readlink(&self, ctx: &Context, node: NodeId) -> Result<Vec<u8>> {
        self.read_link(ctx, node)
    }

    fn symlink(&self, ctx: &Context, parent: NodeId, name: &CStr, target: &CStr) -> Result<Entry> {
        if let Some(agent) = self.for_agent(ctx) {
            return agent.make(parent, name, libc::S_IFLNK);
        }
        let _doing = self.doing_at(&[(parent, name)]);
        self.make_symlink(ctx, parent, name, target)
    }

    fn mknod(
        &self,
        ctx: &Context,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        _rdev: u32,
        umask: u32,
    ) -> Result<Entry> {
        if let Some(agent) = self.for_agent(ctx) {
            return agent.make(parent, name, mode & libc::S_IFMT);
        }
        let _doing = self.doing_at(&[(parent, name)]);
        self.make_node(ctx, parent, name, mode, umask)
    }

    fn mkdir(&self, ctx: &Context, parent: NodeId, name: &CStr, mode: u32, umask: u32) -> Result<Entry> {
        if let Some(agent) = self.for_agent(ctx) {
            return agent.make(parent, name, libc::S_IFDIR);
        }
        let _doing = self.doing_at(&[(parent, name)]);
        self.make_directory(ctx, parent, name, mode, umask)
    }

    fn unlink(&self, ctx: &Context, parent: NodeId, name: &CStr) -> Result<()> {
        if let Some(agent) = self.for_agent(ctx) {
            return agent.remove(parent, name, false);
        }
        let _doing = self.doing_at(&[(parent, name)]);
        self.remove(ctx, parent, name, false)
    }

    fn rmdir(&self, ctx: &Context, parent: NodeId, name: &CStr) -> Result<()> {
        if let Some(agent) = self.for_agent(ctx) {
            return agent.remove(parent, name, true);
        }
        let _doing = self.doing_at(&[(parent, name)]);
        self.remove(ctx, parent, name, true)
    }

    fn rename(
        &self,
        ctx: &Context,
        parent: NodeId,
        name: &CStr,
        new_parent: NodeId,
        new_name: &CStr,
        flags: u32,
    ) -> Result<()> {
        if let Some(agent) = self.for_agent(ctx) {
            return agent.rename((parent, name), (new_parent, new_name));
        }
        let _doing = self.doing_at(&[(parent, name), (new_parent, new_name)]);
        self.rename_node(ctx, (parent, name), (new_parent, new_name), flags)
    }

    fn link(&self, ctx: &Context, node: NodeId, new_parent: NodeId, new_name: &CStr) -> Result<Entry> {
        self.not_for_agent(ctx)?;
        let _doing = (self.doing_to(node), self.doing_at(&[(new_parent, new_name)]));
        self.make_link(ctx, node, new_parent, new_name)
    }

    fn open(&self, ctx: &Context, node: NodeId, flags: u32, kill_suidgid: bool) -> Result<Opened> {
        if let Some(agent) = self.for_agent(ctx) {
            return agent.open();
        }
        let truncates = flags & libc::O_TRUNC as u32 != 0;
        let _doing = truncates.then(|| self.doing_to(node));
        self.open_file(ctx, node, flags, kill_suidgid)
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
        self.not_for_agent(ctx)?;
        let _doing = self.doing_at(&[(parent, name)]);
        self.create_file(ctx, parent, name, mode & !umask, flags, kill_suidgid)
    }

    fn tmpfile(
        &self,
        ctx: &Context,
        parent: NodeId,
        mode: u32,
        flags: u32,
        umask: u32,
    ) -> Result<(Entry, Opened)> {
        self.not_for_agent(ctx)?;
        self.create_unnamed(ctx, parent, mode & !umask, flags)
    }

    fn read(
        &self,
        _ctx: &Context,
        node: NodeId,
        handle: Handle,
        offset: u64,
        size: u32,
        into: &mut dyn ReplyBuffer,
    ) -> Result<usize> {
        self.read_file(node, handle, offset, size, into)
    }

    fn write(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Handle,
        offset: u64,
        size: u32,
        from: &mut dyn RequestBuffer,
        delayed: bool,
        kill_suidgid: bool,
        flags: u32,
    ) -> Result<usize> {
        self.not_for_agent(ctx)?;
        // What comes from the page cache has its place; only what a process appends right now has not.
        let append = flags & libc::O_APPEND as u32 != 0 && !delayed;
        let _doing = self.doing_to(node);
        self.write_file(node, handle, offset, size, from, append, kill_suidgid)
    }

    fn flush(&self, _ctx: &Context, node: NodeId, handle: Handle, lock_owner: u64) -> Result<()> {
        if self.is_agents(handle) {
            return Ok(());
        }
        self.flush_file(node, handle, lock_owner)
    }

    fn fsync(&self, _ctx: &Context, node: NodeId, handle: Handle, datasync: bool) -> Result<()> {
        self.sync_file(node, handle, datasync)
    }

    fn release(&self, _ctx: &Context, node: NodeId, handle: Handle, flock_owner: Option<u64>) -> Result<()> {
        if self.is_agents(handle) {
            return Ok(());
        }
        self.release_file(node, handle, flock_owner)
    }

    fn opendir(&self, ctx: &Context, node: NodeId, _flags: u32) -> Result<Opened> {
        self.open_directory(ctx, node)
    }

    fn readdir(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Handle,
        offset: u64,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        self.read_directory(&self.on_whose_behalf(ctx), node, handle, offset, sink)
    }

    fn fsyncdir(&self, _ctx: &Context, node: NodeId, handle: Handle, datasync: bool) -> Result<()> {
        self.sync_directory(node, handle, datasync)
    }

    fn releasedir(&self, _ctx: &Context, node: NodeId, handle: Handle) -> Result<()> {
        self.release_directory(node, handle)
    }

    fn statfs(&self, _ctx: &Context, node: NodeId) -> Result<libc::statvfs64> {
        self.file_system_status(node)
    }

    fn syncfs(&self, _ctx: &Context, node: NodeId) -> Result<()> {
        self.sync_file_system(node)
    }

    fn setxattr(&self, ctx: &Context, node: NodeId, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
        self.not_for_agent(ctx)?;
        let _doing = self.doing_to(node);
        self.set_xattr(ctx, node, name, value, flags)
    }

    fn getxattr(&self, _ctx: &Context, node: NodeId, name: &CStr) -> Result<Vec<u8>> {
        self.get_xattr(node, name)
    }

    fn listxattr(&self, _ctx: &Context, node: NodeId) -> Result<Vec<u8>> {
        self.list_xattrs(node)
    }

    fn removexattr(&self, ctx: &Context, node: NodeId, name: &CStr) -> Result<()> {
        self.not_for_agent(ctx)?;
        let _doing = self.doing_to(node);
        self.remove_xattr(ctx, node, name)
    }

    fn access(&self, ctx: &Context, node: NodeId, mask: u32) -> Result<()> {
        self.check_access(ctx, node, mask)
    }

    fn getlk(&self, _ctx: &Context, node: NodeId, handle: Handle, owner: u64, lock: &Lock) -> Result<Lock> {
        self.get_lock(node, handle, owner, lock)
    }

    fn setlk(
        &self,
        _ctx: &Context,
        node: NodeId,
        handle: Handle,
        owner: u64,
        lock: &Lock,
        flock: bool,
        waiting: Option<&dyn Interruption>,
    ) -> Result<()> {
        self.set_lock(node, handle, owner, lock, flock, waiting)
    }

    fn lseek(&self, _ctx: &Context, node: NodeId, handle: Handle, offset: u64, whence: u32) -> Result<u64> {
        self.seek_file(node, handle, offset, whence)
    }

    fn fallocate(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Handle,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        self.not_for_agent(ctx)?;
        let _doing = self.doing_to(node);
        self.allocate(ctx, node, handle, mode, offset, length)
    }

    fn copy_file_range(
        &self,
        ctx: &Context,
        from: (NodeId, Handle, u64),
        to: (NodeId, Handle, u64),
        length: u64,
        flags: u64,
    ) -> Result<usize> {
        self.not_for_agent(ctx)?;
        let _doing = self.doing_to(to.0);
        self.copy_range(ctx, from, to, length, flags)
    }
}
