//! Attributes, and what there is to know of a node without opening it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{Access, OFlags, Statx};
use rustix::io::Errno as HostErrno;

use super::super::Passthrough;
use super::super::contents;
use super::super::directory::OpenDir;
use super::super::handles::OpenFile;
use super::super::node::{Node, Privileges};
use super::super::ownership::{self, Record};
use super::super::records::Inode;
use super::super::resolve::asker;
use super::super::sys;
use crate::filesystem::{Attr, Context, Errno, Handle, NodeId, Result, SetAttr};

/// A descriptor of a node: of the file that is open, when the request names one, for that may have no name any more.
enum Target {
    Open(Arc<OpenFile>),
    Dir(Arc<OpenDir>),
    Path(Arc<OwnedFd>),
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Target::Open(file) => file.as_fd(),
            Target::Dir(dir) => dir.fd.as_fd(),
            Target::Path(fd) => fd.as_fd(),
        }
    }
}

impl Passthrough {
    fn target(&self, node: &Arc<Node>, handle: Option<Handle>) -> Result<Target> {
        match handle.filter(|handle| *handle != 0) {
            Some(handle) if node.is_dir() => Ok(Target::Dir(self.dirs.get(node.id, handle)?)),
            Some(handle) => Ok(Target::Open(self.files.get(node.id, handle)?)),
            None => Ok(Target::Path(self.path_fd(node)?)),
        }
    }

    pub(in super::super) fn get_attributes(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Option<Handle>,
    ) -> Result<(Attr, Duration)> {
        if self.is_virtual_root(node) {
            return Ok((self.virtual_root_attr(), self.config.attr_timeout));
        }
        let node = self.node_for(ctx, node)?;
        let target = self.target(&node, handle)?;
        self.attr(ctx, &node, target)
    }

    pub(super) fn set_attributes(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Option<Handle>,
        set: &SetAttr,
    ) -> Result<(Attr, Duration)> {
        let node = self.node_to_change(ctx, node)?;
        let target = self.target(&node, handle)?;
        let fd = target.as_fd();
        if let Some(size) = set.size {
            self.truncate(&node, &target, size)?;
        }
        if set.size.is_some() || set.uid.is_some() || set.gid.is_some() || set.kill_suidgid {
            self.drop_privileges(&node, fd, set.kill_suidgid)?;
        }
        if set.mode.is_some() || set.uid.is_some() || set.gid.is_some() {
            self.change_owner(ctx, &node, fd, set)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            self.proc()?
                .set_times(fd, &sys::timestamps(set.atime, set.mtime))?;
        }
        self.attr(ctx, &node, fd)
    }

    fn truncate(&self, node: &Arc<Node>, target: &Target, size: u64) -> Result<()> {
        if !node.is_file() {
            return Err(Errno(if node.is_dir() { libc::EISDIR } else { libc::EINVAL }));
        }
        if let Target::Open(file) = target {
            match rustix::fs::ftruncate(file, size) {
                // Not open for writing.
                Err(HostErrno::INVAL | HostErrno::BADF) => {}
                result => return Ok(result?),
            }
        }
        let fd = match target {
            Target::Open(file) => self.with_descriptors(|| self.proc()?.reopen(file, OFlags::WRONLY))?,
            Target::Dir(_) | Target::Path(_) => self.reopen(node, OFlags::WRONLY)?,
        };
        Ok(rustix::fs::ftruncate(&fd, size)?)
    }

    /// chmod and chown.
    fn change_owner(&self, ctx: &Context, node: &Node, fd: BorrowedFd<'_>, set: &SetAttr) -> Result<()> {
        let mut st = sys::stat(fd)?;
        let mount = self.mount_of(node)?;
        let before = self.record(node, &mount, &st, fd);
        let mut record = before;
        record.uid = set.uid.or(record.uid);
        record.gid = set.gid.or(record.gid);
        if let Some(mode) = set.mode {
            if node.kind == libc::S_IFLNK {
                return Err(Errno(libc::EOPNOTSUPP));
            }
            self.change_host_mode(fd, &mut st, mode)?;
            record.set_mode(node.kind, mode, st.stx_mode.into());
            if node.is_file() && ownership::is_privileged(mode) {
                // Whoever runs it becomes its owner, so it must have one.
                record.uid = record.uid.or(Some(asker(ctx).0));
                record.gid = record.gid.or(Some(asker(ctx).1));
                node.set_privileges(Privileges::Some);
            }
        } else if let Some(mode) = before
            .mode
            .filter(|mode| mode.host != u32::from(st.stx_mode) & 0o7777)
        {
            tracing::trace!("node {}: mode {:o} was changed on the host", node.id, mode.shown);
            record.mode = None;
        }
        if record != before {
            let had = before != Record::default();
            let inode = Inode {
                share: &node.share,
                identity: &node.identity,
                mount: &mount,
                fd,
                st: &st,
            };
            self.put_record(&inode, &record, had)?;
            node.unrecorded.store(contents::UNKNOWN, Ordering::Release);
        }
        Ok(())
    }

    /// As much of a chmod as is right on the host.
    fn change_host_mode(&self, fd: BorrowedFd<'_>, st: &mut Statx, mode: u32) -> Result<()> {
        let is = u32::from(st.stx_mode);
        let wanted = ownership::host_mode(is, mode);
        if wanted == is & 0o7777 {
            return Ok(());
        }
        match self.proc()?.chmod(fd, wanted) {
            Ok(()) => {}
            // Another user's on the host: its mode stays, and the record says what the guest wants.
            Err(HostErrno::PERM) if st.stx_uid != rustix::process::geteuid().as_raw() => {}
            Err(error) => return Err(error.into()),
        }
        *st = sys::stat(fd)?;
        Ok(())
    }

    pub(super) fn read_link(&self, ctx: &Context, node: NodeId) -> Result<Vec<u8>> {
        let node = self.node_for(ctx, node)?;
        if node.kind != libc::S_IFLNK {
            return Err(Errno(libc::EINVAL));
        }
        let fd = self.path_fd(&node)?;
        Ok(rustix::fs::readlinkat(&fd, c"", Vec::new())?.into_bytes())
    }

    pub(super) fn check_access(&self, ctx: &Context, node: NodeId, mask: u32) -> Result<()> {
        let access = mask & 7;
        if self.is_virtual_root(node) {
            return if access & libc::W_OK as u32 == 0 {
                Ok(())
            } else {
                Err(Errno(libc::EROFS))
            };
        }
        let node = self.node_for(ctx, node)?;
        if node.share.read_only && access & libc::W_OK as u32 != 0 {
            return Err(Errno(libc::EROFS));
        }
        let fd = self.path_fd(&node)?;
        let (attr, _) = self.attr(ctx, &node, &fd)?;
        if !permits(&attr, asker(ctx), access) {
            return Err(Errno(libc::EACCES));
        }
        // Then what the server itself may do. Execution is the guest's.
        let mut host = Access::EXISTS;
        host.set(Access::READ_OK, access & libc::R_OK as u32 != 0);
        host.set(Access::WRITE_OK, access & libc::W_OK as u32 != 0);
        if node.kind == libc::S_IFLNK {
            Ok(())
        } else {
            Ok(self.proc()?.access(&fd, host)?)
        }
    }

    pub(super) fn file_system_status(&self, node: NodeId) -> Result<libc::statvfs64> {
        if self.is_virtual_root(node) {
            let mut empty = sys::empty_statvfs();
            (empty.f_bsize, empty.f_frsize, empty.f_namemax) = (4096, 4096, 255);
            return Ok(empty);
        }
        let node = self.node(node)?;
        let fd = self.path_fd(&node)?;
        let mut status = sys::statvfs(fd.as_fd())?;
        if node.share.read_only {
            status.f_flag |= libc::ST_RDONLY;
        }
        Ok(status)
    }
}

/// What the permission bits say (`generic_permission` of Linux, without ACLs and capabilities but root's).
fn permits(attr: &Attr, (uid, gid): (u32, u32), access: u32) -> bool {
    let execute = libc::X_OK as u32;
    if uid == 0 {
        let dir = attr.mode & libc::S_IFMT == libc::S_IFDIR;
        return access & execute == 0 || dir || attr.mode & 0o111 != 0;
    }
    let shift = match (uid == attr.uid, gid == attr.gid) {
        (true, _) => 6,
        (false, true) => 3,
        (false, false) => 0,
    };
    attr.mode >> shift & access == access
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_the_kernels() {
        let attr = |mode| Attr {
            mode: libc::S_IFREG | mode,
            uid: 5,
            gid: 6,
            ..Attr::default()
        };
        assert!(permits(&attr(0o400), (5, 1), 4));
        assert!(
            !permits(&attr(0o077), (5, 6), 4),
            "the owner's bits count for the owner"
        );
        assert!(permits(&attr(0o070), (1, 6), 7));
        assert!(!permits(&attr(0o005), (1, 1), 2));
        assert!(permits(&attr(0o000), (0, 0), 6), "root");
        assert!(
            !permits(&attr(0o666), (0, 0), 1),
            "root runs nothing that nobody can"
        );
        assert!(permits(&attr(0o001), (0, 0), 1));
    }
}
