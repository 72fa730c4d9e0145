//! How fast the host's time stamp counter runs, which the outer machine cannot find out by itself.

use std::time::{Duration, Instant};

/// How long the counter is watched. Long against the time it takes to read either clock.
const CALIBRATION: Duration = Duration::from_millis(20);

/// The rate in kHz. QEMU shows an emulated machine the host's counter as it is; the timers by which a kernel would measure
/// it run with the host's load, and a kernel that measured wrong runs fast or slow from then on.
#[cfg(target_arch = "x86_64")]
pub(crate) fn tsc_khz() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction, and Linux allows it to every process.
    let read = || unsafe { core::arch::x86_64::_rdtsc() };
    let (began, first) = (Instant::now(), read());
    std::thread::sleep(CALIBRATION);
    let (elapsed, last) = (began.elapsed(), read());
    let microseconds = u64::try_from(elapsed.as_micros()).ok()?;
    last.checked_sub(first)?
        .checked_mul(1000)?
        .checked_div(microseconds)
        // What is no processor's rate is no measurement.
        .filter(|khz| (200_000..20_000_000).contains(khz))
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn tsc_khz() -> Option<u64> {
    None
}
