//! The guest's clock is right before a Docker call is answered, also when the host has just woken up or the machine has just
//! been resumed.
//!
//! A host that sleeps stops its guest with everything else, and the guest's clock with it. That it slept is in the difference
//! of two of its clocks: CLOCK_BOOTTIME counts sleep and CLOCK_MONOTONIC does not (clock_gettime(2)). Looking costs next to
//! nothing, so it is looked at with every call; only after a sleep or a pause does a call wait for the guest's clock to be set.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Mutex, watch};

use super::control::Control;
use super::state::State as Life;
use crate::docker::barrier::Barrier;
use crate::guest::GuestDial;

/// Two looks at the clocks are some moments apart; sleep is longer.
const NO_SLEEP_NS: i64 = 100_000_000;
/// How long the guest may take to set its clock.
const TIMEOUT: Duration = Duration::from_secs(10);
/// No amount of sleep: the clock is to be set before the next call.
const SPOILT: i64 = i64::MIN;

/// Sees to the guest's clock.
#[derive(Clone)]
pub(super) struct GuestClock(Arc<State>);

struct State {
    control: Control,
    /// Where the machine is in its life.
    states: watch::Receiver<Life>,
    /// How long the host had slept when the clock was last right, in nanoseconds.
    slept: AtomicI64,
    /// Held while the clock is set: once is enough for all who wait.
    setting: Mutex<()>,
    /// How long the host has slept.
    host: fn() -> i64,
}

impl GuestClock {
    /// The clock of a guest that has just been told the time.
    pub(super) fn new(dial: GuestDial, states: watch::Receiver<Life>) -> GuestClock {
        GuestClock::with_host(dial, states, slept)
    }

    fn with_host(dial: GuestDial, states: watch::Receiver<Life>, host: fn() -> i64) -> GuestClock {
        GuestClock(Arc::new(State {
            control: Control::new(dial),
            states,
            slept: AtomicI64::new(host()),
            setting: Mutex::new(()),
            host,
        }))
    }

    /// The guest is made to stand still: its clock is wrong when it goes on, and calls wait for both.
    pub(super) fn spoil(&self) {
        self.0.slept.store(SPOILT, Ordering::Release);
    }
}

impl State {
    fn is_right(&self, slept: i64) -> bool {
        let then = self.slept.load(Ordering::Acquire);
        then != SPOILT && slept.abs_diff(then) < NO_SLEEP_NS.unsigned_abs()
    }
}

impl Barrier for GuestClock {
    fn reach(&self) -> BoxFuture<'static, Result<(), anyhow::Error>> {
        let state = Arc::clone(&self.0);
        if state.is_right((state.host)()) {
            return futures_util::future::ready(Ok(())).boxed();
        }
        async move {
            // A guest that stands still can neither be told the time nor answer. That the sender is gone is not for this to
            // deal with.
            let _ = state.states.clone().wait_for(|life| *life != Life::Paused).await;
            let _setting = state.setting.lock().await;
            let slept = (state.host)();
            // Another call may have waited for it meanwhile.
            if state.is_right(slept) {
                return Ok(());
            }
            let offset_ns = state.control.set_clock(TIMEOUT).await?;
            state.slept.store(slept, Ordering::Release);
            tracing::info!(
                offset_ns,
                "the guest's clock was set after it, or the host, stood still"
            );
            Ok(())
        }
        .boxed()
    }
}

/// How long the host has slept since it was booted, in nanoseconds.
fn slept() -> i64 {
    let nanoseconds = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec
            .saturating_mul(1_000_000_000)
            .saturating_add(time.tv_nsec)
    };
    nanoseconds(ClockId::Boottime) - nanoseconds(ClockId::Monotonic)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::sync::atomic::AtomicU32;

    use protocol::control::{Reply, Request};
    use protocol::frame;
    use tokio::net::UnixStream;

    use super::*;

    /// What the host of the tests has slept.
    static SLEPT: AtomicI64 = AtomicI64::new(5);
    /// How often the guest's clock was set.
    static SET: AtomicU32 = AtomicU32::new(0);

    fn guest() -> GuestDial {
        GuestDial::new(|_| {
            let (host, guest) = StdUnixStream::pair().unwrap();
            guest.set_nonblocking(true).unwrap();
            let mut guest = UnixStream::from_std(guest).unwrap();
            tokio::spawn(async move {
                while let Ok(request) = frame::read_async::<Request>(&mut guest).await {
                    assert!(matches!(request, Request::SetClock { .. }));
                    SET.fetch_add(1, Ordering::SeqCst);
                    let reply = Reply::Clock { offset_ns: 1 };
                    frame::write_async(&mut guest, &reply).await.unwrap();
                }
            });
            async move { Ok(host) }.boxed()
        })
    }

    #[tokio::test]
    async fn it_is_set_once_after_a_sleep_or_a_pause_and_not_otherwise() {
        let (life, states) = watch::channel(Life::Running);
        let clock = GuestClock::with_host(guest(), states, || SLEPT.load(Ordering::SeqCst));
        let reach = || {
            let all: Vec<_> = (0..3).map(|_| clock.reach()).collect();
            async {
                for reached in all {
                    reached.await.unwrap();
                }
                SET.load(Ordering::SeqCst)
            }
        };
        assert_eq!(reach().await, 0);
        SLEPT.store(30_000_000_000, Ordering::SeqCst);
        assert_eq!(reach().await, 1);
        assert_eq!(reach().await, 1);
        clock.spoil();
        life.send_replace(Life::Paused);
        let waiting = tokio::spawn(clock.reach());
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert_eq!(SET.load(Ordering::SeqCst), 1);
        life.send_replace(Life::Running);
        waiting.await.unwrap().unwrap();
        assert_eq!(reach().await, 2);
    }

    #[tokio::test]
    async fn a_guest_that_does_not_answer_is_asked_again() {
        let dial = GuestDial::new(|port| async move { Err(crate::guest::DialError::Refused(port)) }.boxed());
        let clock = GuestClock::with_host(dial, watch::channel(Life::Running).1, || 0);
        clock.spoil();
        assert!(clock.reach().await.is_err());
        assert!(clock.reach().await.is_err());
    }

    #[test]
    fn this_host_sleeps_in_no_test() {
        assert!(slept().abs_diff(slept()) < NO_SLEEP_NS.unsigned_abs());
    }
}
