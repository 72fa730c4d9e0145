//! Requests about extended attributes.

use super::call::Call;
use super::request::{NameBytes, first_string, xattr_name};
use crate::buffers::{ReplyBuffer, RequestBuffer, SplitFront};
use crate::filesystem::{Errno, FileSystem, Result};
use crate::wire::{
    GetxattrIn, GetxattrOut, SETXATTR_EXT, SetxattrIn, SetxattrInShort, XATTR_NAME_MAX, XATTR_SIZE_MAX,
};

/// The flags of setxattr(2).
const FLAGS: u32 = (libc::XATTR_CREATE | libc::XATTR_REPLACE) as u32;

impl<F: FileSystem, Q: RequestBuffer, R: ReplyBuffer + SplitFront> Call<'_, F, Q, R> {
    pub(super) fn setxattr(&mut self) -> Result<()> {
        let arg = if self.has(SETXATTR_EXT) {
            self.request.take::<SetxattrIn>()?.start
        } else {
            self.request.take::<SetxattrInShort>()?
        };
        // Widening: a u32.
        let size = arg.size as usize;
        if size > XATTR_SIZE_MAX || self.request.left() > XATTR_NAME_MAX + 1 + XATTR_SIZE_MAX {
            return Err(Errno(libc::E2BIG));
        }
        if arg.flags & !FLAGS != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let mut bytes = vec![0; self.request.left()];
        self.request.fill(&mut bytes)?;
        let (name, value) = first_string(&bytes)?;
        if value.len() != size {
            return Err(Errno(libc::EINVAL));
        }
        self.fs.setxattr(
            &self.request.context,
            self.request.node,
            xattr_name(name)?,
            value,
            arg.flags,
        )?;
        self.reply.empty()
    }

    pub(super) fn getxattr(&mut self) -> Result<()> {
        let arg: GetxattrIn = self.request.take()?;
        let mut bytes = NameBytes::new();
        let name = self.request.xattr_name(&mut bytes)?;
        let value = self.fs.getxattr(&self.request.context, self.request.node, name)?;
        self.value(&value, arg.size)
    }

    pub(super) fn listxattr(&mut self) -> Result<()> {
        let arg: GetxattrIn = self.request.take()?;
        let names = self.fs.listxattr(&self.request.context, self.request.node)?;
        self.value(&names, arg.size)
    }

    pub(super) fn removexattr(&mut self) -> Result<()> {
        let mut bytes = NameBytes::new();
        let name = self.request.xattr_name(&mut bytes)?;
        self.fs
            .removexattr(&self.request.context, self.request.node, name)?;
        self.reply.empty()
    }

    /// Answers with a value for which the guest has `size` bytes, or with its size when that is 0.
    fn value(&mut self, value: &[u8], size: u32) -> Result<()> {
        match size {
            0 => self.reply.one(&GetxattrOut {
                size: u32::try_from(value.len()).unwrap_or(u32::MAX),
                padding: 0,
            }),
            // Widening: a u32.
            size if value.len() > size as usize => Err(Errno(libc::ERANGE)),
            _ => self.reply.bytes(value),
        }
    }
}
