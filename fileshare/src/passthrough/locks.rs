//! POSIX and flock locks, as locks of the host that its other programs see.
//!
//! Each owner in the guest (a process for POSIX locks, an open file for flock) gets an open file description of its own
//! for each file it locks; POSIX locks become open file description locks (F_OFD_SETLK) on it, flock locks flock(2).
//! Locks of two guests' owners then exclude each other as those of two programs do, and closing the description drops
//! them all.
//!
//! Waiting is trying again after 1 ms, 2 ms, … up to 20 ms, with nothing of ours locked, until it works, the request is
//! interrupted or the node is gone; a blocking call would have to be broken off by a signal to a thread that may just have
//! left it.
//! There is no order among those who wait, and no EDEADLK: neither has open file description locks.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::coherence::OwnFd;
use super::sys;
use crate::filesystem::{Errno, Interruption, Lock, NodeId, Result};

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Who holds locks on which node.
#[derive(Debug)]
pub(super) struct Locks {
    holders: Mutex<HashMap<NodeId, Vec<Arc<Holder>>>>,
    /// How many there are, to be read without the lock: closing a file asks, and mostly nobody has locked anything.
    count: AtomicUsize,
    most: usize,
}

/// An owner's locks on one node.
#[derive(Debug)]
struct Holder {
    owner: u64,
    flock: bool,
    /// The guest's process that locked last.
    pid: AtomicU32,
    /// It has ever got a lock.
    locked: AtomicBool,
    /// The node is gone; waiting ends.
    doomed: AtomicBool,
    fd: OwnFd,
}

impl Locks {
    /// For at most `most` holders.
    pub(super) fn new(most: usize) -> Locks {
        Locks {
            holders: Mutex::default(),
            count: AtomicUsize::new(0),
            most,
        }
    }

    fn holders(&self) -> MutexGuard<'_, HashMap<NodeId, Vec<Arc<Holder>>>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, node: NodeId, owner: u64, flock: bool) -> Option<Arc<Holder>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let holders = self.holders();
        holders
            .get(&node)?
            .iter()
            .find(|holder| holder.owner == owner && holder.flock == flock)
            .cloned()
    }

    /// The holder, made with a descriptor of its own from `open` when there is none. ENOLCK when there are too many.
    fn holder(
        &self,
        node: NodeId,
        owner: u64,
        flock: bool,
        open: impl FnOnce() -> Result<OwnFd>,
    ) -> Result<Arc<Holder>> {
        if let Some(holder) = self.find(node, owner, flock) {
            return Ok(holder);
        }
        let fd = open()?;
        let mut holders = self.holders();
        let ours = holders.entry(node).or_default();
        if let Some(other) = ours
            .iter()
            .find(|holder| holder.owner == owner && holder.flock == flock)
        {
            return Ok(other.clone()); // another thread of the owner was quicker
        }
        if self.count.load(Ordering::Relaxed) >= self.most {
            if ours.is_empty() {
                holders.remove(&node);
            }
            return Err(Errno(libc::ENOLCK));
        }
        let (pid, locked, doomed) = (AtomicU32::new(0), AtomicBool::new(false), AtomicBool::new(false));
        let holder = Arc::new(Holder {
            owner,
            flock,
            pid,
            locked,
            doomed,
            fd,
        });
        ours.push(holder.clone());
        self.count.fetch_add(1, Ordering::Release);
        Ok(holder)
    }

    /// Drops all locks of an owner on a node.
    pub(super) fn release(&self, node: NodeId, owner: u64, flock: bool) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        self.remove_where(
            |at, holder| at == node && holder.owner == owner && holder.flock == flock,
            Some(node),
        );
    }

    /// Drops all locks on a node.
    pub(super) fn forget(&self, node: NodeId) {
        if self.count.load(Ordering::Acquire) > 0 {
            self.remove_where(|_, _| true, Some(node));
        }
    }

    /// Drops all locks on the nodes that `doomed` picks, and ends all waiting for them.
    pub(super) fn remove_all(&self, doomed: impl Fn(NodeId) -> bool) {
        let end = |node, holder: &Arc<Holder>| {
            let ends = doomed(node);
            holder.doomed.fetch_or(ends, Ordering::Release);
            ends
        };
        self.remove_where(end, None);
    }

    /// `only` says that nothing else than this node needs looking at.
    fn remove_where(&self, doomed: impl Fn(NodeId, &Arc<Holder>) -> bool, only: Option<NodeId>) {
        let mut dropped = Vec::new();
        let mut holders = self.holders();
        let nodes: Vec<NodeId> = only.map_or_else(|| holders.keys().copied().collect(), |node| vec![node]);
        for node in nodes {
            let Some(ours) = holders.get_mut(&node) else {
                continue;
            };
            dropped.extend(ours.extract_if(.., |holder| doomed(node, holder)));
            if ours.is_empty() {
                holders.remove(&node);
            }
        }
        self.count.fetch_sub(dropped.len(), Ordering::Release);
        // Closing, which is what unlocks, happens after this.
        drop(holders);
    }

    /// Takes or drops a lock; `open` opens the file for a new owner. With `waiting`, waits for it.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn set(
        &self,
        node: NodeId,
        owner: u64,
        lock: &Lock,
        flock: bool,
        waiting: Option<&dyn Interruption>,
        open: impl FnOnce() -> Result<OwnFd>,
    ) -> Result<()> {
        let range = range(lock)?;
        if lock.kind == libc::F_UNLCK {
            let Some(holder) = self.find(node, owner, flock) else {
                return Ok(());
            };
            if flock || range == (0, 0) {
                self.release(node, owner, flock);
                return Ok(());
            }
            return holder.try_set(lock.kind, range);
        }
        let holder = self.holder(node, owner, flock, open)?;
        let mut pause = Duration::from_millis(1);
        let mut result = loop {
            let tried = holder.try_set(lock.kind, range);
            match (tried, waiting) {
                (Err(Errno(libc::EAGAIN | libc::EACCES)), Some(waiting)) => {
                    if waiting.wait(pause) {
                        break Err(Errno(libc::EINTR));
                    }
                    if holder.doomed.load(Ordering::Acquire) {
                        break tried;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                (tried, _) => break tried,
            }
        };
        if waiting.is_some() && holder.doomed.load(Ordering::Acquire) {
            // Not EINTR: the guest's task has no signal. And a lock that came with the end goes with the holder.
            result = Err(Errno(libc::ESTALE));
        }
        if result.is_ok() {
            holder.pid.store(lock.pid, Ordering::Relaxed);
            holder.locked.store(true, Ordering::Release);
        } else {
            // A failed flock is never released by the guest. Nobody else uses the holder when there are two references,
            // the table's and ours; nobody can get one while the table is locked.
            self.remove_where(
                |_, other| {
                    std::ptr::eq(&**other, &*holder)
                        && !other.locked.load(Ordering::Acquire)
                        && Arc::strong_count(other) == 2
                },
                Some(node),
            );
        }
        result
    }

    /// The lock that stands in the way of a POSIX lock.
    pub(super) fn get(
        &self,
        node: NodeId,
        owner: u64,
        lock: &Lock,
        open: impl FnOnce() -> Result<OwnFd>,
    ) -> Result<Lock> {
        let (start, length) = range(lock)?;
        let mut asked = flock64(lock.kind, start, length);
        // Of the owner's own description, or its own locks would stand in its way.
        match self.find(node, owner, false) {
            Some(holder) => sys::ofd_lock(holder.fd.as_fd(), libc::F_OFD_GETLK, &mut asked)?,
            None => sys::ofd_lock(open()?.as_fd(), libc::F_OFD_GETLK, &mut asked)?,
        }
        let kind = i32::from(asked.l_type);
        if kind == libc::F_UNLCK {
            return Ok(Lock { kind, ..*lock });
        }
        let start = asked.l_start.unsigned_abs();
        let end = match asked.l_len {
            0 => i64::MAX as u64,
            length => start + length.unsigned_abs() - 1,
        };
        Ok(Lock {
            start,
            end,
            kind,
            pid: self.culprit(node, owner),
        })
    }

    /// The guest's process that another owner's locks on the node are of; 0 for the host's programs, and when there are
    /// several that it could be.
    fn culprit(&self, node: NodeId, owner: u64) -> u32 {
        let holders = self.holders();
        let others: Vec<&Arc<Holder>> = holders
            .get(&node)
            .into_iter()
            .flatten()
            .filter(|holder| !holder.flock && holder.owner != owner)
            .collect();
        match others[..] {
            [one] => one.pid.load(Ordering::Relaxed),
            _ => 0,
        }
    }

    /// How many holders there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.holders().values().map(Vec::len).sum()
    }
}

impl Holder {
    /// Tries once. EAGAIN when somebody else's lock is in the way.
    fn try_set(&self, kind: i32, (start, length): (i64, i64)) -> Result<()> {
        if self.flock {
            let operation = match kind {
                libc::F_RDLCK => FlockOperation::NonBlockingLockShared,
                libc::F_WRLCK => FlockOperation::NonBlockingLockExclusive,
                _ => FlockOperation::NonBlockingUnlock,
            };
            return Ok(rustix::fs::flock(&self.fd, operation)?);
        }
        Ok(sys::ofd_lock(
            self.fd.as_fd(),
            libc::F_OFD_SETLK,
            &mut flock64(kind, start, length),
        )?)
    }
}

/// Start and length as fcntl(2) wants them; length 0 is "to the end". EINVAL for a range or kind that makes no sense.
fn range(lock: &Lock) -> Result<(i64, i64)> {
    let invalid = Errno(libc::EINVAL);
    if ![libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK].contains(&lock.kind) {
        return Err(invalid);
    }
    let start = i64::try_from(lock.start).map_err(|_| invalid)?;
    let end = i64::try_from(lock.end).map_err(|_| invalid)?;
    match end {
        i64::MAX => Ok((start, 0)),
        end if end < start => Err(invalid),
        end => Ok((start, end - start + 1)),
    }
}

fn flock64(kind: i32, start: i64, length: i64) -> libc::flock64 {
    libc::flock64 {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0, // as F_OFD_* demand
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        let lock = |start, end, kind| Lock {
            start,
            end,
            kind,
            pid: 1,
        };
        assert_eq!(range(&lock(0, i64::MAX as u64, libc::F_WRLCK)), Ok((0, 0)));
        assert_eq!(range(&lock(5, 5, libc::F_RDLCK)), Ok((5, 1)));
        assert_eq!(
            range(&lock(0, i64::MAX as u64 - 1, libc::F_RDLCK)),
            Ok((0, i64::MAX))
        );
        for bad in [
            lock(5, 4, libc::F_WRLCK),
            lock(u64::MAX, u64::MAX, libc::F_WRLCK),
            lock(0, 1 << 63, libc::F_WRLCK),
            lock(0, 1, 77),
        ] {
            assert_eq!(range(&bad), Err(Errno(libc::EINVAL)), "{bad:?}");
        }
    }
}
