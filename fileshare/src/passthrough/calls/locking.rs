//! Locks, see [`super::super::locks`].

use super::super::Passthrough;
use crate::filesystem::{Errno, Handle, Interruption, Lock, NodeId, Result};

impl Passthrough {
    /// A lock belongs to the node; the handle only says that the guest has it open.
    fn check_handle(&self, node: NodeId, handle: Handle) -> Result<()> {
        if handle != 0 && self.files.get(node, handle).is_err() {
            self.dirs.get(node, handle)?;
        }
        Ok(())
    }

    pub(super) fn get_lock(&self, node: NodeId, handle: Handle, owner: u64, lock: &Lock) -> Result<Lock> {
        self.check_handle(node, handle)?;
        let node = self.node(node)?;
        self.locks.get(node.id, owner, lock, || self.open_to_lock(&node))
    }

    pub(super) fn set_lock(
        &self,
        node: NodeId,
        handle: Handle,
        owner: u64,
        lock: &Lock,
        flock: bool,
        waiting: Option<&dyn Interruption>,
    ) -> Result<()> {
        self.check_handle(node, handle)?;
        let node = self.node(node)?;
        if node.is_dir() && !flock {
            return Err(Errno(libc::EINVAL));
        }
        self.locks
            .set(node.id, owner, lock, flock, waiting, || self.open_to_lock(&node))
    }
}
