//! Finds out whether this host's KVM can run a guest, by running one.
//!
//! That `/dev/kvm` opens says little: some hosts' KVM runs a guest's user code natively and emulates its kernel code one
//! instruction at a time, about two million a second, without instructions that kernels need. A kernel on such a host
//! does not boot in any time that people wait. So the probe runs a guest of a few dozen bytes in 64-bit ring 0
//! ([`guest`]), times a counted loop, and tries those instructions ([`report`] has the verdicts).

mod guest;
mod report;
mod run;

use std::{
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

pub use report::{ProbeReport, StepResult, Verdict};

use crate::vm::{ExitReason, VmError, build::open_kvm, control::Control, kick};

/// How long KVM may take to make a machine. It takes milliseconds, more on a busy host that is itself emulated.
const SETUP_LIMIT: Duration = Duration::from_secs(2);
/// How long each step of the guest may take. The longest, on an emulating host, takes some 100 ms.
const STEP_LIMIT: Duration = Duration::from_millis(400);
/// How long an interrupted guest may take to stop.
const STOP_LIMIT: Duration = Duration::from_millis(200);

/// Loop turns per second below which ring 0 is emulated.
///
/// Known hosts that emulate do about 1 million turns (of two instructions) a second. Processors do more than 1000
/// million, and nested virtualization under a binary translator, the slowest thing that still boots a kernel, some 50 to
/// 500 million, less when the host is busy. The threshold is a factor of ten above the former, and a factor of five or
/// more below the latter. What is just below it is measured several times over, for a busy host's best moment to count.
pub const EMULATION_THRESHOLD: u64 = 10_000_000;

/// Probes the KVM at `kvm_path`. Never panics. Takes milliseconds where KVM works, well under a second where it emulates,
/// and ends even where it hangs.
pub fn probe(kvm_path: &Path) -> ProbeReport {
    let begin = Instant::now();
    let mut report = ProbeReport::new(kvm_path);
    report.verdict = find_verdict(kvm_path, &mut report);
    report.elapsed_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
    report
}

fn find_verdict(kvm_path: &Path, report: &mut ProbeReport) -> Verdict {
    let kvm = match open_kvm(kvm_path) {
        Ok(kvm) => kvm,
        Err(error) => return unusable(kvm_path, &error, report),
    };
    report.api_version = Some(kvm.get_api_version());
    if let Err(error) = kick::install_signal() {
        return broken(&VmError::Signal(error));
    }

    // On a thread of its own, which can be interrupted, and left behind if even that does not work.
    let control = Arc::new(Control::new(1));
    control.started();
    let (send, findings) = mpsc::channel();
    let guest_control = Arc::clone(&control);
    let thread = std::thread::Builder::new()
        .name("vmm-probe".into())
        .stack_size(256 * 1024)
        .spawn(move || {
            let outcome = run::measure(&kvm, &guest_control, &send);
            // Nobody listens any more when this took too long.
            let _ = send.send(run::Finding::Done(outcome));
        });
    let thread = match thread {
        Ok(thread) => thread,
        Err(source) => {
            let name = "vmm-probe".into();
            return broken(&VmError::Thread { name, source });
        }
    };

    let mut limit = SETUP_LIMIT;
    let mut interrupted = false;
    loop {
        match findings.recv_timeout(limit) {
            Ok(run::Finding::Ready) => limit = STEP_LIMIT,
            Ok(run::Finding::LoopRate(rate)) => {
                let best = report.loop_turns_per_second.unwrap_or(0).max(rate);
                report.loop_turns_per_second = Some(best);
            }
            Ok(run::Finding::Cmpxchg16b(result)) => report.cmpxchg16b = result,
            Ok(run::Finding::Xsave(result)) => report.xsave = result,
            Ok(run::Finding::Xsaves(result)) => report.xsaves = result,
            Ok(run::Finding::Done(outcome)) => {
                // It has said that it is done.
                let _ = thread.join();
                return match outcome {
                    Ok(()) => verdict(report),
                    Err(run::RunError::Interrupted) => verdict_of_slow(report),
                    Err(error) => broken(&error),
                };
            }
            Err(mpsc::RecvTimeoutError::Timeout) if !interrupted => {
                interrupted = true;
                control.end(ExitReason::Killed);
                limit = STOP_LIMIT;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Verdict::Broken {
                    what: "a guest in a short loop does not end and cannot be interrupted".into(),
                };
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Verdict::Broken {
                    what: "the probe itself failed; this is a bug".into(),
                };
            }
        }
    }
}

fn verdict(report: &ProbeReport) -> Verdict {
    let rate = report.loop_turns_per_second.unwrap_or(0);
    if rate < EMULATION_THRESHOLD {
        return Verdict::Emulated {
            loop_turns_per_second: rate,
            threshold: EMULATION_THRESHOLD,
        };
    }
    for (name, result) in [
        ("cmpxchg16b", &report.cmpxchg16b),
        ("xsave", &report.xsave),
        ("xsaves", &report.xsaves),
    ] {
        if let StepResult::Failed(how) = result {
            return Verdict::Broken {
                what: format!("a guest's {name} instruction fails: {how}"),
            };
        }
    }
    Verdict::Usable
}

/// The guest did not end in time. Its loop may not even have come round once.
fn verdict_of_slow(report: &ProbeReport) -> Verdict {
    match report.loop_turns_per_second {
        Some(rate) if rate >= EMULATION_THRESHOLD => Verdict::Broken {
            what: "a guest that tries the instructions kernels need does not end".into(),
        },
        rate => Verdict::Emulated {
            loop_turns_per_second: rate.unwrap_or(0),
            threshold: EMULATION_THRESHOLD,
        },
    }
}

fn unusable(kvm_path: &Path, error: &VmError, report: &mut ProbeReport) -> Verdict {
    match error {
        VmError::KvmMissing { .. } => Verdict::Missing,
        VmError::KvmDenied { .. } => report::no_permission(kvm_path),
        VmError::KvmVersion { version, .. } => {
            report.api_version = Some(*version);
            broken(error)
        }
        _ => broken(error),
    }
}

/// The whole chain of an error, in one line.
fn broken(error: &dyn std::error::Error) -> Verdict {
    let mut what = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        what.push_str(": ");
        what.push_str(&error.to_string());
        source = error.source();
    }
    Verdict::Broken { what }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rate: u64) -> ProbeReport {
        ProbeReport {
            loop_turns_per_second: Some(rate),
            cmpxchg16b: StepResult::Works,
            xsave: StepResult::Works,
            xsaves: StepResult::NotOffered,
            ..ProbeReport::new(Path::new("/dev/kvm"))
        }
    }

    #[test]
    fn no_device_is_missing() {
        let report = probe(Path::new("/nonexistent/kvm"));
        assert_eq!(report.verdict, Verdict::Missing);
        assert_eq!(report.api_version, None);
    }

    #[test]
    fn something_else_is_broken() {
        let report = probe(Path::new("/dev/null"));
        assert!(matches!(report.verdict, Verdict::Broken { .. }), "{report}");
    }

    #[test]
    fn this_host_gets_a_verdict_that_fits_its_figures() {
        let report = probe(Path::new("/dev/kvm"));
        match &report.verdict {
            Verdict::Usable => assert!(report.loop_turns_per_second.unwrap() >= EMULATION_THRESHOLD),
            Verdict::Emulated {
                loop_turns_per_second,
                threshold,
            } => assert!(loop_turns_per_second < threshold),
            Verdict::Missing | Verdict::NoPermission { .. } => assert_eq!(report.api_version, None),
            Verdict::Broken { what } => assert!(!what.is_empty()),
        }
    }

    #[test]
    fn the_verdict_follows_the_figures() {
        assert_eq!(verdict(&report(1_000_000_000)), Verdict::Usable);
        assert_eq!(verdict(&report(50_000_000)), Verdict::Usable);
        assert_eq!(
            verdict(&report(1_000_000)),
            Verdict::Emulated {
                loop_turns_per_second: 1_000_000,
                threshold: EMULATION_THRESHOLD
            }
        );
        let broken = ProbeReport {
            cmpxchg16b: StepResult::Failed("shutdown".into()),
            ..report(1_000_000_000)
        };
        assert!(matches!(verdict(&broken), Verdict::Broken { what } if what.contains("cmpxchg16b")));
    }

    #[test]
    fn a_guest_that_does_not_end_is_slow_or_broken() {
        assert!(matches!(
            verdict_of_slow(&ProbeReport::new(Path::new("/dev/kvm"))),
            Verdict::Emulated {
                loop_turns_per_second: 0,
                ..
            }
        ));
        assert!(matches!(
            verdict_of_slow(&report(1_000_000_000)),
            Verdict::Broken { .. }
        ));
    }
}
