//! What runs the virtual machine.
//!
//! An [`Engine`] starts a machine as a [`MachineSpec`] describes it and hands back a [`RunningEngine`]. Everything else the
//! daemon does with a machine goes over vsock and virtio-fs, whose host ends the daemon keeps; the engine only gets the
//! devices, so that it can put them behind its own transport. The engines therefore differ in nothing that a user of the machine can see but
//! speed.

pub mod balloon;
pub mod choose;
pub mod cmdline;
mod disk_fault;
pub mod kvm;
pub mod qemu;
pub mod select;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use vmm::virtio::VirtioDevice;

use self::balloon::Balloon;
use crate::process::Children;

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// berth's own hypervisor on KVM, in the daemon's process.
    Kvm,
    /// QEMU in a process of its own.
    Qemu,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineKind::Kvm => "kvm",
            EngineKind::Qemu => "qemu",
        })
    }
}

/// Starts machines.
pub trait Engine: Send + Sync {
    /// Which engine this is.
    fn kind(&self) -> EngineKind;

    /// Starts the machine and returns when its virtual CPUs run (the guest may not have said a word yet). On an error
    /// nothing is left running. Dropping the future before it is done leaves nothing running either.
    fn start(&self, spec: MachineSpec) -> BoxFuture<'_, Result<Box<dyn RunningEngine>, EngineError>>;
}

/// A disk image file given to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// A raw image.
    pub path: PathBuf,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// The virtio-blk serial by which the guest finds it (`docs/seams.md`, "Disks").
    pub serial: String,
}

/// The machine's network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetSpec {
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// Where passt listens, in the protocol of QEMU's stream netdev (a 4-byte big-endian length before each frame).
    pub passt_socket: PathBuf,
}

/// Everything an engine needs to start a machine.
pub struct MachineSpec {
    /// The machine's name, for process names and messages.
    pub name: String,
    /// The guest kernel, an uncompressed ELF `vmlinux` with a PVH entry.
    pub kernel: PathBuf,
    /// The kernel's command line, but for what the engine itself adds (its virtio-mmio devices).
    pub cmdline: String,
    /// Virtual CPUs, 1 to 255.
    pub cpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Disks, in this order from `/dev/vda` on.
    pub disks: Vec<DiskSpec>,
    /// The network device; none for a machine without a network.
    pub net: Option<NetSpec>,
    /// The guest end of vsock, CID [`protocol::ports::GUEST_CID`]. The daemon has the host's end.
    pub vsock: Box<dyn VirtioDevice>,
    /// The virtio-fs device with the shares; its configuration space has the tag and the number of its queues. None for a
    /// machine without shares.
    pub fs: Option<Box<dyn VirtioDevice>>,
    /// Everything the guest writes to its console and its serial port goes here.
    pub console: ConsoleSink,
    /// A private directory for sockets and the like; it exists, and is emptied when the machine stops.
    pub runtime_dir: PathBuf,
    /// Where child processes are started and recorded.
    pub children: Arc<Children>,
}

/// Makes a new writer to the machine's console log. Writers may be used from different threads at once.
#[derive(Clone)]
pub struct ConsoleSink(Arc<dyn Fn() -> Box<dyn Write + Send> + Send + Sync>);

impl ConsoleSink {
    /// A sink whose writers `make` makes.
    pub fn new(make: impl Fn() -> Box<dyn Write + Send> + Send + Sync + 'static) -> Self {
        ConsoleSink(Arc::new(make))
    }

    /// A writer. Writing never blocks for long and never fails: what cannot be kept is dropped.
    pub fn writer(&self) -> Box<dyn Write + Send> {
        (self.0)()
    }
}

impl fmt::Debug for ConsoleSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConsoleSink")
    }
}

/// A machine that an engine has started. Dropping it ends the machine as [`RunningEngine::kill`] does.
pub trait RunningEngine: Send + Sync {
    /// What runs the machine.
    fn describe(&self) -> EngineDescription;

    /// Turns from none to why the machine ended, once, when nothing of it runs any more.
    fn exited(&self) -> watch::Receiver<Option<EngineExit>>;

    /// Ends the machine now, whatever it is doing (a power cut). Idempotent; returns at once, [`RunningEngine::exited`]
    /// tells when it is done.
    fn kill(&self);

    /// Stops the virtual CPUs until [`RunningEngine::resume`]; connections to the guest stay. Pausing a paused machine is
    /// not an error.
    fn pause(&self) -> BoxFuture<'_, Result<(), EngineError>>;

    /// Lets a paused machine run on. Resuming a running machine is not an error.
    fn resume(&self) -> BoxFuture<'_, Result<(), EngineError>>;

    /// Its balloon.
    fn balloon(&self) -> Arc<dyn Balloon>;

    /// The processes, other than the daemon itself, whose resident memory is the machine's.
    fn process_ids(&self) -> Vec<u32>;

    /// What the user should know of the running machine (its host's disk is full, say), as it comes. Given out once; an
    /// engine that has nothing to tell gives none.
    fn warnings(&mut self) -> Option<mpsc::UnboundedReceiver<String>> {
        None
    }
}

/// What runs a machine, in words for `berth status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineDescription {
    /// Which engine.
    pub engine: EngineKind,
    /// `kvm`, or `tcg` for pure emulation.
    pub accelerator: String,
    /// The program and its version, where it is not berth itself ("QEMU 10.0.2").
    pub program: Option<String>,
}

/// Why a machine ended, as far as the engine can tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineExit {
    /// The guest reset or powered off the machine (a panicking guest does too; only the guest's own events tell them apart).
    GuestReset,
    /// [`RunningEngine::kill`], or the engine's process was killed from outside (then with its status in words).
    Killed(Option<String>),
    /// The engine failed: what and why.
    Failed(String),
    /// The machine has ended, but a part of it still waits for the host, and goes only with this process.
    Stuck {
        /// Which.
        what: String,
        /// Why the machine ended.
        after: Box<EngineExit>,
    },
}

impl EngineExit {
    /// What did not end with the machine, in a sentence for the user.
    pub fn stuck(&self) -> Option<String> {
        match self {
            EngineExit::Stuck { what, .. } => Some(format!(
                "{what} did not stop: a disk or a shared directory of the host does not answer. What containers have written \
                 is with the host's kernel"
            )),
            _ => None,
        }
    }

    /// Why the machine ended, whatever of it is left.
    pub fn cause(&self) -> &EngineExit {
        match self {
            EngineExit::Stuck { after, .. } => after.cause(),
            cause => cause,
        }
    }
}

/// Why an engine could not do something.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Something the engine needs on this host is not there or cannot be used. Exit code 4.
    #[error("{what}; {fix}")]
    Unavailable {
        /// What is missing.
        what: String,
        /// What to do about it.
        fix: String,
    },
    /// The machine could not be started.
    #[error("the {engine} engine could not {action}")]
    Failed {
        /// Which engine.
        engine: EngineKind,
        /// What it was doing ("start the machine").
        action: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
