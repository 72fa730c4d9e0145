//! The guest's clock, which has no hardware of its own to go by: the host tells the time.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// Differences below this are the time the message took to get here, not an error of the clock.
const NOISE: Duration = Duration::from_millis(2);

/// The guest's time, in nanoseconds since the Unix epoch.
pub(crate) fn unix_time_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Time since the kernel started, suspended time included.
pub(crate) fn uptime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Sets the clock to the host's time and returns how far it was off, host minus guest, in nanoseconds.
///
/// It is stepped, not slewed: a guest is off because it was paused or its host slept, by seconds to days, and slewing
/// takes half an hour per second. A difference that is only the message's own travel time is left alone, so that a host
/// that tells the time often never makes it jump back.
pub(crate) fn set(host_ns: u64) -> io::Result<i64> {
    let offset = offset_ns(host_ns, unix_time_ns());
    if is_worth_a_step(offset) {
        let time = Timespec {
            tv_sec: i64::try_from(host_ns / 1_000_000_000).unwrap_or(i64::MAX),
            // Below 10^9, so it fits.
            tv_nsec: (host_ns % 1_000_000_000) as i64,
        };
        clock_settime(ClockId::Realtime, time)?;
    }
    Ok(offset)
}

fn is_worth_a_step(offset_ns: i64) -> bool {
    u128::from(offset_ns.unsigned_abs()) > NOISE.as_nanos()
}

fn offset_ns(host: u64, guest: u64) -> i64 {
    let difference = i128::from(host) - i128::from(guest);
    i64::try_from(difference).unwrap_or(if difference > 0 { i64::MAX } else { i64::MIN })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_signed_and_do_not_overflow() {
        assert_eq!(offset_ns(5, 3), 2);
        assert_eq!(offset_ns(3, 5), -2);
        assert_eq!(offset_ns(u64::MAX, 0), i64::MAX);
        assert_eq!(offset_ns(0, u64::MAX), i64::MIN);
    }

    #[test]
    fn travel_time_is_no_reason_to_step() {
        assert!(!is_worth_a_step(1_000_000));
        assert!(!is_worth_a_step(-1_000_000));
        assert!(is_worth_a_step(i64::MIN));
        assert!(is_worth_a_step(50_000_000));
    }
}
