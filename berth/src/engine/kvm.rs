//! The kvm engine: berth's own hypervisor ([`vmm`]), in the daemon's process.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use vmm::virtio::VirtioDevice;
use vmm::virtio::balloon::{BalloonConfig, BalloonControl, balloon};
use vmm::virtio::block::{Block, BlockConfig, BlockFault};
use vmm::virtio::console::console;
use vmm::virtio::net::{NetConfig, net_with};
use vmm::virtio::rng::Rng;
use vmm::vm::{ExitReason, Vm, VmConfig};

use super::balloon::Balloon;
use super::disk_fault::{DiskFault, FaultTeller};
use super::{Engine, EngineDescription, EngineError, EngineExit, EngineKind, MachineSpec, RunningEngine};

/// More request queues than this help no disk; each costs a thread.
const MAX_DISK_QUEUES: u8 = 4;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The kvm engine.
#[derive(Debug)]
pub struct KvmEngine {
    kvm_path: PathBuf,
}

impl KvmEngine {
    /// An engine on the KVM device at this path.
    pub fn new(kvm_path: PathBuf) -> KvmEngine {
        KvmEngine { kvm_path }
    }
}

impl Engine for KvmEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn start(&self, spec: MachineSpec) -> BoxFuture<'_, Result<Box<dyn RunningEngine>, EngineError>> {
        let kvm_path = self.kvm_path.clone();
        async move {
            // Reads the kernel and makes threads. When nobody waits any more, what it made is dropped, which ends it.
            let started = tokio::task::spawn_blocking(move || start(kvm_path, spec)).await;
            let running = started
                .map_err(BoxError::from)
                .and_then(|result| result)
                .map_err(|source| failed("start the machine", source))?;
            Ok(Box::new(running) as Box<dyn RunningEngine>)
        }
        .boxed()
    }
}

fn failed(action: &str, source: impl Into<BoxError>) -> EngineError {
    EngineError::Failed {
        engine: EngineKind::Kvm,
        action: action.into(),
        source: source.into(),
    }
}

/// Makes the devices, in the order of their addresses and so of their names in the guest, and starts the machine.
fn start(kvm_path: PathBuf, spec: MachineSpec) -> Result<Running, BoxError> {
    let (warn, warnings) = mpsc::unbounded_channel();
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for disk in &spec.disks {
        let block = Block::open(BlockConfig {
            path: disk.path.clone(),
            read_only: disk.read_only,
            serial: disk.serial.clone(),
            queues: if disk.read_only {
                1
            } else {
                spec.cpus.min(MAX_DISK_QUEUES).into()
            },
        })?;
        tell_faults(&block, FaultTeller::new(disk.path.clone(), warn.clone()));
        devices.push(Box::new(block));
    }
    if let Some(net) = &spec.net {
        let (device, link) = net_with(NetConfig {
            mac: net.mac,
            mtu: u16::try_from(crate::machine::MTU).ok(),
        })?;
        // For good: the other end stays whatever happens to passt ([`crate::net`]).
        link.attach(Some(UnixStream::connect(&net.passt_socket)?))?;
        devices.push(Box::new(device));
    }
    devices.push(spec.vsock);
    devices.extend(spec.fs);
    devices.push(Box::new(Rng::new()));
    let (balloon, balloon_control) = balloon(BalloonConfig {
        free_page_reporting: true,
        deflate_on_oom: true,
    })?;
    devices.push(Box::new(balloon));
    let (console, _input) = console(spec.console.writer())?;
    devices.push(Box::new(console));

    let vm = Vm::start(VmConfig {
        kernel: spec.kernel,
        initrd: None,
        cmdline: spec.cmdline,
        cpus: spec.cpus,
        memory_mib: spec.memory_mib,
        devices,
        serial_output: spec.console.writer(),
        kvm_path,
    })?;
    let (exit, exited) = watch::channel(None);
    let mut ended = vm.exited();
    tokio::runtime::Handle::current().spawn(async move {
        let reason = match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().map_or(EngineExit::Killed(None), exit_of),
            Err(_) => EngineExit::Killed(None),
        };
        exit.send_replace(Some(reason));
    });
    Ok(Running {
        vm: Some(Arc::new(vm)),
        balloon: Arc::new(OwnBalloon(balloon_control)),
        exited,
        warnings: Some(warnings),
    })
}

/// Tells the user what goes wrong with the disk on the host.
fn tell_faults(block: &Block, teller: FaultTeller) {
    block.health().on_fault(Box::new(move |fault| {
        teller.tell(match fault {
            BlockFault::NoSpace => DiskFault::NoSpace,
            BlockFault::Io => DiskFault::Io,
            BlockFault::FlushFailed => DiskFault::FlushFailed,
        });
    }));
}

fn exit_of(reason: ExitReason) -> EngineExit {
    match reason {
        ExitReason::Reset => EngineExit::GuestReset,
        ExitReason::Killed => EngineExit::Killed(None),
        ExitReason::InternalError(what) => EngineExit::Failed(what),
        ExitReason::Stuck { what, after } => EngineExit::Stuck {
            what,
            after: Box::new(exit_of(*after)),
        },
    }
}

/// A machine in this process.
struct Running {
    /// There until this is dropped.
    vm: Option<Arc<Vm>>,
    balloon: Arc<OwnBalloon>,
    exited: watch::Receiver<Option<EngineExit>>,
    warnings: Option<mpsc::UnboundedReceiver<String>>,
}

impl Running {
    /// Does something with the machine that blocks.
    fn with_vm<F>(&self, action: &'static str, what: F) -> BoxFuture<'_, Result<(), EngineError>>
    where
        F: FnOnce(&Vm) -> Result<(), vmm::vm::VmError> + Send + 'static,
    {
        let vm = self.vm.clone();
        async move {
            let Some(vm) = vm else {
                return Ok(());
            };
            tokio::task::spawn_blocking(move || what(&vm))
                .await
                .map_err(|error| failed(action, error))?
                .map_err(|error| failed(action, error))
        }
        .boxed()
    }
}

impl RunningEngine for Running {
    fn describe(&self) -> EngineDescription {
        EngineDescription {
            engine: EngineKind::Kvm,
            accelerator: "kvm".into(),
            program: None,
        }
    }

    fn exited(&self) -> watch::Receiver<Option<EngineExit>> {
        self.exited.clone()
    }

    fn kill(&self) {
        if let Some(vm) = &self.vm {
            vm.kill();
        }
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), EngineError>> {
        self.with_vm("pause the machine", Vm::pause)
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), EngineError>> {
        self.with_vm("resume the machine", Vm::resume)
    }

    fn balloon(&self) -> Arc<dyn Balloon> {
        Arc::clone(&self.balloon) as Arc<dyn Balloon>
    }

    fn process_ids(&self) -> Vec<u32> {
        Vec::new()
    }

    fn warnings(&mut self) -> Option<mpsc::UnboundedReceiver<String>> {
        self.warnings.take()
    }
}

/// berth's own balloon device.
struct OwnBalloon(BalloonControl);

impl Balloon for OwnBalloon {
    fn set_target(&self, pages: u32) -> BoxFuture<'_, Result<(), EngineError>> {
        let result = self.0.set_target_pages(pages);
        std::future::ready(
            result.map_err(|error| failed("tell the guest how much memory it is to have", error)),
        )
        .boxed()
    }

    fn actual(&self) -> watch::Receiver<u32> {
        self.0.watch_actual()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(vm) = self.vm.take() {
            vm.kill();
            // Its own drop waits for its threads, which an async thread must not. When no thread can be made it is waited
            // for here after all.
            let waiting = std::thread::Builder::new().name("vm-end".into());
            let _ = waiting.spawn(move || drop(vm));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_of_a_machine_is_told_apart() {
        assert_eq!(exit_of(ExitReason::Reset), EngineExit::GuestReset);
        assert_eq!(exit_of(ExitReason::Killed), EngineExit::Killed(None));
        assert_eq!(
            exit_of(ExitReason::InternalError("x".into())),
            EngineExit::Failed("x".into())
        );
        let stuck = ExitReason::Stuck {
            what: "vda".into(),
            after: Box::new(ExitReason::Reset),
        };
        let stuck = exit_of(stuck);
        assert_eq!(stuck.cause(), &EngineExit::GuestReset);
        assert!(stuck.stuck().is_some_and(|what| what.starts_with("vda")));
        assert_eq!(stuck.cause().stuck(), None);
    }
}
