//! Making directories, FIFOs, sockets, symbolic links and further names.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, Statx};

use super::super::Passthrough;
use super::super::config::Unowned;
use super::super::discovery::{Found, identify, is_hidden_alias, kind};
use super::super::node::{Node, Privileges};
use super::super::ownership::{self, New};
use super::super::records::Inode;
use super::super::resolve::{asker, check_name};
use super::super::sys;
use crate::filesystem::{Context, Entry, Errno, NodeId, Result};

impl Passthrough {
    pub(super) fn make_directory(
        &self,
        ctx: &Context,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        let mode = libc::S_IFDIR | mode & !umask & 0o7777;
        let mut entry = self.make(ctx, parent, name, mode, |dir, host_mode| {
            rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(host_mode))
        })?;
        entry.attr.no_names = entry.attr.local_open && self.is_watched_from_the_first_name(entry.node);
        Ok(entry)
    }

    /// Whether the guest is told of every name that comes to be in a directory it has just made: that is watched by now, so
    /// nothing may have come in before. Not where one file goes by several names that need not exist (case folding).
    fn is_watched_from_the_first_name(&self, node: NodeId) -> bool {
        let dir = self.node(node).and_then(|node| self.path_fd(&node));
        // What cannot be looked at is asked about by the guest, as any other directory is.
        dir.is_ok_and(|dir| sys::is_empty_directory(dir).unwrap_or(false))
    }

    pub(super) fn make_node(
        &self,
        ctx: &Context,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        let kind = match mode & libc::S_IFMT {
            0 => libc::S_IFREG,
            kind @ (libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK) => kind,
            libc::S_IFCHR | libc::S_IFBLK => return Err(Errno(libc::EPERM)),
            _ => return Err(Errno(libc::EINVAL)),
        };
        let mode = kind | mode & !umask & 0o7777;
        self.make(ctx, parent, name, mode, |dir, host_mode| {
            let mode = Mode::from_raw_mode(host_mode);
            rustix::fs::mknodat(dir, name, FileType::from_raw_mode(kind), mode, 0)
        })
    }

    pub(super) fn make_symlink(
        &self,
        ctx: &Context,
        parent: NodeId,
        name: &CStr,
        target: &CStr,
    ) -> Result<Entry> {
        self.make(ctx, parent, name, libc::S_IFLNK | 0o777, |dir, _| {
            rustix::fs::symlinkat(target, dir, name)
        })
    }

    /// Makes something by `call`, which gets the directory and the mode on the host, and looks it up.
    fn make(
        &self,
        ctx: &Context,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        call: impl Fn(BorrowedFd<'_>, u32) -> rustix::io::Result<()>,
    ) -> Result<Entry> {
        check_name(name)?;
        let parent = self.node_to_change(ctx, parent)?;
        let position = self.position_to_make(&parent, name)?;
        let dir = self.path_fd(&parent)?;
        let new = self.new_node(ctx, &parent, dir.as_fd(), mode)?;
        call(dir.as_fd(), ownership::host_mode(mode & libc::S_IFMT, mode))?;
        let fd = self.with_descriptors(|| sys::open_path(&dir, name))?;
        let st = sys::stat(&fd)?;
        let mount = self.mounts.enter(&st, fd.as_fd())?;
        if kind(&st) != mode & libc::S_IFMT {
            // Somebody on the host has put something else there in the meantime: the guest is to look again.
            return Err(Errno(libc::ESTALE));
        }
        let found = Found {
            fd: fd.as_fd(),
            st,
            mount,
            position,
        };
        let (node, entry) = self
            .finish_new(ctx, &parent, Some(name), found, &new)
            .inspect_err(|_| undo(dir.as_fd(), name, &st))?;
        self.paths.insert(node.id, Arc::new(fd));
        Ok(entry)
    }

    /// What something new in a directory gets.
    pub(super) fn new_node(
        &self,
        ctx: &Context,
        parent: &Node,
        dir: BorrowedFd<'_>,
        mode: u32,
    ) -> Result<New> {
        let parent_st = sys::stat(dir)?;
        let record = self.record(parent, &*self.mount_of(parent)?, &parent_st, dir);
        let mut view = self.view(asker(ctx), &parent_st);
        if view.unowned == Unowned::Host {
            // Of something made on the host, the server's own user is the owner there.
            view.host = (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            );
        }
        Ok(ownership::new_node(
            mode,
            asker(ctx),
            &record,
            parent_st.stx_mode.into(),
            view,
        ))
    }

    /// Gives something that was just made its permissions and owner, and enters it as a node with one lookup.
    pub(super) fn finish_new(
        &self,
        ctx: &Context,
        parent: &Arc<Node>,
        name: Option<&CStr>,
        mut found: Found<BorrowedFd<'_>>,
        new: &New,
    ) -> Result<(Arc<Node>, Entry)> {
        let fd = found.fd;
        let mut record = new.record;
        if kind(&found.st) != libc::S_IFLNK {
            self.fix_mode(fd, &mut found.st, new.mode)?;
            record.set_mode(kind(&found.st), new.mode, found.st.stx_mode.into());
        }
        let identity = identify(&parent.share, &found.mount, &found.st, fd, c"");
        let inode = Inode {
            share: &parent.share,
            identity: &identity,
            mount: &found.mount,
            fd,
            st: &found.st,
        };
        self.put_record(&inode, &record, false)?;
        let node = match name {
            Some(name) => self.know(parent, name, &found)?,
            None => self.enter_node(parent, &found),
        };
        let privileged = record
            .mode
            .is_some_and(|mode| ownership::is_privileged(mode.shown));
        if privileged {
            node.set_privileges(Privileges::Some);
        } else {
            // Nor has it capabilities: the first write need not look.
            node.presume_unprivileged();
        }
        if self.start_watching(&node, fd) {
            found.st = sys::stat(fd)?;
        }
        let last = self.attributes_last(&node, &found.st, name.is_some().then_some(parent));
        let (attr, timeout) = self.shown(ctx, &node, &found.mount, &found.st, &record, last);
        let entry = self.entry_of(node.id, attr, timeout, self.names_last(parent));
        Ok((node, entry))
    }

    /// Gives back the permissions that the process's umask has taken from something new.
    fn fix_mode(&self, fd: BorrowedFd<'_>, st: &mut Statx, mode: u32) -> Result<()> {
        let (wanted, is) = (
            ownership::host_mode(u32::from(st.stx_mode), mode),
            u32::from(st.stx_mode),
        );
        if wanted & !is & 0o777 != 0 {
            self.proc()?.chmod(fd, is & 0o7777 | wanted)?;
            *st = sys::stat(fd)?;
        }
        Ok(())
    }

    pub(super) fn make_link(
        &self,
        ctx: &Context,
        node: NodeId,
        parent: NodeId,
        name: &CStr,
    ) -> Result<Entry> {
        check_name(name)?;
        let parent = self.node_to_change(ctx, parent)?;
        let node = self.node_to_change(ctx, node)?;
        if node.share.number != parent.share.number {
            return Err(Errno(libc::EXDEV));
        }
        self.position_to_make(&parent, name)?;
        let dir = self.path_fd(&parent)?;
        let fd = self.path_fd(&node)?;
        // Neither a name that is another of something hidden.
        if sys::stat_name(&dir, name).is_ok_and(|st| is_hidden_alias(&parent, &dir, &st)) {
            return Err(Errno(libc::EACCES));
        }
        self.proc()?.link(&fd, &dir, name)?;
        self.store.count(&node)?;
        if let Err(error) = self.store.put_place(&node, &parent, name.to_bytes(), false) {
            self.drop_lookups(node.id, 1);
            return Err(error);
        }
        let unpinned = node.state().unpin(self.store.pins());
        drop(unpinned);
        self.entry(ctx, &node, fd)
    }
}

/// Removes something that was just made and could not be finished, as well as that can be done: the guest has been told
/// that there is nothing.
pub(super) fn undo(dir: BorrowedFd<'_>, name: &CStr, made: &Statx) {
    let is_it = |st: Statx| st.stx_ino == made.stx_ino && sys::device(&st) == sys::device(made);
    if sys::stat_name(dir, name).is_ok_and(is_it) {
        let flags = if kind(made) == libc::S_IFDIR {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        // Should this fail, what is left is an ordinary file of the host's user.
        let _ = rustix::fs::unlinkat(dir, name, flags);
    }
}
