//! Requests about attributes of nodes and of the file system.

use super::call::Call;
use super::names::PERMISSIONS;
use super::request::position;
use crate::buffers::{ReplyBuffer, RequestBuffer, SplitFront};
use crate::filesystem::{Errno, FileSystem, Result, SetAttr, SetTime};
use crate::wire::{
    AccessIn, AttrOut, FATTR_ATIME, FATTR_ATIME_NOW, FATTR_FH, FATTR_GID, FATTR_KILL_SUIDGID, FATTR_MODE,
    FATTR_MTIME, FATTR_MTIME_NOW, FATTR_SIZE, FATTR_UID, GETATTR_FH, GetattrIn, Kstatfs, SUBMOUNTS,
    SetattrIn, StatxIn, StatxOut,
};

impl<F: FileSystem, Q: RequestBuffer, R: ReplyBuffer + SplitFront> Call<'_, F, Q, R> {
    pub(super) fn getattr(&mut self) -> Result<()> {
        let arg: GetattrIn = self.request.take()?;
        let handle = (arg.getattr_flags & GETATTR_FH != 0).then_some(arg.fh);
        let (attr, timeout) = self
            .fs
            .getattr(&self.request.context, self.request.node, handle)?;
        self.reply.one(&AttrOut::new(&attr, timeout, self.has(SUBMOUNTS)))
    }

    pub(super) fn statx(&mut self) -> Result<()> {
        let arg: StatxIn = self.request.take()?;
        let handle = (arg.getattr_flags & GETATTR_FH != 0).then_some(arg.fh);
        let (attr, timeout) = self
            .fs
            .getattr(&self.request.context, self.request.node, handle)?;
        self.reply.one(&StatxOut::new(&attr, timeout))
    }

    pub(super) fn setattr(&mut self) -> Result<()> {
        let arg: SetattrIn = self.request.take()?;
        let given = |flag: u32| arg.valid & flag != 0;
        let set = SetAttr {
            mode: given(FATTR_MODE).then_some(arg.mode & PERMISSIONS),
            uid: given(FATTR_UID).then_some(arg.uid),
            gid: given(FATTR_GID).then_some(arg.gid),
            size: given(FATTR_SIZE).then(|| position(arg.size)).transpose()?,
            atime: set_time(
                given(FATTR_ATIME),
                given(FATTR_ATIME_NOW),
                arg.atime,
                arg.atimensec,
            )?,
            mtime: set_time(
                given(FATTR_MTIME),
                given(FATTR_MTIME_NOW),
                arg.mtime,
                arg.mtimensec,
            )?,
            kill_suidgid: given(FATTR_KILL_SUIDGID),
        };
        let handle = given(FATTR_FH).then_some(arg.fh);
        let (attr, timeout) = self
            .fs
            .setattr(&self.request.context, self.request.node, handle, &set)?;
        self.reply.one(&AttrOut::new(&attr, timeout, self.has(SUBMOUNTS)))
    }

    pub(super) fn access(&mut self) -> Result<()> {
        let arg: AccessIn = self.request.take()?;
        if arg.mask & !7 != 0 {
            return Err(Errno(libc::EINVAL));
        }
        self.fs
            .access(&self.request.context, self.request.node, arg.mask)?;
        self.reply.empty()
    }

    pub(super) fn statfs(&mut self) -> Result<()> {
        let stat = self.fs.statfs(&self.request.context, self.request.node)?;
        self.reply.one(&Kstatfs::from(&stat))
    }

    pub(super) fn syncfs(&mut self) -> Result<()> {
        self.fs.syncfs(&self.request.context, self.request.node)?;
        self.reply.empty()
    }
}

/// A time to set. The guest's kernel sets the bit for "now" along with the one for the time itself.
fn set_time(given: bool, now: bool, seconds: i64, nanoseconds: u32) -> Result<Option<SetTime>> {
    match (given, now) {
        (_, true) => Ok(Some(SetTime::Now)),
        (true, false) if nanoseconds < 1_000_000_000 => Ok(Some(SetTime::At(seconds, nanoseconds))),
        (true, false) => Err(Errno(libc::EINVAL)),
        (false, false) => Ok(None),
    }
}
