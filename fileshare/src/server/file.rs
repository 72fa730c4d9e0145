//! Requests about open files: opening, data, closing.

use super::bounded::Bounded;
use super::call::Call;
use super::names::PERMISSIONS;
use super::request::{NameBytes, position, range};
use crate::buffers::{ReplyBuffer, RequestBuffer, SplitFront};
use crate::filesystem::{Errno, FileSystem, Result};
use crate::wire::{
    CopyFileRangeIn, CreateIn, FSYNC_FDATASYNC, FallocateIn, FlushIn, FsyncIn, LseekIn, LseekOut, OPEN_FLAGS,
    OPEN_KILL_SUIDGID, OpenIn, RELEASE_FLOCK_UNLOCK, ReadIn, ReleaseIn, WRITE_CACHE, WRITE_KILL_SUIDGID,
    WriteIn, WriteOut,
};

/// The most that one COPY_FILE_RANGE copies: what Linux does in one call (MAX_RW_COUNT), and the reply has 32 bits for it.
const MAX_COPY: u64 = 0x7fff_f000;

impl<F: FileSystem, Q: RequestBuffer, R: ReplyBuffer + SplitFront> Call<'_, F, Q, R> {
    pub(super) fn open(&mut self) -> Result<()> {
        let arg: OpenIn = self.request.take()?;
        // Whether the file may exist has been decided in the guest.
        let flags = open_flags(arg.flags)? & !(libc::O_EXCL as u32);
        let kill_suidgid = arg.open_flags & OPEN_KILL_SUIDGID != 0;
        let opened = self
            .fs
            .open(&self.request.context, self.request.node, flags, kill_suidgid)?;
        self.opened(opened)
    }

    pub(super) fn create(&mut self) -> Result<()> {
        let arg: CreateIn = self.request.take()?;
        let mut bytes = NameBytes::new();
        let name = self.request.name(&mut bytes)?;
        let (entry, opened) = self.fs.create(
            &self.request.context,
            self.request.node,
            name,
            arg.mode & PERMISSIONS,
            open_flags(arg.flags)?,
            self.umask(arg.umask),
            arg.open_flags & OPEN_KILL_SUIDGID != 0,
        )?;
        self.entry_opened(&entry, opened)
    }

    pub(super) fn tmpfile(&mut self) -> Result<()> {
        let arg: CreateIn = self.request.take()?;
        // A name follows, as in CREATE; it is "/" and means nothing.
        let (entry, opened) = self.fs.tmpfile(
            &self.request.context,
            self.request.node,
            arg.mode & PERMISSIONS,
            open_flags(arg.flags)?,
            self.umask(arg.umask),
        )?;
        self.entry_opened(&entry, opened)
    }

    pub(super) fn read(&mut self) -> Result<()> {
        let arg: ReadIn = self.request.take()?;
        let offset = position(arg.offset)?;
        // Widening: a u32.
        let size = arg.size as usize;
        if self.reply.room().is_none_or(|room| size > room) {
            return Err(Errno(libc::EINVAL));
        }
        let (fs, request) = (self.fs, &self.request);
        self.reply.data(|room| {
            let mut into = Bounded {
                buffer: room,
                left: size,
            };
            fs.read(
                &request.context,
                request.node,
                arg.fh,
                offset,
                arg.size,
                &mut into,
            )?;
            Ok(())
        })
    }

    pub(super) fn write(&mut self) -> Result<()> {
        let arg: WriteIn = self.request.take()?;
        let offset = position(arg.offset)?;
        // Widening: a u32.
        let size = arg.size as usize;
        if size > self.request.left() {
            return Err(Errno(libc::EINVAL));
        }
        let (context, node) = (self.request.context, self.request.node);
        let mut from = Bounded {
            buffer: self.request.data(),
            left: size,
        };
        let written = self.fs.write(
            &context,
            node,
            arg.fh,
            offset,
            arg.size,
            &mut from,
            arg.write_flags & WRITE_CACHE != 0,
            arg.write_flags & WRITE_KILL_SUIDGID != 0,
            arg.flags & OPEN_FLAGS,
        )?;
        self.written(written.min(size))
    }

    /// Answers how much has been written.
    fn written(&mut self, count: usize) -> Result<()> {
        self.reply.one(&WriteOut {
            size: u32::try_from(count).unwrap_or(u32::MAX),
            padding: 0,
        })
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        let arg: FlushIn = self.request.take()?;
        self.fs
            .flush(&self.request.context, self.request.node, arg.fh, arg.lock_owner)?;
        self.reply.empty()
    }

    pub(super) fn fsync(&mut self) -> Result<()> {
        let arg: FsyncIn = self.request.take()?;
        let datasync = arg.fsync_flags & FSYNC_FDATASYNC != 0;
        self.fs
            .fsync(&self.request.context, self.request.node, arg.fh, datasync)?;
        self.reply.empty()
    }

    pub(super) fn release(&mut self) -> Result<()> {
        let arg: ReleaseIn = self.request.take()?;
        let flock_owner = (arg.release_flags & RELEASE_FLOCK_UNLOCK != 0).then_some(arg.lock_owner);
        self.fs
            .release(&self.request.context, self.request.node, arg.fh, flock_owner)?;
        self.reply.empty()
    }

    pub(super) fn lseek(&mut self) -> Result<()> {
        let arg: LseekIn = self.request.take()?;
        let wanted = i32::try_from(arg.whence);
        if !matches!(wanted, Ok(libc::SEEK_DATA | libc::SEEK_HOLE)) {
            return Err(Errno(libc::EINVAL));
        }
        let offset = position(arg.offset)?;
        let offset = self.fs.lseek(
            &self.request.context,
            self.request.node,
            arg.fh,
            offset,
            arg.whence,
        )?;
        self.reply.one(&LseekOut { offset })
    }

    pub(super) fn fallocate(&mut self) -> Result<()> {
        let arg: FallocateIn = self.request.take()?;
        if arg.length == 0 {
            return Err(Errno(libc::EINVAL));
        }
        range(arg.offset, arg.length)?;
        self.fs.fallocate(
            &self.request.context,
            self.request.node,
            arg.fh,
            arg.mode,
            arg.offset,
            arg.length,
        )?;
        self.reply.empty()
    }

    pub(super) fn copy_file_range(&mut self) -> Result<()> {
        let arg: CopyFileRangeIn = self.request.take()?;
        if arg.flags != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let from = (self.request.node, arg.fh_in, position(arg.off_in)?);
        let to = (arg.nodeid_out, arg.fh_out, position(arg.off_out)?);
        let length = arg.len.min(MAX_COPY);
        let copied = self
            .fs
            .copy_file_range(&self.request.context, from, to, length, arg.flags)?;
        self.written(copied)
    }
}

/// What of the guest's open flags goes to the file system ([`OPEN_FLAGS`]). The access mode that is none of the three is
/// refused: Linux gives it a meaning of its own.
pub(super) fn open_flags(flags: u32) -> Result<u32> {
    if flags & libc::O_ACCMODE as u32 == libc::O_ACCMODE as u32 {
        return Err(Errno(libc::EINVAL));
    }
    Ok(flags & OPEN_FLAGS)
}
