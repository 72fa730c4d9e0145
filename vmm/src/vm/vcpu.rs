//! A vCPU's thread: runs the guest, and answers what it leaves the guest for.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{
    ExitReason,
    control::{Control, Next},
    kick::ImmediateExit,
};
use crate::{
    legacy::{PortAction, Ports},
    virtio::mmio::MmioBus,
};

/// The devices a guest reaches by leaving guest mode.
pub(super) struct Buses {
    pub(super) ports: Ports,
    pub(super) mmio: MmioBus,
}

/// How often vCPUs left the guest for the host's program, by cause, since the machine started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExitCounts {
    /// I/O port reads and writes.
    pub ports: u64,
    /// Reads of device registers.
    pub mmio_reads: u64,
    /// Writes of device registers.
    pub mmio_writes: u64,
    /// Everything else.
    pub other: u64,
}

#[derive(Default)]
pub(super) struct ExitCounters {
    ports: AtomicU64,
    mmio_reads: AtomicU64,
    mmio_writes: AtomicU64,
    other: AtomicU64,
}

impl ExitCounters {
    pub(super) fn read(&self) -> ExitCounts {
        ExitCounts {
            ports: self.ports.load(Ordering::Relaxed),
            mmio_reads: self.mmio_reads.load(Ordering::Relaxed),
            mmio_writes: self.mmio_writes.load(Ordering::Relaxed),
            other: self.other.load(Ordering::Relaxed),
        }
    }
}

/// What a vCPU's thread is made of.
pub(super) struct Vcpu {
    pub(super) index: u8,
    pub(super) fd: VcpuFd,
    pub(super) control: Arc<Control>,
    pub(super) buses: Arc<Buses>,
    pub(super) exits: Arc<ExitCounters>,
}

/// What one stay in the guest ended with.
enum Outcome {
    Continue,
    End(ExitReason),
}

impl Vcpu {
    /// The thread: until the machine ends.
    pub(super) fn run(mut self) {
        let immediate_exit = ImmediateExit::of(&mut self.fd);
        let control = Arc::clone(&self.control);
        // SAFETY: `_presence` is declared after `self`, so it is dropped first; both are gone before the thread is.
        let _presence = unsafe { control.enter(self.index, immediate_exit) };
        loop {
            // Before looking at the state: see `kick`.
            // SAFETY: `self.fd` is there.
            unsafe { immediate_exit.set(false) };
            match self.control.checkpoint() {
                Next::Run => {}
                Next::RunAfterPause => self.tell_guest_of_pause(),
                Next::Leave => return,
            }
            if let Outcome::End(reason) = self.enter_guest() {
                self.control.end(reason);
            }
        }
    }

    /// Spares the guest's watchdogs: without it they take a pause for a lock-up.
    fn tell_guest_of_pause(&self) {
        if let Err(error) = self.fd.kvmclock_ctrl()
            // The guest does not use the KVM clock.
            && error.errno() != libc::EINVAL
        {
            tracing::warn!(vcpu = self.index, %error, "the guest could not be told of the pause");
        }
    }

    fn enter_guest(&mut self) -> Outcome {
        let index = self.index;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            // A kick; or a secondary processor that was woken, and is to be run again.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                count(&self.exits.other);
                return Outcome::Continue;
            }
            Err(error) => return fatal(format!("vCPU {index} could not be run: {error}")),
        };
        match exit {
            VcpuExit::IoOut(port, data) => {
                count(&self.exits.ports);
                match self.buses.ports.write(port, data) {
                    PortAction::Continue => Outcome::Continue,
                    PortAction::Reset => Outcome::End(ExitReason::Reset),
                }
            }
            VcpuExit::IoIn(port, data) => {
                count(&self.exits.ports);
                self.buses.ports.read(port, data);
                Outcome::Continue
            }
            VcpuExit::MmioRead(address, data) => {
                count(&self.exits.mmio_reads);
                self.buses.mmio.read(address, data);
                Outcome::Continue
            }
            VcpuExit::MmioWrite(address, data) => {
                count(&self.exits.mmio_writes);
                self.buses.mmio.write(address, data);
                Outcome::Continue
            }
            // A triple fault: the processor's own reset.
            VcpuExit::Shutdown => Outcome::End(ExitReason::Reset),
            VcpuExit::SystemEvent(
                kvm_bindings::KVM_SYSTEM_EVENT_RESET | kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN,
                _,
            ) => Outcome::End(ExitReason::Reset),
            // Halting and its interrupts are KVM's own business with an in-kernel interrupt controller.
            VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen => {
                count(&self.exits.other);
                Outcome::Continue
            }
            VcpuExit::InternalError => self.internal_error(),
            VcpuExit::FailEntry(reason, cpu) => fatal(format!(
                "the host's processor {cpu} refused to enter vCPU {index}: hardware reason {reason:#x}"
            )),
            other => {
                let what = format!("vCPU {index} left the guest for {other:?}, which is not expected");
                fatal(what)
            }
        }
    }

    /// KVM could not go on, most often with an instruction it had to emulate.
    fn internal_error(&mut self) -> Outcome {
        let run = self.fd.get_kvm_run();
        // SAFETY: KVM has filled in this member of the union, as the exit reason says.
        let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
        let at = match self.fd.get_regs() {
            Ok(regs) => format!("at instruction {:#x}", regs.rip),
            Err(error) => format!("at an unknown instruction ({error})"),
        };
        fatal(format!(
            "KVM could not run vCPU {} {at}: internal error {suberror}",
            self.index
        ))
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn fatal(what: String) -> Outcome {
    Outcome::End(ExitReason::InternalError(what))
}
