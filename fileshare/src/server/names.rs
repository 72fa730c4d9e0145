//! Requests about names: finding, making, removing, moving.

use super::call::Call;
use super::request::{NameBytes, entry_name, first_string, whole_string};
use crate::buffers::{ReplyBuffer, RequestBuffer, SplitFront};
use crate::filesystem::{Errno, FileSystem, Result};
use crate::wire::{
    DONT_MASK, EXPORT_SUPPORT, LinkIn, MkdirIn, MknodIn, NAME_MAX, Rename2In, RenameIn, TARGET_MAX,
};

/// The bits of a mode that are not the type.
pub(super) const PERMISSIONS: u32 = 0o7777;

/// The flags of renameat2(2).
const RENAME_FLAGS: u32 = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;

impl<F: FileSystem, Q: RequestBuffer, R: ReplyBuffer + SplitFront> Call<'_, F, Q, R> {
    pub(super) fn lookup(&mut self) -> Result<()> {
        let mut bytes = NameBytes::new();
        let raw = self.request.rest(bytes.for_one(), libc::ENAMETOOLONG)?;
        let name = whole_string(raw)?;
        let (context, node) = (&self.request.context, self.request.node);
        let exported = self.flags & EXPORT_SUPPORT != 0;
        let entry = match name.to_bytes() {
            b"." if exported => self.fs.lookup_self(context, node),
            b".." if exported => self.fs.lookup_parent(context, node),
            _ => self.fs.lookup(context, node, entry_name(name)?),
        }?;
        self.entry(&entry)
    }

    pub(super) fn symlink(&mut self) -> Result<()> {
        // A name, a target, and the NUL of each.
        let mut bytes = [0; NAME_MAX + TARGET_MAX + 2];
        let rest = self.request.rest(&mut bytes, libc::ENAMETOOLONG)?;
        let (name, rest) = first_string(rest)?;
        let (name, target) = (entry_name(name)?, whole_string(rest)?);
        match target.count_bytes() {
            0 => return Err(Errno(libc::ENOENT)),
            1..=TARGET_MAX => {}
            _ => return Err(Errno(libc::ENAMETOOLONG)),
        }
        let entry = self
            .fs
            .symlink(&self.request.context, self.request.node, name, target)?;
        self.entry(&entry)
    }

    pub(super) fn mknod(&mut self) -> Result<()> {
        let arg: MknodIn = self.request.take()?;
        let mut bytes = NameBytes::new();
        let name = self.request.name(&mut bytes)?;
        let kind = match arg.mode & libc::S_IFMT {
            0 => libc::S_IFREG,
            kind @ (libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK) => kind,
            _ => return Err(Errno(libc::EINVAL)),
        };
        let mode = kind | arg.mode & PERMISSIONS;
        let umask = self.umask(arg.umask);
        let entry = self.fs.mknod(
            &self.request.context,
            self.request.node,
            name,
            mode,
            arg.rdev,
            umask,
        )?;
        self.entry(&entry)
    }

    pub(super) fn mkdir(&mut self) -> Result<()> {
        let arg: MkdirIn = self.request.take()?;
        let mut bytes = NameBytes::new();
        let name = self.request.name(&mut bytes)?;
        let umask = self.umask(arg.umask);
        let entry = self.fs.mkdir(
            &self.request.context,
            self.request.node,
            name,
            arg.mode & PERMISSIONS,
            umask,
        )?;
        self.entry(&entry)
    }

    pub(super) fn unlink(&mut self) -> Result<()> {
        let mut bytes = NameBytes::new();
        let name = self.request.name(&mut bytes)?;
        self.fs.unlink(&self.request.context, self.request.node, name)?;
        self.reply.empty()
    }

    pub(super) fn rmdir(&mut self) -> Result<()> {
        let mut bytes = NameBytes::new();
        let name = self.request.name(&mut bytes)?;
        self.fs.rmdir(&self.request.context, self.request.node, name)?;
        self.reply.empty()
    }

    pub(super) fn rename(&mut self) -> Result<()> {
        let arg: RenameIn = self.request.take()?;
        self.rename_with(arg.newdir, 0)
    }

    pub(super) fn rename2(&mut self) -> Result<()> {
        let arg: Rename2In = self.request.take()?;
        let exchange = arg.flags & libc::RENAME_EXCHANGE != 0;
        if arg.flags & !RENAME_FLAGS != 0 || exchange && arg.flags != libc::RENAME_EXCHANGE {
            return Err(Errno(libc::EINVAL));
        }
        self.rename_with(arg.newdir, arg.flags)
    }

    fn rename_with(&mut self, new_parent: u64, flags: u32) -> Result<()> {
        let mut bytes = NameBytes::new();
        let (name, new_name) = self.request.two_names(&mut bytes)?;
        let parent = self.request.node;
        self.fs
            .rename(&self.request.context, parent, name, new_parent, new_name, flags)?;
        self.reply.empty()
    }

    pub(super) fn link(&mut self) -> Result<()> {
        let arg: LinkIn = self.request.take()?;
        let mut bytes = NameBytes::new();
        let name = self.request.name(&mut bytes)?;
        let entry = self
            .fs
            .link(&self.request.context, arg.oldnodeid, self.request.node, name)?;
        self.entry(&entry)
    }

    pub(super) fn readlink(&mut self) -> Result<()> {
        let target = self.fs.readlink(&self.request.context, self.request.node)?;
        if self.reply.room().is_some_and(|room| target.len() > room) {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        self.reply.bytes(&target)
    }

    /// The mask that the file system is to apply: none when the guest has applied it.
    pub(super) fn umask(&self, umask: u32) -> u32 {
        if self.has(DONT_MASK) { umask & 0o777 } else { 0 }
    }
}
