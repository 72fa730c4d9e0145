//! Looking names up, removing and moving them.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, RenameFlags, Statx};

use super::super::Passthrough;
use super::super::attributes::negative_entry;
use super::super::discovery::{is_hidden_alias, kind};
use super::super::exclusions::OFF;
use super::super::node::Node;
use super::super::resolve::check_name;
use super::super::sys;
use crate::filesystem::{Context, Entry, Errno, NodeId, Result};

/// What is at a name before an operation takes it away.
struct Victim {
    st: Statx,
    /// When the guest knows it.
    node: Option<Arc<Node>>,
    /// Of that node: to keep it when it was its last name.
    fd: Option<Arc<OwnedFd>>,
}

impl Passthrough {
    pub(super) fn look_up(&self, ctx: &Context, parent: NodeId, name: &CStr) -> Result<Entry> {
        check_name(name)?;
        if self.is_virtual_root(parent) {
            return self.or_negative(self.look_up_share(ctx, name), self.config.negative_timeout);
        }
        let parent = self.node_for(ctx, parent)?;
        let found = self.look_up_in(ctx, &parent, name);
        let timeout = self.lifetime(self.names_last(&parent), self.config.negative_timeout);
        self.or_negative(found, timeout)
    }

    /// With an answer in place of ENOENT where it may be remembered that there is nothing.
    fn or_negative(&self, found: Result<Entry>, timeout: Duration) -> Result<Entry> {
        match found {
            Err(Errno(libc::ENOENT)) if !timeout.is_zero() => Ok(negative_entry(timeout)),
            found => found,
        }
    }

    fn look_up_share(&self, ctx: &Context, name: &CStr) -> Result<Entry> {
        let listed = self.shares.get(name.to_bytes()).ok_or(Errno(libc::ENOENT))?;
        let root = self.node_for(ctx, listed.root)?;
        let (attr, timeout) = self.attr(ctx, &root, &root.share.root)?;
        Ok(self.entry_of(root.id, attr, timeout, false))
    }

    pub(in super::super) fn look_up_in(
        &self,
        ctx: &Context,
        parent: &Arc<Node>,
        name: &CStr,
    ) -> Result<Entry> {
        if !parent.is_dir() {
            return Err(Errno(libc::ENOTDIR));
        }
        let mut found = self.find(parent, name)?;
        let node = self.know(parent, name, &found)?;
        if self.start_watching(&node, &found.fd) {
            found.st = sys::stat(&found.fd)?;
        }
        let record = self.record(&node, &found.mount, &found.st, &found.fd);
        let last = self.attributes_last(&node, &found.st, Some(parent));
        let (attr, timeout) = self.shown(ctx, &node, &found.mount, &found.st, &record, last);
        self.paths.insert(node.id, Arc::new(found.fd));
        Ok(self.entry_of(node.id, attr, timeout, self.names_last(parent)))
    }

    pub(in super::super) fn look_up_self(&self, ctx: &Context, id: NodeId) -> Result<Entry> {
        if self.is_virtual_root(id) {
            return Ok(self.virtual_root_entry());
        }
        let node = self.node_for(ctx, id)?;
        let fd = self.path_fd(&node)?;
        self.store.count(&node)?;
        self.entry(ctx, &node, fd)
    }

    pub(super) fn look_up_parent(&self, ctx: &Context, id: NodeId) -> Result<Entry> {
        if self.is_virtual_root(id) {
            return Ok(self.virtual_root_entry());
        }
        let node = self.node_for(ctx, id)?;
        if !node.is_dir() {
            return Err(Errno(libc::ENOTDIR));
        }
        let parent = match node.place() {
            Some(place) => place.parent,
            None if node.permanent && self.shares.several => return Ok(self.virtual_root_entry()),
            // The root is its own, as everywhere.
            None if node.permanent => node,
            None => return Err(Errno(libc::ESTALE)),
        };
        let fd = self.path_fd(&parent)?;
        self.store.count(&parent)?;
        self.entry(ctx, &parent, fd)
    }

    pub(super) fn remove(&self, ctx: &Context, parent: NodeId, name: &CStr, dir: bool) -> Result<()> {
        check_name(name)?;
        let parent = self.node_to_change(ctx, parent)?;
        // What is hidden is not there.
        self.position_to_make(&parent, name)
            .map_err(|_| Errno(libc::ENOENT))?;
        let fd = self.path_fd(&parent)?;
        let victim = self.victim(&parent, &fd, name)?;
        if is_hidden_alias(&parent, &fd, &victim.st) {
            return Err(Errno(libc::ENOENT));
        }
        rustix::fs::unlinkat(&fd, name, if dir { AtFlags::REMOVEDIR } else { AtFlags::empty() })?;
        self.removed(&parent, name, victim);
        Ok(())
    }

    fn victim(&self, parent: &Arc<Node>, dir: &OwnedFd, name: &CStr) -> Result<Victim> {
        let st = sys::stat_name(dir, name)?;
        let node = self.known(parent, dir.as_fd(), name, &st);
        // Without a descriptor the node is stale afterwards, which is no reason not to remove the name.
        let fd = node.as_ref().and_then(|node| self.path_fd(node).ok());
        Ok(Victim { st, node, fd })
    }

    /// A name is gone from the host. If it was the node's last, its descriptor is kept until the guest forgets the
    /// node: files stay readable and directories somebody's working directory.
    fn removed(&self, parent: &Arc<Node>, name: &CStr, victim: Victim) {
        let Victim {
            st,
            node: Some(node),
            fd: Some(fd),
        } = victim
        else {
            return;
        };
        let last = kind(&st) == libc::S_IFDIR
            || st.stx_nlink <= 1
            || sys::stat(&fd).is_ok_and(|after| after.stx_nlink == 0);
        if last {
            let mut state = node.state();
            state.removed = true;
            if !state.dead && !state.pin(&fd, self.store.pins()) {
                tracing::debug!(
                    "too many removed nodes are in use: node {} will be stale",
                    node.id
                );
            }
        }
        self.store.take_place(&node, parent, name.to_bytes());
    }

    pub(super) fn rename_node(
        &self,
        ctx: &Context,
        (from, name): (NodeId, &CStr),
        (to, new_name): (NodeId, &CStr),
        flags: u32,
    ) -> Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        let flags = match flags {
            0 => RenameFlags::empty(),
            libc::RENAME_NOREPLACE => RenameFlags::NOREPLACE,
            libc::RENAME_EXCHANGE => RenameFlags::EXCHANGE,
            // RENAME_WHITEOUT leaves a device node behind.
            _ => return Err(Errno(libc::EINVAL)),
        };
        let from = self.node_to_change(ctx, from)?;
        let to = self.node_to_change(ctx, to)?;
        if from.share.number != to.share.number {
            return Err(Errno(libc::EXDEV));
        }
        // Neither what is hidden nor what leads to it is moved, replaced or made by moving.
        if self.position_to_make(&from, name)? != OFF || self.position_to_make(&to, new_name)? != OFF {
            return Err(Errno(libc::EACCES));
        }
        let from_fd = self.path_fd(&from)?;
        let to_fd = self.path_fd(&to)?;
        let st = sys::stat_name(&from_fd, name)?;
        let moved = self.known(&from, from_fd.as_fd(), name, &st);
        let replaced = self.victim(&to, &to_fd, new_name).ok();
        let hidden = |victim: &Victim| is_hidden_alias(&to, &to_fd, &victim.st);
        if is_hidden_alias(&from, &from_fd, &st) || replaced.as_ref().is_some_and(hidden) {
            return Err(Errno(libc::EACCES));
        }
        self.is_what_the_guest_knows(moved.as_ref(), &from, name)?;
        if flags == RenameFlags::EXCHANGE {
            let node = replaced.as_ref().and_then(|victim| victim.node.as_ref());
            self.is_what_the_guest_knows(node, &to, new_name)?;
        }
        let from_place = (&from, name, moved.as_ref());
        let victim = replaced.as_ref().and_then(|victim| victim.node.as_ref());
        let to_place = (&to, new_name, victim.filter(|_| flags == RenameFlags::EXCHANGE));
        self.leaving(&[from_place, to_place], || {
            Ok(rustix::fs::renameat_with(
                &from_fd, name, &to_fd, new_name, flags,
            )?)
        })?;
        let same = |node: &Arc<Node>| moved.as_ref().is_some_and(|moved| Arc::ptr_eq(node, moved));
        match replaced {
            // Two names of one file: the host leaves both. The guest asks for this only when it does not know yet that they are
            // one, and would take the old name for gone: it is to look again.
            Some(Victim { node: Some(node), .. }) if same(&node) => return Err(Errno(libc::ESTALE)),
            Some(Victim { node: Some(node), .. }) if flags == RenameFlags::EXCHANGE => {
                self.moved(&node, (&to, new_name), (&from, name));
            }
            Some(victim) if flags != RenameFlags::EXCHANGE => self.removed(&to, new_name, victim),
            _ => {}
        }
        if let Some(node) = moved {
            self.moved(&node, (&from, name), (&to, new_name));
        }
        Ok(())
    }

    /// Where names last, the guest takes what it knows by a name for what is moved. When the host has just put something else
    /// there, it would know that by the wrong node ever after: ESTALE has it look again.
    fn is_what_the_guest_knows(&self, node: Option<&Arc<Node>>, parent: &Node, name: &CStr) -> Result<()> {
        if self.store.names_are_indexed()
            && !node.is_some_and(|node| node.has_place(parent.id, name.to_bytes()))
        {
            return Err(Errno(libc::ESTALE));
        }
        Ok(())
    }

    fn moved(&self, node: &Arc<Node>, from: (&Arc<Node>, &CStr), to: (&Arc<Node>, &CStr)) {
        // Fails when the directory has been forgotten meanwhile; then the guest looks the name up again.
        let _ = self.store.put_place(node, to.0, to.1.to_bytes(), node.is_dir());
        self.store.take_place(node, from.0, from.1.to_bytes());
    }
}
