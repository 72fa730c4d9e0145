//! One request that the file system answers, and who handles which.

use super::interrupts::Interrupts;
use super::reply::Reply;
use super::request::Request;
use crate::buffers::{ReplyBuffer, RequestBuffer, SplitFront};
use crate::filesystem::{Entry, Errno, FileSystem, Opened, Result};
use crate::wire::{EntryOut, Opcode, OpenOut, SUBMOUNTS};

/// A request with its header taken off, and room for its reply. The methods are spread over the files of this folder by
/// what they are about.
pub(super) struct Call<'a, F, Q, R> {
    pub(super) fs: &'a F,
    pub(super) interrupts: &'a Interrupts,
    /// The session's features.
    pub(super) flags: u64,
    pub(super) request: Request<Q>,
    pub(super) reply: &'a mut Reply<R>,
}

impl<F: FileSystem, Q: RequestBuffer, R: ReplyBuffer + SplitFront> Call<'_, F, Q, R> {
    /// Handles the request. After an error nothing has been written.
    pub(super) fn run(&mut self, opcode: Opcode) -> Result<()> {
        match opcode {
            Opcode::Lookup => self.lookup(),
            Opcode::Getattr => self.getattr(),
            Opcode::Setattr => self.setattr(),
            Opcode::Readlink => self.readlink(),
            Opcode::Symlink => self.symlink(),
            Opcode::Mknod => self.mknod(),
            Opcode::Mkdir => self.mkdir(),
            Opcode::Unlink => self.unlink(),
            Opcode::Rmdir => self.rmdir(),
            Opcode::Rename => self.rename(),
            Opcode::Rename2 => self.rename2(),
            Opcode::Link => self.link(),
            Opcode::Open => self.open(),
            Opcode::Create => self.create(),
            Opcode::Tmpfile => self.tmpfile(),
            Opcode::Read => self.read(),
            Opcode::Write => self.write(),
            Opcode::Flush => self.flush(),
            Opcode::Fsync => self.fsync(),
            Opcode::Release => self.release(),
            Opcode::Opendir => self.opendir(),
            Opcode::Readdir => self.readdir(false),
            Opcode::Readdirplus => self.readdir(true),
            Opcode::Fsyncdir => self.fsyncdir(),
            Opcode::Releasedir => self.releasedir(),
            Opcode::Statfs => self.statfs(),
            Opcode::Statx => self.statx(),
            Opcode::Syncfs => self.syncfs(),
            Opcode::Setxattr => self.setxattr(),
            Opcode::Getxattr => self.getxattr(),
            Opcode::Listxattr => self.listxattr(),
            Opcode::Removexattr => self.removexattr(),
            Opcode::Access => self.access(),
            Opcode::Getlk => self.getlk(),
            Opcode::Setlk => self.setlk(false),
            Opcode::Setlkw => self.setlk(true),
            Opcode::Lseek => self.lseek(),
            Opcode::Fallocate => self.fallocate(),
            Opcode::CopyFileRange => self.copy_file_range(),
            // What a file system without ioctls of its own answers; ENOSYS would be passed on to the program.
            Opcode::Ioctl => Err(Errno(libc::ENOTTY)),
            // The guest does without these once it has been told that they do not exist: files are always ready, have no block
            // numbers, and there is no DAX window.
            Opcode::Poll | Opcode::Bmap | Opcode::Setupmapping | Opcode::Removemapping => {
                Err(Errno(libc::ENOSYS))
            }
            // Handled before the call was made.
            Opcode::Init
            | Opcode::Destroy
            | Opcode::Forget
            | Opcode::BatchForget
            | Opcode::Interrupt
            | Opcode::NotifyReply => Err(Errno(libc::ENOSYS)),
        }
    }

    /// Whether this feature is on.
    pub(super) fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Answers with an entry.
    pub(super) fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.reply.one(&EntryOut::new(entry, self.has(SUBMOUNTS)))
    }

    /// Answers with an entry and what opening it gave.
    pub(super) fn entry_opened(&mut self, entry: &Entry, opened: Opened) -> Result<()> {
        self.reply
            .two(&EntryOut::new(entry, self.has(SUBMOUNTS)), &open_out(opened))
    }

    /// Answers with what opening gave.
    pub(super) fn opened(&mut self, opened: Opened) -> Result<()> {
        self.reply.one(&open_out(opened))
    }
}

fn open_out(opened: Opened) -> OpenOut {
    OpenOut {
        fh: opened.handle,
        open_flags: opened.flags,
        backing_id: 0,
    }
}
