//! Extended attributes, under the names of [`super::super::xattr_map`].

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Errno as HostErrno;

use super::super::Passthrough;
use super::super::node::{Node, Privileges};
use super::super::proc_fd::proc_path;
use super::super::xattr_map::{HOST_CAPABILITY, Mapped, list_to_guest, to_host};
use crate::filesystem::{Context, Errno, NodeId, Result};
use crate::wire::XATTR_SIZE_MAX;

impl Passthrough {
    /// A node with a descriptor. Only files and directories have user xattrs.
    fn xattr_target(&self, node: Arc<Node>) -> Result<(Arc<Node>, Arc<OwnedFd>)> {
        let fd = self.path_fd(&node)?;
        Ok((node, fd))
    }

    pub(super) fn get_xattr(&self, node: NodeId, name: &CStr) -> Result<Vec<u8>> {
        let name = match to_host(name) {
            Mapped::Host(name) => name,
            Mapped::Ours => return Err(Errno(libc::ENODATA)),
            Mapped::Unsupported => return Err(Errno(libc::EOPNOTSUPP)),
        };
        if self.is_virtual_root(node) {
            return Err(Errno(libc::ENODATA));
        }
        let (node, fd) = self.xattr_target(self.node(node)?)?;
        if *name == *HOST_CAPABILITY && !node.is_file() {
            return Err(Errno(libc::ENODATA));
        }
        read_all(|buffer| rustix::fs::getxattr(proc_path(&fd), &*name, buffer))
    }

    pub(super) fn list_xattrs(&self, node: NodeId) -> Result<Vec<u8>> {
        if self.is_virtual_root(node) {
            return Ok(Vec::new());
        }
        let (_, fd) = self.xattr_target(self.node(node)?)?;
        match read_all(|buffer| rustix::fs::listxattr(proc_path(&fd), buffer)) {
            Ok(list) => Ok(list_to_guest(&list)),
            Err(Errno(libc::EOPNOTSUPP)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn set_xattr(
        &self,
        ctx: &Context,
        node: NodeId,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> Result<()> {
        let (node, fd) = self.xattr_target(self.node_to_change(ctx, node)?)?;
        let name = match to_host(name) {
            Mapped::Host(name) => name,
            Mapped::Ours => return Err(Errno(libc::EPERM)),
            Mapped::Unsupported => return Err(Errno(libc::EOPNOTSUPP)),
        };
        let Some(flags) = XattrFlags::from_bits(flags) else {
            return Err(Errno(libc::EINVAL));
        };
        if *name == *HOST_CAPABILITY {
            if !node.is_file() {
                return Err(Errno(libc::EINVAL));
            }
            node.set_privileges(Privileges::Some);
        }
        Ok(rustix::fs::setxattr(proc_path(&fd), &*name, value, flags)?)
    }

    pub(super) fn remove_xattr(&self, ctx: &Context, node: NodeId, name: &CStr) -> Result<()> {
        let (_, fd) = self.xattr_target(self.node_to_change(ctx, node)?)?;
        match to_host(name) {
            Mapped::Host(name) => Ok(rustix::fs::removexattr(proc_path(&fd), &*name)?),
            Mapped::Ours => Err(Errno(libc::ENODATA)),
            Mapped::Unsupported => Err(Errno(libc::EOPNOTSUPP)),
        }
    }
}

/// Reads something whose length is not known before.
fn read_all(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> Result<Vec<u8>> {
    // Nearly everything fits at once; what does not is read with room for the longest there can be.
    for room in [256, XATTR_SIZE_MAX] {
        let mut buffer = vec![0; room];
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(HostErrno::RANGE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno(libc::E2BIG))
}
