//! Requests that wait, and the FUSE_INTERRUPT that ends a wait.
//!
//! Only SETLKW waits, so only it has an entry here; nothing else pays for interruption. An INTERRUPT names its request by
//! `unique` and travels on another queue, so it can be handled before the request it is meant for. It is then kept until
//! that request comes. Most such interrupts are for requests that never wait and are long answered, and nothing tells these
//! apart; numbers are not used twice in a session, so keeping them is harmless and only the last few are kept.
//!
//! A wait may also end because the device stops. Then the guest's task has no signal, and Linux turns EINTR for a lock into
//! ERESTARTSYS, trusting that there is one: the program would see the number 512. So the two are told apart
//! ([`Waiting::error`]).

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::filesystem::{Errno, Interruption};

/// How many interrupts are kept that no request was there for. Each belongs to a task that got a signal during its one
/// request, so this many tasks must be interrupted between an INTERRUPT and its request before one is lost.
const KEPT: usize = 1024;

/// The requests that wait now.
#[derive(Debug, Default)]
pub(super) struct Interrupts(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// A few at most: each holds a thread.
    waiting: Vec<(u64, Arc<Flag>)>,
    /// Interrupts whose request has not come, oldest first.
    early: VecDeque<u64>,
    /// Nothing may wait now.
    none_may_wait: bool,
}

/// Locks whatever a thread that panicked may have left: the data behind these locks is whole at every point.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interrupts {
    /// The request `unique` is about to wait. It counts as waiting until the returned value is dropped.
    pub(super) fn begin(&self, unique: u64) -> Waiting<'_> {
        let flag = Arc::new(Flag::default());
        let mut table = lock(&self.0);
        if let Some(at) = table.early.iter().position(|&early| early == unique) {
            table.early.remove(at);
            flag.set(End::Interrupt);
        }
        if table.none_may_wait {
            flag.set(End::Stop);
        }
        table.waiting.push((unique, Arc::clone(&flag)));
        Waiting {
            interrupts: self,
            flag,
        }
    }

    /// FUSE_INTERRUPT of the request `unique`.
    pub(super) fn interrupt(&self, unique: u64) {
        let mut table = lock(&self.0);
        let mut found = false;
        for (_, flag) in table.waiting.iter().filter(|(waiting, _)| *waiting == unique) {
            flag.set(End::Interrupt);
            found = true;
        }
        if !found {
            if table.early.len() == KEPT {
                table.early.pop_front();
            }
            table.early.push_back(unique);
        }
    }

    /// With true, ends all waits, and those to come at once, until called with false.
    pub(super) fn interrupt_all(&self, on: bool) {
        let mut table = lock(&self.0);
        table.none_may_wait = on;
        for (_, flag) in table.waiting.iter().filter(|_| on) {
            flag.set(End::Stop);
        }
    }

    /// The session ended: ends all waits and forgets what was kept for requests to come.
    pub(super) fn end_session(&self) {
        let mut table = lock(&self.0);
        table.early.clear();
        for (_, flag) in &table.waiting {
            flag.set(End::Stop);
        }
    }
}

/// A request that waits.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    interrupts: &'a Interrupts,
    flag: Arc<Flag>,
}

impl Waiting<'_> {
    /// What the guest hears in place of `error`: where that is EINTR and nobody in the guest has interrupted the request,
    /// ENOLCK, which fcntl(2) and flock(2) have for "a remote locking protocol failed".
    pub(super) fn error(&self, error: Errno) -> Errno {
        match error {
            Errno(libc::EINTR) if *lock(&self.flag.end) != Some(End::Interrupt) => Errno(libc::ENOLCK),
            error => error,
        }
    }
}

impl Interruption for Waiting<'_> {
    fn is_interrupted(&self) -> bool {
        lock(&self.flag.end).is_some()
    }

    fn wait(&self, timeout: Duration) -> bool {
        let end = lock(&self.flag.end);
        let (end, _) = self
            .flag
            .changed
            .wait_timeout_while(end, timeout, |end| end.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        end.is_some()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.interrupts.0)
            .waiting
            .retain(|(_, flag)| !Arc::ptr_eq(flag, &self.flag));
    }
}

/// Why a wait is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The guest's task has got a signal.
    Interrupt,
    /// The device stops, or the session has ended.
    Stop,
}

#[derive(Debug, Default)]
struct Flag {
    end: Mutex<Option<End>>,
    changed: Condvar,
}

impl Flag {
    fn set(&self, why: End) {
        let mut end = lock(&self.end);
        // A signal is there whatever comes before or after it.
        if *end != Some(End::Interrupt) {
            *end = Some(why);
        }
        drop(end);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough that a test which waits for it in vain is seen to hang.
    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn an_interrupt_ends_the_wait_of_its_request_only() {
        let interrupts = Interrupts::default();
        let (one, two) = (interrupts.begin(2), interrupts.begin(4));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| two.wait(LONG));
            interrupts.interrupt(4);
            assert!(waiter.join().unwrap());
        });
        assert!(two.is_interrupted());
        assert!(!one.is_interrupted());
        assert!(!one.wait(Duration::ZERO));
    }

    #[test]
    fn an_interrupt_that_comes_first_is_kept_for_its_request() {
        let interrupts = Interrupts::default();
        interrupts.interrupt(4);
        // As many others as are kept besides.
        for unique in 0..KEPT as u64 - 1 {
            interrupts.interrupt(1000 + unique);
        }
        assert!(!interrupts.begin(6).is_interrupted());
        assert!(interrupts.begin(4).wait(LONG));
        assert!(!interrupts.begin(4).is_interrupted(), "it was for one request");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let interrupts = Interrupts::default();
        for unique in 0..10 * KEPT as u64 {
            interrupts.interrupt(unique);
        }
        assert_eq!(lock(&interrupts.0).early.len(), KEPT);
    }

    #[test]
    fn while_all_are_interrupted_nothing_waits() {
        let interrupts = Interrupts::default();
        let before = interrupts.begin(2);
        interrupts.interrupt_all(true);
        let meanwhile = interrupts.begin(4);
        assert!(before.wait(LONG) && meanwhile.wait(LONG));
        interrupts.interrupt_all(false);
        assert!(!interrupts.begin(6).is_interrupted());
    }

    #[test]
    fn only_a_signal_is_told_as_one() {
        let (interrupted, busy, none) = (Errno(libc::EINTR), Errno(libc::EAGAIN), Errno(libc::ENOLCK));
        let interrupts = Interrupts::default();
        let (one, two) = (interrupts.begin(2), interrupts.begin(4));
        interrupts.interrupt(2);
        interrupts.interrupt_all(true);
        let meanwhile = interrupts.begin(6);
        assert_eq!(one.error(interrupted), interrupted);
        assert_eq!(two.error(interrupted), none);
        assert_eq!(meanwhile.error(interrupted), none);
        assert_eq!(two.error(busy), busy);
        interrupts.interrupt(4);
        assert_eq!(two.error(interrupted), interrupted);
    }

    #[test]
    fn the_end_of_the_session_ends_all_waits_and_forgets() {
        let interrupts = Interrupts::default();
        interrupts.interrupt(8);
        let (one, two) = (interrupts.begin(2), interrupts.begin(4));
        interrupts.end_session();
        assert!(one.wait(LONG) && two.wait(LONG));
        assert!(!interrupts.begin(8).is_interrupted());
        drop((one, two));
        assert!(lock(&interrupts.0).waiting.is_empty());
    }
}
