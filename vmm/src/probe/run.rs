//! Runs the probe's guest.

use std::{sync::mpsc::Sender, time::Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::{
    EMULATION_THRESHOLD,
    guest::{self, Program},
    report::StepResult,
};
use crate::{
    arch::current::registers,
    memory::{self, GuestRegions},
    vm::{
        control::{Control, Next},
        kick::ImmediateExit,
    },
};

/// Turns of the loop per round. The first is enough for a host that is fast and idle. The second is for hosts where
/// entering a guest takes as long as the first round, or that were busy just then; one that emulates takes some 100 ms
/// for it.
const ROUNDS: [u64; 2] = [20_000, 100_000];

/// A rate that leaves no doubt: no second round.
const CLEARLY_FAST: u64 = 10 * EMULATION_THRESHOLD;
/// A rate that is too low, and too high for a host that emulates: a busy one, whose best round of several counts.
const DOUBTFUL: u64 = EMULATION_THRESHOLD / 4;
/// Rounds, at most, of a host that leaves doubt.
const MOST_ROUNDS: usize = 8;

/// The turns of the next round, after so many rounds, the best of which had that rate.
fn next_round(done: usize, best: u64) -> Option<u64> {
    if best >= CLEARLY_FAST {
        return None;
    }
    let doubtful = (DOUBTFUL..EMULATION_THRESHOLD).contains(&best) && done < MOST_ROUNDS;
    ROUNDS.get(done).or(ROUNDS.last().filter(|_| doubtful)).copied()
}

/// What the measurement has to say, as it goes.
pub(super) enum Finding {
    /// The machine is made; what follows is the guest's time.
    Ready,
    LoopRate(u64),
    Cmpxchg16b(StepResult),
    Xsave(StepResult),
    Xsaves(StepResult),
    Done(Result<(), RunError>),
}

/// Why there is nothing to measure.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error("KVM could not {what}")]
    Kvm {
        what: &'static str,
        #[source]
        source: kvm_ioctls::Error,
    },
    #[error("the test guest's memory could not be made")]
    Map(#[from] vm_memory::mmap::FromRangesError),
    #[error("the test guest's memory could not be written")]
    Memory(#[from] GuestMemoryError),
    #[error("a guest that counts to {turns} ended otherwise: {how}")]
    Loop { turns: u64, how: String },
    #[error("the probe was interrupted")]
    Interrupted,
}

/// How a program ended.
enum End {
    /// By itself, with this in AL.
    Done(u8),
    /// Otherwise.
    Failed(String),
}

/// Runs everything, and tells each finding as it is made.
pub(super) fn measure(kvm: &Kvm, control: &Control, findings: &Sender<Finding>) -> Result<(), RunError> {
    let memory = memory::allocate(&[(GuestAddress(0), guest::MEMORY_SIZE)])?;
    registers::write_identity_map(&memory, guest::PAGE_TABLES)?;
    guest::write_programs(&memory)?;

    let vm = kvm.create_vm().map_err(kvm_error("create a machine"))?;
    for region in memory.iter() {
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: `memory` outlives `vm`: it is declared earlier.
        unsafe { vm.set_user_memory_region(slot) }.map_err(kvm_error("map a guest's memory"))?;
    }
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("say what CPUs it supports"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(kvm_error("create a vCPU"))?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(kvm_error("take a vCPU's CPUID"))?;

    let offered = |function, index, in_ecx: bool, bit: u32| {
        cpuid
            .as_slice()
            .iter()
            .find(|entry| (entry.function, entry.index) == (function, index))
            .is_some_and(|entry| if in_ecx { entry.ecx } else { entry.eax } & 1 << bit != 0)
    };
    let mut runner = Runner::new(&mut vcpu, control, &memory);
    let tell = |finding| {
        // When nobody listens any more, the next run of the guest is interrupted too.
        let _ = findings.send(finding);
    };

    tell(Finding::Ready);
    let (mut rounds, mut best) = (0, 0);
    while let Some(turns) = next_round(rounds, best) {
        let rate = runner.loop_rate(turns)?;
        tell(Finding::LoopRate(rate));
        (rounds, best) = (rounds + 1, rate.max(best));
    }
    tell(Finding::Cmpxchg16b(if offered(1, 0, true, 13) {
        runner.cmpxchg16b()?
    } else {
        StepResult::NotOffered
    }));
    let xsave = offered(1, 0, true, 26);
    tell(Finding::Xsave(if xsave {
        runner.save(Program::Xsave)?
    } else {
        StepResult::NotOffered
    }));
    tell(Finding::Xsaves(if xsave && offered(0xd, 1, false, 3) {
        runner.save(Program::Xsaves)?
    } else {
        StepResult::NotOffered
    }));
    Ok(())
}

struct Runner<'a> {
    // Dropped, by order of declaration, before the borrow of the vCPU ends.
    _presence: crate::vm::control::Presence<'a>,
    vcpu: &'a mut VcpuFd,
    immediate_exit: ImmediateExit,
    control: &'a Control,
    memory: &'a GuestRegions,
}

impl<'a> Runner<'a> {
    fn new(vcpu: &'a mut VcpuFd, control: &'a Control, memory: &'a GuestRegions) -> Runner<'a> {
        let immediate_exit = ImmediateExit::of(vcpu);
        // SAFETY: the runner borrows the vCPU for as long as the presence lives, on this thread.
        let presence = unsafe { control.enter(0, immediate_exit) };
        Runner {
            _presence: presence,
            vcpu,
            immediate_exit,
            control,
            memory,
        }
    }

    fn loop_rate(&mut self, turns: u64) -> Result<u64, RunError> {
        let regs = kvm_regs {
            rcx: turns,
            ..Default::default()
        };
        self.prepare(Program::Loop, regs)?;
        let begin = Instant::now();
        let end = self.run()?;
        let nanoseconds = begin.elapsed().as_nanos().max(1);
        match end {
            End::Done(_) => {
                Ok(u64::try_from(u128::from(turns) * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX))
            }
            End::Failed(how) => Err(RunError::Loop { turns, how }),
        }
    }

    fn cmpxchg16b(&mut self) -> Result<StepResult, RunError> {
        let (old, new) = ([1u64, 2], [3u64, 4]);
        self.memory.write_obj(old, guest::DATA)?;
        let regs = kvm_regs {
            rdi: guest::DATA.0,
            rax: old[0],
            rdx: old[1],
            rbx: new[0],
            rcx: new[1],
            ..Default::default()
        };
        self.prepare(Program::Cmpxchg16b, regs)?;
        Ok(match self.run()? {
            End::Done(1) if self.memory.read_obj::<[u64; 2]>(guest::DATA)? == new => StepResult::Works,
            End::Done(_) => StepResult::Failed("it does nothing".into()),
            End::Failed(how) => StepResult::Failed(how),
        })
    }

    fn save(&mut self, program: Program) -> Result<StepResult, RunError> {
        let regs = kvm_regs {
            rdi: guest::DATA.0,
            ..Default::default()
        };
        // The header after the legacy region must be zero to be restored from.
        self.memory.write_slice(&[0; 4096], guest::DATA)?;
        self.prepare(program, regs)?;
        Ok(match self.run()? {
            End::Done(_) => StepResult::Works,
            End::Failed(how) => StepResult::Failed(how),
        })
    }

    /// Sets the vCPU to the beginning of a program, whatever state the last one left it in.
    fn prepare(&mut self, program: Program, regs: kvm_regs) -> Result<(), RunError> {
        let mut sregs = self
            .vcpu
            .get_sregs()
            .map_err(kvm_error("read a vCPU's registers"))?;
        sregs.cr4 = 0;
        registers::set_long_mode(&mut sregs, guest::PAGE_TABLES);
        self.vcpu
            .set_sregs(&sregs)
            .map_err(kvm_error("set a vCPU's registers"))?;
        let regs = kvm_regs {
            rip: program.entry().0,
            rflags: 2,
            ..regs
        };
        self.vcpu
            .set_regs(&regs)
            .map_err(kvm_error("set a vCPU's registers"))
    }

    fn run(&mut self) -> Result<End, RunError> {
        loop {
            // Before looking at the control: see `kick`.
            // SAFETY: the vCPU is borrowed, so it is there.
            unsafe { self.immediate_exit.set(false) };
            if self.control.checkpoint() == Next::Leave {
                return Err(RunError::Interrupted);
            }
            return Ok(match self.vcpu.run() {
                Ok(VcpuExit::IoOut(guest::DONE_PORT, [al])) => End::Done(*al),
                Ok(VcpuExit::Shutdown) => End::Failed("the guest crashed".into()),
                Ok(VcpuExit::InternalError) => End::Failed("KVM cannot emulate it".into()),
                Ok(other) => End::Failed(format!("{other:?}")),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
                Err(error) => End::Failed(error.to_string()),
            });
        }
    }
}

fn kvm_error(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> RunError {
    move |source| RunError::Kvm { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many rounds a host takes whose rounds have these rates, the last one again and again.
    fn rounds(rates: &[u64]) -> usize {
        let (mut done, mut best) = (0, 0);
        while next_round(done, best).is_some() {
            best = best.max(rates[done.min(rates.len() - 1)]);
            done += 1;
        }
        done
    }

    #[test]
    fn only_a_host_that_leaves_doubt_is_measured_more_than_twice() {
        let million = 1_000_000;
        assert_eq!(rounds(&[1000 * million]), 1, "a processor");
        assert_eq!(
            rounds(&[5 * million, 50 * million]),
            2,
            "entering a guest takes long"
        );
        assert_eq!(rounds(&[million]), 2, "it emulates");
        assert_eq!(
            rounds(&[5 * million, 9 * million, 7 * million, 20 * million]),
            4,
            "busy"
        );
        assert_eq!(rounds(&[9 * million]), MOST_ROUNDS, "whatever it is");
    }
}
