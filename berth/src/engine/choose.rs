//! Which engine runs a machine: KVM where it works, else QEMU, and the reason in words.

use crate::config::EngineChoice;
use crate::engine::{EngineError, EngineKind};

/// What was found out about KVM on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFinding {
    /// Whether a machine can run on it.
    pub usable: bool,
    /// What was found, in a sentence without a full stop.
    pub summary: String,
    /// What the user could do about it.
    pub fix: Option<String>,
}

/// What was found out about QEMU on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QemuFinding {
    /// It is there: its path and version in words.
    Found(String),
    /// It is not, or cannot be used.
    Unusable {
        /// What is wrong.
        what: String,
        /// What to do about it.
        fix: String,
    },
}

/// A choice and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The engine.
    pub engine: EngineKind,
    /// Why this one, for `berth status`.
    pub reason: String,
}

/// Decides.
pub fn decide(asked: EngineChoice, kvm: &KvmFinding, qemu: &QemuFinding) -> Result<Decision, EngineError> {
    let kvm_fix = || {
        kvm.fix
            .clone()
            .unwrap_or_else(|| "see what `berth doctor` says of KVM".into())
    };
    match (asked, kvm.usable, qemu) {
        (EngineChoice::Kvm, true, _) => Ok(Decision {
            engine: EngineKind::Kvm,
            reason: format!("asked for; {}", kvm.summary),
        }),
        (EngineChoice::Kvm, false, _) => Err(EngineError::Unavailable {
            what: format!(
                "the kvm engine was asked for and cannot be used here: {}",
                kvm.summary
            ),
            fix: format!(
                "use --engine qemu (or auto), which works without KVM, or else: {}",
                kvm_fix()
            ),
        }),
        (EngineChoice::Qemu, true, QemuFinding::Found(found)) => Ok(Decision {
            engine: EngineKind::Qemu,
            reason: format!("asked for; {found}; KVM works here, so QEMU uses it and emulates nothing"),
        }),
        (EngineChoice::Qemu, false, QemuFinding::Found(found)) => Ok(Decision {
            engine: EngineKind::Qemu,
            reason: format!(
                "asked for; {found}; the machine is emulated, which is slower: {}",
                kvm.summary
            ),
        }),
        (EngineChoice::Qemu, _, QemuFinding::Unusable { what, fix }) => Err(EngineError::Unavailable {
            what: format!("the qemu engine was asked for and cannot be used here: {what}"),
            fix: fix.clone(),
        }),
        (EngineChoice::Auto, true, _) => Ok(Decision {
            engine: EngineKind::Kvm,
            reason: kvm.summary.clone(),
        }),
        (EngineChoice::Auto, false, QemuFinding::Found(found)) => Ok(Decision {
            engine: EngineKind::Qemu,
            reason: format!(
                "{}, so the machine is emulated, which is slower; {found}",
                kvm.summary
            ),
        }),
        (EngineChoice::Auto, false, QemuFinding::Unusable { what, fix }) => Err(EngineError::Unavailable {
            what: format!("neither engine can be used here: {}, and {what}", kvm.summary),
            fix: format!("{fix}, or else: {}", kvm_fix()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kvm(usable: bool) -> KvmFinding {
        KvmFinding {
            usable,
            summary: if usable {
                "KVM works"
            } else {
                "KVM emulates ring 0"
            }
            .into(),
            fix: (!usable).then(|| "enable nested virtualization".into()),
        }
    }

    fn found() -> QemuFinding {
        QemuFinding::Found("QEMU 10.0.2".into())
    }

    fn missing() -> QemuFinding {
        QemuFinding::Unusable {
            what: "there is no QEMU".into(),
            fix: "install qemu-system-x86".into(),
        }
    }

    #[test]
    fn auto_takes_kvm_where_it_works_whatever_qemu_is() {
        for qemu in [found(), missing()] {
            let decision = decide(EngineChoice::Auto, &kvm(true), &qemu).unwrap();
            assert_eq!(
                (decision.engine, decision.reason.as_str()),
                (EngineKind::Kvm, "KVM works")
            );
        }
    }

    #[test]
    fn auto_takes_qemu_where_kvm_does_not_work_and_says_that_it_is_slower() {
        let decision = decide(EngineChoice::Auto, &kvm(false), &found()).unwrap();
        assert_eq!(decision.engine, EngineKind::Qemu);
        assert_eq!(
            decision.reason,
            "KVM emulates ring 0, so the machine is emulated, which is slower; QEMU 10.0.2"
        );
    }

    #[test]
    fn with_neither_both_fixes_are_named() {
        let error = decide(EngineChoice::Auto, &kvm(false), &missing())
            .unwrap_err()
            .to_string();
        for part in [
            "KVM emulates ring 0",
            "there is no QEMU",
            "install qemu-system-x86",
            "nested virtualization",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn with_qemu_asked_for_its_reason_says_whether_it_emulates() {
        let reason = |usable| decide(EngineChoice::Qemu, &kvm(usable), &found()).unwrap().reason;
        assert!(reason(true).contains("QEMU uses it"), "{}", reason(true));
        assert!(
            reason(false).contains("slower: KVM emulates ring 0"),
            "{}",
            reason(false)
        );
    }

    #[test]
    fn what_was_asked_for_is_what_one_gets_or_an_error() {
        assert_eq!(
            decide(EngineChoice::Qemu, &kvm(true), &found()).unwrap().engine,
            EngineKind::Qemu
        );
        assert_eq!(
            decide(EngineChoice::Kvm, &kvm(true), &missing()).unwrap().engine,
            EngineKind::Kvm
        );
        let error = decide(EngineChoice::Kvm, &kvm(false), &found())
            .unwrap_err()
            .to_string();
        for part in ["KVM emulates ring 0", "--engine qemu", "nested virtualization"] {
            assert!(error.contains(part), "{error}");
        }
        let error = decide(EngineChoice::Qemu, &kvm(true), &missing()).unwrap_err();
        assert!(matches!(error, EngineError::Unavailable { fix, .. } if fix == "install qemu-system-x86"));
    }
}
