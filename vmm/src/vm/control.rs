//! The shared heart of a running machine: its state, and the vCPUs that must follow it.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    ExitReason, Transition, VmError, VmEvent, VmState,
    kick::{self, ImmediateExit},
};

/// How long a vCPU may take to stop for a pause. It is in the guest, which it leaves at once, or in a device, whose
/// registers answer at once unless something is wrong.
const PAUSE_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 5 });

/// What a vCPU is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Run the guest.
    Run,
    /// Run the guest, after having been stopped for a time.
    RunAfterPause,
    /// End the thread.
    Leave,
}

/// The machine's state, shared by its handles, its vCPUs and its supervisor.
pub(crate) struct Control {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// False only while running: spares vCPUs the lock on every exit.
    attention: AtomicBool,
    exited: watch::Sender<Option<ExitReason>>,
}

struct Inner {
    state: VmState,
    reason: Option<ExitReason>,
    /// The vCPUs that are there. A vCPU is entered before it first runs, and taken off before its thread and its file
    /// descriptor go.
    vcpus: Vec<Present>,
    /// How many of them wait in [`Control::checkpoint`].
    parked: usize,
    /// How many there will be; until then nobody can say that all are parked.
    expected: usize,
}

struct Present {
    index: u8,
    thread: libc::pthread_t,
    immediate_exit: ImmediateExit,
}

/// A vCPU's entry in [`Control`]. Must be dropped before its `VcpuFd`.
pub(crate) struct Presence<'a> {
    control: &'a Control,
    index: u8,
}

impl Control {
    pub(crate) fn new(cpus: usize) -> Control {
        Control {
            inner: Mutex::new(Inner {
                state: VmState::Starting,
                reason: None,
                vcpus: Vec::with_capacity(cpus),
                parked: 0,
                expected: cpus,
            }),
            changed: Condvar::new(),
            attention: AtomicBool::new(true),
            exited: watch::Sender::new(None),
        }
    }

    pub(crate) fn state(&self) -> VmState {
        self.lock().state
    }

    pub(crate) fn exited(&self) -> watch::Receiver<Option<ExitReason>> {
        self.exited.subscribe()
    }

    /// Enters the calling thread as that of vCPU `index`.
    ///
    /// # Safety
    ///
    /// The presence must be dropped before the vCPU's `VcpuFd`, and before the calling thread ends.
    pub(crate) unsafe fn enter(&self, index: u8, immediate_exit: ImmediateExit) -> Presence<'_> {
        let thread = kick::current_thread();
        self.lock().vcpus.push(Present {
            index,
            thread,
            immediate_exit,
        });
        Presence { control: self, index }
    }

    /// The vCPUs may run.
    pub(crate) fn started(&self) {
        let mut inner = self.lock();
        self.apply(&mut inner, VmEvent::Started);
    }

    /// Stops the vCPUs and waits until they have.
    pub(crate) fn pause(&self) -> Result<(), VmError> {
        const WHAT: &str = "pause";
        let mut inner = self.lock();
        match self.apply(&mut inner, VmEvent::PauseRequested) {
            Transition::Refuse => return Err(refused(WHAT, inner.state)),
            // They may all still stand from the pause before.
            _ => self.settle(&mut inner),
        }
        let limit = Instant::now() + PAUSE_LIMIT;
        while inner.state == VmState::Pausing {
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let running = inner.expected - inner.parked;
                self.apply(&mut inner, VmEvent::ResumeRequested);
                return Err(VmError::PauseTimeout {
                    running,
                    seconds: PAUSE_LIMIT.as_secs(),
                });
            }
            inner = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if inner.state == VmState::Paused {
            Ok(())
        } else {
            Err(refused(WHAT, inner.state))
        }
    }

    /// Lets the vCPUs go on.
    pub(crate) fn resume(&self) -> Result<(), VmError> {
        let mut inner = self.lock();
        match self.apply(&mut inner, VmEvent::ResumeRequested) {
            Transition::Refuse => Err(refused("resume", inner.state)),
            _ => Ok(()),
        }
    }

    /// Begins the end. The first reason counts.
    pub(crate) fn end(&self, reason: ExitReason) {
        let mut inner = self.lock();
        if let Transition::To(_) = self.apply(&mut inner, VmEvent::EndRequested) {
            inner.reason = Some(reason);
        }
    }

    /// Waits until the end has begun.
    pub(crate) fn wait_for_end_request(&self) {
        let mut inner = self.lock();
        while !inner.state.is_ending() {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Everything is gone, but what `stuck` names.
    pub(crate) fn torn_down(&self, stuck: Option<String>) {
        let mut inner = self.lock();
        if inner.state != VmState::Stopping {
            return;
        }
        let reason = inner.reason.take().unwrap_or(ExitReason::Killed);
        let reason = match stuck {
            Some(what) => ExitReason::Stuck {
                what,
                after: Box::new(reason),
            },
            None => reason,
        };
        inner.reason = Some(reason.clone());
        // Under the lock, so that whoever sees the state or comes back from `wait` sees the announcement too.
        self.exited.send_replace(Some(reason));
        self.apply(&mut inner, VmEvent::TornDown);
    }

    /// Waits until the machine has ended.
    pub(crate) fn wait(&self) -> ExitReason {
        let mut inner = self.lock();
        loop {
            if inner.state == VmState::Ended
                && let Some(reason) = &inner.reason
            {
                return reason.clone();
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Where a vCPU learns what to do, before each entry into the guest. Waits out a pause.
    pub(crate) fn checkpoint(&self) -> Next {
        if !self.attention.load(Ordering::SeqCst) {
            return Next::Run;
        }
        let mut inner = self.lock();
        let mut next = Next::Run;
        loop {
            match inner.state {
                VmState::Running => return next,
                VmState::Stopping | VmState::Ended => return Next::Leave,
                VmState::Starting => {
                    inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                }
                VmState::Pausing | VmState::Paused => {
                    inner.parked += 1;
                    self.settle(&mut inner);
                    while matches!(inner.state, VmState::Pausing | VmState::Paused) {
                        inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                    }
                    inner.parked -= 1;
                    next = Next::RunAfterPause;
                }
            }
        }
    }

    /// Makes a pause complete when every vCPU is parked.
    fn settle(&self, inner: &mut Inner) {
        if inner.state == VmState::Pausing && inner.parked == inner.expected {
            self.apply(inner, VmEvent::AllParked);
        }
    }

    fn apply(&self, inner: &mut Inner, event: VmEvent) -> Transition {
        let transition = inner.state.on(event);
        if let Transition::To(state) = transition {
            tracing::debug!(from = ?inner.state, to = ?state, "machine");
            inner.state = state;
            let attention = state != VmState::Running;
            self.attention.store(attention, Ordering::SeqCst);
            if matches!(state, VmState::Pausing | VmState::Stopping) {
                for vcpu in &inner.vcpus {
                    // SAFETY: a vCPU that is present has its file descriptor and its thread: see `enter`. It cannot
                    // take itself off meanwhile, the lock is held.
                    unsafe {
                        vcpu.immediate_exit.set(true);
                        kick::signal_thread(vcpu.thread);
                    }
                }
            }
            self.changed.notify_all();
        }
        transition
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change leaves the state whole, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let what = format!("the thread of vCPU {} panicked", self.index);
            self.control.end(ExitReason::InternalError(what));
        }
        let index = self.index;
        self.control.lock().vcpus.retain(|vcpu| vcpu.index != index);
    }
}

fn refused(what: &'static str, state: VmState) -> VmError {
    VmError::State { what, state }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        thread::{self, JoinHandle},
    };

    use super::*;

    /// A vCPU without a guest: passes checkpoints until it is told to leave.
    fn spawn_vcpu(control: &Arc<Control>) -> JoinHandle<()> {
        let control = Arc::clone(control);
        thread::spawn(move || {
            while control.checkpoint() != Next::Leave {
                thread::yield_now();
            }
        })
    }

    fn running(cpus: usize) -> (Arc<Control>, Vec<JoinHandle<()>>) {
        let control = Arc::new(Control::new(cpus));
        let threads = (0..cpus).map(|_| spawn_vcpu(&control)).collect();
        control.started();
        (control, threads)
    }

    fn finish(control: &Control, threads: Vec<JoinHandle<()>>) {
        for thread in threads {
            thread.join().unwrap();
        }
        control.torn_down(None);
    }

    #[test]
    fn vcpus_wait_for_the_start() {
        let control = Arc::new(Control::new(1));
        assert_eq!(control.state(), VmState::Starting);
        assert!(control.pause().is_err());
        assert!(control.resume().is_err());
        let (passed, passed_rx) = mpsc::channel();
        let vcpu = Arc::clone(&control);
        let thread = thread::spawn(move || passed.send(vcpu.checkpoint()).unwrap());
        assert!(passed_rx.try_recv().is_err());
        control.started();
        assert_eq!(passed_rx.recv().unwrap(), Next::Run);
        thread.join().unwrap();
    }

    #[test]
    fn a_machine_that_fails_to_start_lets_its_vcpus_go() {
        let control = Arc::new(Control::new(2));
        let threads = vec![spawn_vcpu(&control)];
        control.end(ExitReason::InternalError("no thread".into()));
        finish(&control, threads);
        assert_eq!(control.wait(), ExitReason::InternalError("no thread".into()));
    }

    #[test]
    fn pause_and_resume_many_times() {
        let (control, threads) = running(3);
        for _ in 0..200 {
            control.pause().unwrap();
            assert_eq!(control.state(), VmState::Paused);
            control.pause().unwrap();
            control.resume().unwrap();
            control.resume().unwrap();
        }
        control.end(ExitReason::Killed);
        finish(&control, threads);
        assert_eq!(control.wait(), ExitReason::Killed);
    }

    #[test]
    fn a_parked_vcpu_learns_that_it_was_paused() {
        let control = Arc::new(Control::new(1));
        control.started();
        let vcpu = Arc::clone(&control);
        let (report, reports) = mpsc::channel();
        let thread = thread::spawn(move || {
            loop {
                let next = vcpu.checkpoint();
                if next != Next::Run {
                    report.send(next).unwrap();
                }
                if next == Next::Leave {
                    return;
                }
            }
        });
        control.pause().unwrap();
        control.resume().unwrap();
        assert_eq!(reports.recv().unwrap(), Next::RunAfterPause);
        control.end(ExitReason::Killed);
        assert_eq!(reports.recv().unwrap(), Next::Leave);
        thread.join().unwrap();
    }

    #[test]
    fn a_paused_machine_can_be_killed() {
        let (control, threads) = running(2);
        control.pause().unwrap();
        control.end(ExitReason::Killed);
        finish(&control, threads);
        assert_eq!(control.state(), VmState::Ended);
        assert!(matches!(
            control.pause(),
            Err(VmError::State {
                state: VmState::Ended,
                ..
            })
        ));
    }

    #[test]
    fn a_pause_that_never_completes_ends_with_the_machine() {
        let control = Arc::new(Control::new(1));
        control.started();
        let pauser = Arc::clone(&control);
        let thread = thread::spawn(move || pauser.pause());
        while control.state() != VmState::Pausing {
            thread::yield_now();
        }
        control.end(ExitReason::Reset);
        assert!(matches!(
            thread.join().unwrap(),
            Err(VmError::State {
                state: VmState::Stopping,
                ..
            })
        ));
    }

    #[test]
    fn the_first_reason_counts() {
        for _ in 0..100 {
            let (control, threads) = running(2);
            let racers: Vec<_> = [ExitReason::Reset, ExitReason::Killed]
                .into_iter()
                .map(|reason| {
                    let control = Arc::clone(&control);
                    thread::spawn(move || control.end(reason))
                })
                .collect();
            for racer in racers {
                racer.join().unwrap();
            }
            finish(&control, threads);
            let reason = control.wait();
            assert!(matches!(reason, ExitReason::Reset | ExitReason::Killed));
            control.end(ExitReason::InternalError("late".into()));
            assert_eq!(control.wait(), reason);
        }
    }

    #[test]
    fn the_end_is_announced_once_everything_is_gone() {
        let (control, threads) = running(1);
        let exited = control.exited();
        control.end(ExitReason::Reset);
        assert_eq!(*exited.borrow(), None);
        finish(&control, threads);
        assert_eq!(*exited.borrow(), Some(ExitReason::Reset));
        assert_eq!(
            *control.exited().borrow(),
            Some(ExitReason::Reset),
            "latecomers too"
        );
    }

    #[test]
    fn what_is_stuck_is_told() {
        let (control, threads) = running(1);
        control.end(ExitReason::Reset);
        for thread in threads {
            thread.join().unwrap();
        }
        control.torn_down(Some("device 0".into()));
        let reason = control.wait();
        assert_eq!(
            reason.to_string(),
            "the guest reset the machine, but device 0 did not stop"
        );
    }

    #[test]
    fn handles_on_many_threads_do_not_deadlock() {
        let (control, threads) = running(2);
        let users: Vec<_> = (0..4)
            .map(|user| {
                let control = Arc::clone(&control);
                thread::spawn(move || {
                    for _ in 0..200 {
                        // Refusals are part of the game here.
                        let _ = if user % 2 == 0 {
                            control.pause()
                        } else {
                            control.resume()
                        };
                    }
                })
            })
            .collect();
        for user in users {
            user.join().unwrap();
        }
        control.end(ExitReason::Killed);
        finish(&control, threads);
        assert_eq!(control.wait(), ExitReason::Killed);
    }
}
