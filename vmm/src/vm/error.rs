//! Why a machine could not be started, or could not do what it was asked.

use std::{io, path::PathBuf};

use super::VmState;
use crate::{
    arch::current::{boot::BootError, registers::RegistersError},
    event_loop::EventLoopError,
};

/// What can go wrong with a machine.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The host has no KVM.
    #[error(
        "{} does not exist: this host has no KVM. Load the module (kvm_intel or kvm_amd), enable virtualization in the \
         firmware, or use the qemu engine",
        path.display()
    )]
    KvmMissing {
        /// Where it should be.
        path: PathBuf,
        /// What opening it said.
        #[source]
        source: io::Error,
    },
    /// The user may not use KVM.
    #[error(
        "no permission to use {}. Join the group that owns it (usually: sudo usermod -aG kvm $USER, then log in again)",
        path.display()
    )]
    KvmDenied {
        /// The device.
        path: PathBuf,
        /// What opening it said.
        #[source]
        source: io::Error,
    },
    /// KVM cannot be opened for another reason.
    #[error("{} could not be opened", path.display())]
    KvmOpen {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Some file was opened, but it is not KVM, or one of another age.
    #[error("{} speaks version {version} of the KVM interface; 12 is needed", path.display())]
    KvmVersion {
        /// The device.
        path: PathBuf,
        /// What it answered.
        version: i32,
    },
    /// The host's KVM lacks something.
    #[error("the host's KVM lacks {0}; a newer kernel has it")]
    KvmLacks(&'static str),
    /// A KVM call failed.
    #[error("KVM could not {what}")]
    Kvm {
        /// What it was asked.
        what: &'static str,
        /// Why not.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A number of CPUs that cannot be had.
    #[error("a machine cannot have {asked} CPUs; this host allows 1 to {most}")]
    Cpus {
        /// What was asked.
        asked: u8,
        /// The most that works here.
        most: u8,
    },
    /// A size of memory that cannot be had.
    #[error("a machine cannot have {asked_mib} MiB of memory; it takes {least_mib} to {most_mib}")]
    MemorySize {
        /// What was asked.
        asked_mib: u64,
        /// The least.
        least_mib: u64,
        /// The most.
        most_mib: u64,
    },
    /// The host does not give the memory.
    #[error("the host does not give {mib} MiB of memory for the machine")]
    Memory {
        /// How much.
        mib: u64,
        /// Why not.
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
    /// More devices than interrupt lines.
    #[error("a machine cannot have {asked} devices; there are interrupt lines for {most}")]
    TooManyDevices {
        /// What was asked.
        asked: usize,
        /// The most.
        most: usize,
    },
    /// Kernel, initrd or command line.
    #[error("the guest could not be loaded")]
    Boot(#[from] BootError),
    /// The vCPUs' first state.
    #[error("a vCPU could not be set up")]
    Registers(#[from] RegistersError),
    /// The loop that devices run on.
    #[error("the devices' event loop could not be started")]
    EventLoop(#[from] EventLoopError),
    /// An event descriptor.
    #[error("an event descriptor could not be made")]
    EventFd(#[source] io::Error),
    /// A thread.
    #[error("the thread {name} could not be started")]
    Thread {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The signal that interrupts vCPUs.
    #[error("the signal that interrupts vCPUs could not be set up")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// The machine is not in a state to do that.
    #[error("the machine cannot {what}: it is {state:?}")]
    State {
        /// What was asked.
        what: &'static str,
        /// Where it is.
        state: VmState,
    },
    /// A pause that took too long and was taken back.
    #[error("{running} of the machine's vCPUs did not stop in {seconds} s; the machine goes on")]
    PauseTimeout {
        /// How many still ran.
        running: usize,
        /// How long they had.
        seconds: u64,
    },
}
