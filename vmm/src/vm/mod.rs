//! A virtual machine on KVM: [`Vm`].
//!
//! [`lifecycle`] is the contract of its states; `build` puts the machine together, `vcpu` runs it, `control` is what
//! handles and vCPUs share, `kick` gets a vCPU out of the guest, `supervisor` takes everything apart.

pub(crate) mod build;
pub(crate) mod control;
mod error;
mod footprint;
pub(crate) mod kick;
pub mod lifecycle;
#[cfg(test)]
mod machine_tests;
mod supervisor;
mod vcpu;

use std::{
    io::{self, Write},
    ops::Range,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
};

use tokio::sync::watch;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend};

pub use error::VmError;
pub use lifecycle::{ExitReason, Transition, VmEvent, VmState};
pub use vcpu::ExitCounts;

use self::{
    control::Control,
    supervisor::Remains,
    vcpu::{ExitCounters, Vcpu},
};
use crate::virtio::VirtioDevice;

/// The stack of the machine's threads. They call into devices, which log; little of it is ever touched.
const THREAD_STACK: usize = 256 * 1024;

/// What a machine is made of.
pub struct VmConfig {
    /// The guest's kernel: an uncompressed vmlinux.
    pub kernel: PathBuf,
    /// The initial RAM disk, if any.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line. The devices are added to it.
    pub cmdline: String,
    /// The number of vCPUs, from 1.
    pub cpus: u8,
    /// The size of guest memory in MiB, from 32.
    pub memory_mib: u64,
    /// The virtio devices, in the order the guest finds them.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Where the serial port writes to: early boot and panics. Must not block for long; the guest stands still
    /// meanwhile, and the machine does not end before the write does.
    pub serial_output: Box<dyn Write + Send>,
    /// The KVM device, usually `/dev/kvm`.
    pub kvm_path: PathBuf,
}

/// A running machine. Owns its threads; dropping it is [`Vm::kill`] and [`Vm::wait`].
///
/// The contract of its states is [`lifecycle`] and docs/lifecycle.md. All methods can be called from any thread, at any
/// time, as often as one likes. They block: keep them off async threads, except [`Vm::kill`], [`Vm::state`] and
/// [`Vm::exited`].
pub struct Vm {
    control: Arc<Control>,
    exits: Arc<ExitCounters>,
    guest_memory: Vec<Range<usize>>,
    supervisor: Option<JoinHandle<()>>,
}

impl Vm {
    /// Puts the machine together and lets it run.
    pub fn start(config: VmConfig) -> Result<Vm, VmError> {
        kick::install_signal().map_err(VmError::Signal)?;
        let machine = build::build(config)?;
        let control = Arc::new(Control::new(machine.vcpus.len()));
        let exits = Arc::<ExitCounters>::default();
        let guest_memory = host_ranges(&machine.kept);

        let mut remains = Remains {
            vcpus: Vec::with_capacity(machine.vcpus.len()),
            buses: Arc::clone(&machine.buses),
            kept: machine.kept,
        };
        for (index, fd) in (0..).zip(machine.vcpus) {
            let vcpu = Vcpu {
                index,
                fd,
                control: Arc::clone(&control),
                buses: Arc::clone(&machine.buses),
                exits: Arc::clone(&exits),
            };
            match spawn(format!("vmm-cpu{index}"), move || vcpu.run()) {
                Ok(thread) => remains.vcpus.push(thread),
                Err(error) => {
                    // Those that are there wait for the start.
                    control.end(ExitReason::InternalError(error.to_string()));
                    supervisor::supervise(&control, remains);
                    return Err(error);
                }
            }
        }
        let supervised = Arc::clone(&control);
        let supervisor = spawn("vmm-supervisor".into(), move || {
            supervisor::supervise(&supervised, remains);
        });
        if supervisor.is_err() {
            // What was to be supervised went with the closure: the vCPUs' threads go by themselves.
            control.end(ExitReason::Killed);
        }
        let vm = Vm {
            supervisor: Some(supervisor?),
            control,
            exits,
            guest_memory,
        };
        vm.control.started();
        Ok(vm)
    }

    /// Stops all vCPUs; when this returns, none runs. Devices finish the requests they have. A machine that is paused
    /// stays so.
    ///
    /// Refused when the machine is ending. When a vCPU does not stop within 5 s the machine goes on, and this is an
    /// error.
    pub fn pause(&self) -> Result<(), VmError> {
        self.control.pause()
    }

    /// Lets the vCPUs go on. A machine that runs goes on running. Refused when the machine is ending.
    pub fn resume(&self) -> Result<(), VmError> {
        self.control.resume()
    }

    /// Where the machine is in its life.
    pub fn state(&self) -> VmState {
        self.control.state()
    }

    /// Ends the machine now, whatever it is doing, as pulling the plug would. Returns at once; see [`Vm::wait`].
    pub fn kill(&self) {
        self.control.end(ExitReason::Killed);
    }

    /// Waits until the machine has ended and every device is deactivated: why it ended.
    pub fn wait(&self) -> ExitReason {
        self.control.wait()
    }

    /// Tells when the machine has ended, and why: what [`Vm::wait`] returns, for async code.
    pub fn exited(&self) -> watch::Receiver<Option<ExitReason>> {
        self.control.exited()
    }

    /// How often the guest was left, by cause.
    pub fn exit_counts(&self) -> ExitCounts {
        self.exits.read()
    }

    /// The resident memory of this process, in bytes, beyond what it gives the guest.
    pub fn memory_beyond_guest(&self) -> io::Result<u64> {
        footprint::beyond(&self.guest_memory)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
        if let Some(supervisor) = self.supervisor.take() {
            // A panic there was reported when it happened.
            let _ = supervisor.join();
        }
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, VmError> {
    std::thread::Builder::new()
        .name(name.clone())
        .stack_size(THREAD_STACK)
        .spawn(body)
        .map_err(|source| VmError::Thread { name, source })
}

fn host_ranges(kept: &build::Kept) -> Vec<Range<usize>> {
    kept.memory
        .memory()
        .iter()
        .map(|region| {
            let start = region.as_ptr() as usize;
            start..start + region.size()
        })
        .collect()
}
