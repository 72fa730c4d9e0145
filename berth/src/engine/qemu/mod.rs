//! The qemu engine: QEMU's microvm machine in a process of its own, for hosts without a usable KVM.
//!
//! The guest sees the same kernel, image and devices as on the kvm engine. vsock and virtio-fs are berth's own devices, served to
//! QEMU over vhost-user, so that everything above them is the same. QEMU dies with the daemon.

mod arguments;
mod console;
mod process;
mod program;
mod qmp;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

pub use arguments::Accelerator;
pub use program::{QemuProgram, find};

use super::{Engine, EngineError, EngineKind, MachineSpec, RunningEngine};

/// The qemu engine.
#[derive(Debug, Clone)]
pub struct QemuEngine {
    program: QemuProgram,
    accelerator: Accelerator,
}

impl QemuEngine {
    /// An engine that runs this program and emulates the CPUs.
    pub fn new(program: QemuProgram) -> Self {
        Self::with_accelerator(program, Accelerator::Tcg)
    }

    /// An engine with another accelerator.
    pub fn with_accelerator(program: QemuProgram, accelerator: Accelerator) -> Self {
        QemuEngine { program, accelerator }
    }
}

impl Engine for QemuEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Qemu
    }

    fn start(&self, spec: MachineSpec) -> BoxFuture<'_, Result<Box<dyn RunningEngine>, EngineError>> {
        async move {
            let running = process::start(&self.program, self.accelerator, spec)
                .await
                .map_err(|error| failed("start the machine", error))?;
            Ok(Box::new(running) as Box<dyn RunningEngine>)
        }
        .boxed()
    }
}

fn failed(action: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> EngineError {
    EngineError::Failed {
        engine: EngineKind::Qemu,
        action: action.to_owned(),
        source: source.into(),
    }
}

#[cfg(test)]
mod tests;
