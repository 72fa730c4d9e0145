//! Looking at the host and making the engine that [`super::choose`] decides on.

use anyhow::Result;
use vmm::probe::{ProbeReport, Verdict};

use super::choose::{self, Decision, KvmFinding, QemuFinding};
use super::kvm::KvmEngine;
use super::qemu::{self, Accelerator, QemuEngine, QemuProgram};
use super::{Engine, EngineError, EngineKind};
use crate::config::{Config, EngineChoice};
use crate::exit::{Code, Failure};

/// Where KVM is.
pub const KVM_PATH: &str = "/dev/kvm";

/// An engine and why it was chosen.
pub struct Choice {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// Which one and why.
    pub decision: Decision,
    /// Whether the guest's instructions are emulated.
    pub emulated: bool,
}

/// What was found on this host.
pub struct Findings {
    /// What the probe of KVM found.
    pub probe: ProbeReport,
    /// The same for the choice.
    pub kvm: KvmFinding,
    /// Which QEMU there is.
    pub qemu: Result<QemuProgram, EngineError>,
}

/// Looks at the host. Takes well under a second, in which it blocks.
pub fn look(config: &Config) -> Findings {
    let probe = vmm::probe::probe(KVM_PATH.as_ref());
    Findings {
        kvm: finding(&probe),
        probe,
        qemu: qemu::find(config.qemu()),
    }
}

/// The probe's report in the words of the choice.
fn finding(report: &ProbeReport) -> KvmFinding {
    let fix = match &report.verdict {
        Verdict::Usable => None,
        Verdict::Missing => Some(
            "load the kvm_intel or kvm_amd module; enable virtualization in the firmware, or nested virtualization in a cloud VM"
                .to_owned(),
        ),
        Verdict::NoPermission { group } => Some(format!(
            "become a member of the group that owns {KVM_PATH}: `sudo usermod -aG {} $USER`, then log in again",
            group.as_deref().unwrap_or("kvm")
        )),
        Verdict::Emulated { .. } | Verdict::Broken { .. } => {
            Some("use a host with working hardware virtualization".to_owned())
        }
    };
    KvmFinding {
        usable: matches!(report.verdict, Verdict::Usable),
        summary: format!("{}: {}", report.kvm_path.display(), report.verdict),
        fix,
    }
}

/// QEMU in the words of the choice.
pub fn qemu_finding(qemu: &Result<QemuProgram, EngineError>) -> QemuFinding {
    match qemu {
        Ok(program) => QemuFinding::Found(format!("{} at {}", program.describe(), program.path.display())),
        Err(EngineError::Unavailable { what, fix }) => QemuFinding::Unusable {
            what: what.clone(),
            fix: fix.clone(),
        },
        Err(error) => QemuFinding::Unusable {
            what: error.to_string(),
            fix: "install qemu-system-x86".into(),
        },
    }
}

/// Chooses an engine and makes it.
pub async fn select(asked: EngineChoice, config: &Config) -> Result<Choice> {
    let config = config.clone();
    let findings = tokio::task::spawn_blocking(move || look(&config)).await?;
    let decision = choose::decide(asked, &findings.kvm, &qemu_finding(&findings.qemu)).map_err(with_code)?;
    let engine: Box<dyn Engine> = match decision.engine {
        EngineKind::Kvm => Box::new(KvmEngine::new(KVM_PATH.into())),
        EngineKind::Qemu => {
            // Only when QEMU was asked for on a host whose KVM works.
            let accelerator = if findings.kvm.usable {
                Accelerator::Kvm
            } else {
                Accelerator::Tcg
            };
            let program = findings.qemu.map_err(with_code)?;
            Box::new(QemuEngine::with_accelerator(program, accelerator))
        }
    };
    Ok(Choice {
        emulated: decision.engine == EngineKind::Qemu && !findings.kvm.usable,
        engine,
        decision,
    })
}

/// An engine's error with its exit code.
pub fn with_code(error: EngineError) -> anyhow::Error {
    match error {
        EngineError::Unavailable { .. } => Failure::wrap(Code::Unavailable, error),
        EngineError::Failed { .. } => error.into(),
    }
}
