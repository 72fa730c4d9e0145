//! The way from a device to its driver over MMIO.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use vmm_sys_util::eventfd::EventFd;

use crate::virtio::{Interrupt, InterruptCause};

/// InterruptStatus bits (virtio 1.2, 4.2.2).
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// The interrupt registers of one device and its line.
///
/// The line is an edge: it is raised for each signal, whether or not the driver has acknowledged the last one. The
/// status bit is set before the line is raised, so a driver never finds a raised line without a cause.
pub struct MmioInterrupt {
    line: EventFd,
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
}

impl MmioInterrupt {
    /// An interrupt that writes to `line`, an eventfd that KVM injects from.
    pub fn new(line: EventFd) -> MmioInterrupt {
        MmioInterrupt {
            line,
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
        }
    }

    /// The InterruptStatus register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// A write to the InterruptACK register.
    pub fn acknowledge(&self, causes: u32) {
        self.status.fetch_and(!causes, Ordering::SeqCst);
    }

    /// The ConfigGeneration register.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Whether the device has asked for a reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// The driver resets the device: nothing is pending any more.
    pub fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }
}

impl Interrupt for MmioInterrupt {
    fn signal(&self, cause: InterruptCause) -> io::Result<()> {
        let bit = match cause {
            InterruptCause::Queue(_) => USED_BUFFER,
            InterruptCause::Config => {
                self.generation.fetch_add(1, Ordering::SeqCst);
                CONFIG_CHANGE
            }
            InterruptCause::NeedsReset => {
                self.needs_reset.store(true, Ordering::SeqCst);
                CONFIG_CHANGE
            }
        };
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.line.write(1)
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn interrupt() -> (MmioInterrupt, EventFd) {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        (MmioInterrupt::new(line.try_clone().unwrap()), line)
    }

    #[test]
    fn each_signal_raises_the_line() {
        let (interrupt, line) = interrupt();
        interrupt.signal(InterruptCause::Queue(1)).unwrap();
        interrupt.signal(InterruptCause::Queue(1)).unwrap();
        assert_eq!(line.read().unwrap(), 2);
        assert_eq!(interrupt.status(), USED_BUFFER);
    }

    #[test]
    fn only_what_was_dealt_with_is_acknowledged() {
        let (interrupt, _line) = interrupt();
        interrupt.signal(InterruptCause::Queue(0)).unwrap();
        interrupt.signal(InterruptCause::Config).unwrap();
        interrupt.acknowledge(USED_BUFFER);
        assert_eq!(interrupt.status(), CONFIG_CHANGE);
    }

    #[test]
    fn the_generation_follows_the_configuration_and_outlives_a_reset() {
        let (interrupt, _line) = interrupt();
        interrupt.signal(InterruptCause::Config).unwrap();
        interrupt.signal(InterruptCause::NeedsReset).unwrap();
        assert!(interrupt.needs_reset());
        interrupt.reset();
        assert_eq!(
            (
                interrupt.generation(),
                interrupt.status(),
                interrupt.needs_reset()
            ),
            (1, 0, false)
        );
    }
}
