//! Requests about locks.

use super::call::Call;
use crate::buffers::{ReplyBuffer, RequestBuffer, SplitFront};
use crate::filesystem::{Errno, FileSystem, Interruption, Lock, Result};
use crate::wire::{FileLock, LK_FLOCK, LkIn, LkOut};

/// The end of every file.
const END: u64 = i64::MAX as u64;

impl<F: FileSystem, Q: RequestBuffer, R: ReplyBuffer + SplitFront> Call<'_, F, Q, R> {
    pub(super) fn getlk(&mut self) -> Result<()> {
        let arg: LkIn = self.request.take()?;
        let lock = lock(&arg.lk)?;
        if lock.kind == libc::F_UNLCK {
            return Err(Errno(libc::EINVAL));
        }
        let found = self
            .fs
            .getlk(&self.request.context, self.request.node, arg.fh, arg.owner, &lock)?;
        self.reply.one(&LkOut {
            lk: FileLock {
                start: found.start,
                end: found.end,
                // F_RDLCK, F_WRLCK and F_UNLCK are 0, 1 and 2.
                kind: found.kind as u32,
                pid: found.pid,
            },
        })
    }

    pub(super) fn setlk(&mut self, wait: bool) -> Result<()> {
        let arg: LkIn = self.request.take()?;
        let lock = lock(&arg.lk)?;
        // Nobody waits for dropping a lock.
        let waiting =
            (wait && lock.kind != libc::F_UNLCK).then(|| self.interrupts.begin(self.request.unique));
        let result = self.fs.setlk(
            &self.request.context,
            self.request.node,
            arg.fh,
            arg.owner,
            &lock,
            arg.lk_flags & LK_FLOCK != 0,
            waiting.as_ref().map(|waiting| waiting as &dyn Interruption),
        );
        match (result, &waiting) {
            (Err(error), Some(waiting)) => Err(waiting.error(error)),
            (result, _) => result.and_then(|()| self.reply.empty()),
        }
    }
}

fn lock(lock: &FileLock) -> Result<Lock> {
    let end = lock.end.min(END);
    match i32::try_from(lock.kind) {
        Ok(kind @ (libc::F_RDLCK | libc::F_WRLCK | libc::F_UNLCK)) if lock.start <= end => Ok(Lock {
            start: lock.start,
            end,
            kind,
            pid: lock.pid,
        }),
        _ => Err(Errno(libc::EINVAL)),
    }
}
