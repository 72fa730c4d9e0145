//! The host's end of the balloon.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::stats::BalloonStats;
use crate::virtio::{Interrupt, InterruptCause};

/// Steers a balloon and asks it about the guest's memory: cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct BalloonControl {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Signalled when new statistics have come, or none will.
    answered: Condvar,
    /// Readable when statistics are wanted.
    wanted: EventFd,
    /// Bytes given back to the host since the device was made.
    released: AtomicU64,
    /// How many pages the guest says it has handed over.
    actual: watch::Sender<u32>,
}

#[derive(Default)]
struct State {
    target: u32,
    stats: Option<BalloonStats>,
    /// Counts what has come in, so that a waiter knows old from new.
    answers: u64,
    /// Whether the driver agreed to give statistics.
    can_ask: bool,
    interrupt: Option<Arc<dyn Interrupt>>,
}

impl BalloonControl {
    pub(super) fn new() -> io::Result<BalloonControl> {
        Ok(BalloonControl {
            inner: Arc::new(Inner {
                state: Mutex::default(),
                answered: Condvar::new(),
                wanted: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
                released: AtomicU64::new(0),
                actual: watch::Sender::new(0),
            }),
        })
    }

    /// Sets how many pages of [`super::BALLOON_PAGE`] bytes the guest is to hand over. It does so in its own time, as far as
    /// it can; the target outlives a reset of the guest.
    pub fn set_target_pages(&self, pages: u32) -> io::Result<()> {
        let interrupt = {
            let mut state = self.state();
            if state.target == pages {
                return Ok(());
            }
            state.target = pages;
            state.interrupt.clone()
        };
        interrupt.map_or(Ok(()), |interrupt| interrupt.signal(InterruptCause::Config))
    }

    /// The target last set.
    pub fn target_pages(&self) -> u32 {
        self.state().target
    }

    /// How many pages the guest says it has handed over: any number, whatever the target and the guest's memory.
    pub fn actual_pages(&self) -> u32 {
        *self.inner.actual.borrow()
    }

    /// The same, now and whenever the guest says something else. A guest that says much in a short time is heard with the
    /// last of it.
    pub fn watch_actual(&self) -> watch::Receiver<u32> {
        self.inner.actual.subscribe()
    }

    /// How many bytes have gone back to the host so far, by either way; what the guest has taken again is not subtracted.
    pub fn released_bytes(&self) -> u64 {
        self.inner.released.load(Ordering::Relaxed)
    }

    /// The statistics the guest gave last. None before the first, and after a reset.
    pub fn stats(&self) -> Option<BalloonStats> {
        self.state().stats
    }

    /// Asks the guest for new statistics and waits for them, at most `patience`. None when none came: the guest is busy,
    /// paused, or does not give any.
    pub fn refresh_stats(&self, patience: Duration) -> io::Result<Option<BalloonStats>> {
        let state = self.state();
        if !state.can_ask {
            return Ok(None);
        }
        let before = state.answers;
        self.inner.wanted.write(1)?;
        let (state, _) = self
            .inner
            .answered
            .wait_timeout_while(state, patience, |state| state.can_ask && state.answers == before)
            .unwrap_or_else(PoisonError::into_inner);
        Ok(state.stats.filter(|_| state.answers != before))
    }

    pub(super) fn wanted(&self) -> &EventFd {
        &self.inner.wanted
    }

    pub(super) fn set_actual(&self, pages: u32) {
        self.inner.actual.send_if_modified(|actual| {
            let is_news = *actual != pages;
            *actual = pages;
            is_news
        });
    }

    pub(super) fn answered(&self, stats: BalloonStats) {
        let mut state = self.state();
        state.stats = Some(stats);
        state.answers += 1;
        drop(state);
        self.inner.answered.notify_all();
    }

    pub(super) fn released(&self, bytes: u64) {
        self.inner.released.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn activated(&self, interrupt: Arc<dyn Interrupt>, can_ask: bool) {
        let mut state = self.state();
        state.interrupt = Some(interrupt);
        state.can_ask = can_ask;
    }

    pub(super) fn deactivated(&self) {
        let mut state = self.state();
        state.interrupt = None;
        state.can_ask = false;
        state.stats = None;
        drop(state);
        // A guest that starts anew has nothing in the balloon.
        self.set_actual(0);
        self.inner.answered.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a plain assignment, so a panic elsewhere leaves nothing half done.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
