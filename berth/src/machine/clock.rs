//! Knowing when the host's clock was set, or the host has slept, so that the guest's can be set too.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// The clocks of host and guest drift apart: an emulated one by much, others by little. This is how soon they are set alike
/// again when they have drifted, and how late when not.
const SOONEST: Duration = Duration::from_secs(30);
const LATEST: Duration = Duration::from_secs(3600);
/// A drift that nobody minds, in nanoseconds.
const TOLERATED_NS: u64 = 50_000_000;

/// When to set the clocks alike after they were set alike `interval` after the time before, and were `offset_ns` apart.
pub(super) fn next_interval(interval: Duration, offset_ns: i64) -> Duration {
    let next = if offset_ns.unsigned_abs() > TOLERATED_NS {
        interval / 4
    } else {
        interval * 2
    };
    next.clamp(SOONEST, LATEST)
}

/// Watches the host's clock.
#[derive(Debug)]
pub(super) struct ClockWatch {
    timer: AsyncFd<OwnedFd>,
    interval: Duration,
}

impl ClockWatch {
    /// Begins to watch.
    pub(super) fn new() -> io::Result<ClockWatch> {
        let timer = timerfd_create(
            TimerfdClockId::Realtime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        arm(&timer, SOONEST)?;
        // SAFETY: an `OwnedFd` stays the same open descriptor until it is dropped.
        let timer = unsafe { AsyncFd::register(timer) }?;
        Ok(ClockWatch {
            timer,
            interval: SOONEST,
        })
    }

    /// Returns when the guest's clock should be set. Nothing is lost when the future is dropped.
    pub(super) async fn changed(&self) -> io::Result<()> {
        let mut ready = self.timer.readable().await?;
        let mut expirations = [MaybeUninit::<u8>::uninit(); 8];
        match rustix::io::read(self.timer.get_ref(), &mut expirations[..]) {
            // It fires when the time has come, and fails when the clock was set under it (timerfd_create(2)).
            Ok(_) | Err(rustix::io::Errno::CANCELED | rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        ready.clear_ready();
        arm(self.timer.get_ref(), self.interval)
    }

    /// The guest's clock was set and had been off by this.
    pub(super) fn was_off(&mut self, offset_ns: i64) {
        self.interval = next_interval(self.interval, offset_ns);
    }
}

fn arm(timer: &OwnedFd, after: Duration) -> io::Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    let value = Timespec {
        tv_sec: now.tv_sec.saturating_add_unsigned(after.as_secs()),
        tv_nsec: now.tv_nsec,
    };
    let once = Itimerspec {
        it_interval: Timespec::default(),
        it_value: value,
    };
    timerfd_settime(
        timer,
        TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET,
        &once,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_drift_are_set_alike_more_often() {
        let second = 1_000_000_000;
        assert_eq!(next_interval(SOONEST, 0), SOONEST * 2);
        assert_eq!(next_interval(LATEST, -1), LATEST);
        assert_eq!(next_interval(LATEST, second), LATEST / 4);
        assert_eq!(next_interval(SOONEST, -second), SOONEST);
        assert_eq!(next_interval(SOONEST, i64::MIN), SOONEST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_nobody_sets_says_nothing() {
        let watch = ClockWatch::new().unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(1), watch.changed()).await;
        assert!(waited.is_err());
    }
}
