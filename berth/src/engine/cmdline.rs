//! The kernel's command line (`docs/seams.md`, "Kernel command line").

use std::time::{Duration, Instant};

/// What every guest is started with, whatever the engine. The engine adds its devices.
pub const COMMON: &str = concat!(
    // Until hvc0 is there, and for nothing after: an 8250 that both engines have.
    "earlycon=uart8250,io,0x3f8 console=hvc0",
    " root=/dev/vda rootfstype=erofs ro init=/sbin/init",
    // A panic ends the machine, through the keyboard controller's reset line or a triple fault.
    " panic=-1 reboot=k,t",
    // Both engines offer entropy that is as good as the host's.
    " random.trust_cpu=on",
    // The driver makes one interface by itself, which would be in the guest for nothing.
    " dummy.numdummies=0",
);

/// How long the processor's clock is watched to know its rate. Long against the time it takes to read either clock.
const CALIBRATION: Duration = Duration::from_millis(20);

/// For an emulated guest: it is not to try whether its timer's interrupts arrive. They do, but on a busy host not as many in
/// the time it gives them as it wants to see, and then it panics.
const EMULATED: &str = " no_timer_check";

/// The whole command line. An emulated guest cannot find out how fast its clock runs, because its emulated timers run with
/// the host's load; without a clock it counts timer ticks, of which it misses many. So it is told. Blocks for some
/// milliseconds when `emulated`.
pub fn build(emulated: bool) -> String {
    if !emulated {
        return COMMON.to_owned();
    }
    match tsc_khz() {
        Some(khz) => format!("{COMMON}{EMULATED} tsc_early_khz={khz} tsc=reliable"),
        None => format!("{COMMON}{EMULATED}"),
    }
}

/// The rate of the host's time stamp counter, which QEMU shows to an emulated guest as it is.
#[cfg(target_arch = "x86_64")]
fn tsc_khz() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction, and no system forbids it to a process that does not ask.
    let read = || unsafe { core::arch::x86_64::_rdtsc() };
    let (began, first) = (Instant::now(), read());
    std::thread::sleep(CALIBRATION);
    let (elapsed, last) = (began.elapsed(), read());
    let microseconds = u64::try_from(elapsed.as_micros()).ok()?;
    last.checked_sub(first)?
        .checked_mul(1000)?
        .checked_div(microseconds)
        // What is no processor's rate is no measurement (a counter that was reset, or migrated between hosts).
        .filter(|khz| (200_000..20_000_000).contains(khz))
}

#[cfg(not(target_arch = "x86_64"))]
fn tsc_khz() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_emulated_guest_is_told_its_clocks_rate() {
        assert_eq!(build(false), COMMON);
        assert!(build(true).starts_with(&format!("{COMMON}{EMULATED}")));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_rate_is_measured_alike_twice() {
        let (one, two) = (tsc_khz().unwrap(), tsc_khz().unwrap());
        assert!(one.abs_diff(two) * 100 < one, "{one} and {two}");
    }
}
