//! A split virtqueue (virtio 1.2, 2.7) in the hands of the device that owns it.

use std::{
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering, fence},
    },
};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::EventFd;

use super::{Interrupt, InterruptCause};
use crate::memory::{GuestRam, GuestRamGuard};

/// A chain of descriptors that the driver made available.
pub type Chain = DescriptorChain<GuestRamGuard>;

/// Why a queue cannot be worked on any more. The device stops and asks for a reset
/// ([`VirtQueue::fail`]); the host is not affected.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings are malformed or lie outside guest memory.
    #[error("virtqueue {index} is malformed")]
    Ring {
        /// Which queue.
        index: u16,
        /// What is wrong with it.
        #[source]
        source: virtio_queue::Error,
    },
    /// A descriptor chain breaks the rules of this device.
    #[error("a request in virtqueue {index} is malformed: {what}")]
    Chain {
        /// Which queue.
        index: u16,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The driver could not be interrupted.
    #[error("the interrupt of virtqueue {index} could not be raised")]
    Interrupt {
        /// Which queue.
        index: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kick descriptor failed.
    #[error("the notification of virtqueue {index} could not be read or written")]
    Kick {
        /// Which queue.
        index: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// One queue: the rings, the memory they lie in, the driver's kick and the way back.
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    memory: GuestRam,
    kick: EventFd,
    interrupt: Arc<dyn Interrupt>,
    /// The used index at the last [`Self::notify`].
    notified_at: u16,
    position: Arc<AtomicU16>,
}

/// Raises a queue's interrupt.
pub struct Interrupter {
    index: u16,
    interrupt: Arc<dyn Interrupt>,
}

impl Interrupter {
    /// Interrupts the driver, whatever it asked for.
    pub fn raise(&self) -> Result<(), QueueError> {
        self.interrupt
            .signal(InterruptCause::Queue(self.index))
            .map_err(|source| QueueError::Interrupt {
                index: self.index,
                source,
            })
    }
}

impl Drop for VirtQueue {
    fn drop(&mut self) {
        self.position.store(self.queue.next_avail(), Ordering::Release);
    }
}

impl VirtQueue {
    /// Puts a queue together. `queue` is configured and ready; `kick` is non-blocking.
    pub fn new(
        index: u16,
        queue: Queue,
        memory: GuestRam,
        kick: EventFd,
        interrupt: Arc<dyn Interrupt>,
    ) -> VirtQueue {
        VirtQueue {
            index,
            notified_at: queue.next_used(),
            position: Arc::new(AtomicU16::new(queue.next_avail())),
            queue,
            memory,
            kick,
            interrupt,
        }
    }

    /// Which queue of the device this is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The number of entries of each ring.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The memory the rings and buffers lie in, as it is now.
    pub fn memory(&self) -> GuestRamGuard {
        self.memory.memory()
    }

    /// The descriptor to watch for kicks.
    pub fn kick_fd(&self) -> &impl AsRawFd {
        &self.kick
    }

    /// Takes note of a kick. Call once for each readiness of [`Self::kick_fd`]; a kick that is already gone is fine.
    pub fn consume_kick(&self) -> Result<(), QueueError> {
        match self.kick.read() {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(source) => Err(QueueError::Kick {
                index: self.index,
                source,
            }),
        }
    }

    /// Makes the kick descriptor ready, as if the driver had kicked: for a worker that has reason to look at the queue
    /// on its next turn.
    pub fn reschedule(&self) -> Result<(), QueueError> {
        self.kick.write(1).map_err(|source| QueueError::Kick {
            index: self.index,
            source,
        })
    }

    /// The next chain the driver made available, if any.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let index = self.index;
        // `iter` checks the available index against the queue's size, which the plain pop does not report.
        let mut chains = self
            .queue
            .iter(self.memory.memory())
            .map_err(|source| QueueError::Ring { index, source })?;
        Ok(chains.next())
    }

    /// Gives the chain that [`Self::pop`] returned last back to the available ring, as if it had not been taken.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Puts a chain on the used ring: the device wrote `written` bytes into it. Does not interrupt; see
    /// [`Self::notify`].
    pub fn add_used(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        let memory = self.memory.memory();
        self.queue
            .add_used(&*memory, head, written)
            .map_err(|source| self.ring_error(source))
    }

    /// Puts several chains on the used ring so that the driver sees all of them or none: for data that is spread over
    /// chains. Each is a head and the bytes written.
    pub fn add_used_together(&mut self, chains: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some(((last_head, last_written), others)) = chains.split_last() else {
            return Ok(());
        };
        let memory = self.memory.memory();
        let size = self.queue.size();
        let first = self.queue.next_used();
        let mut next = first;
        for (head, written) in others {
            if *head >= size {
                return Err(self.ring_error(virtio_queue::Error::InvalidDescriptorIndex));
            }
            // The element lies beyond the used index: the driver does not look at it yet.
            let address = self.ring_address(self.queue.used_ring(), 4 + u64::from(next % size) * 8)?;
            let element = u64::from(*head) | u64::from(*written) << 32;
            memory
                .write_obj(element.to_le(), address)
                .map_err(|source| self.ring_error(virtio_queue::Error::GuestMemory(source)))?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        self.queue
            .add_used(&*memory, *last_head, *last_written)
            .map_err(|source| {
                self.queue.set_next_used(first);
                self.ring_error(source)
            })
    }

    /// Interrupts the driver for what was used since the last call, unless it asked not to be (2.7.7).
    pub fn notify(&mut self) -> Result<(), QueueError> {
        if self.wants_interrupt()? {
            self.interrupter().raise()?;
        }
        Ok(())
    }

    /// The first half of [`Self::notify`]: whether the driver is to be interrupted for what was used since the last call.
    /// Whoever asks raises the interrupt, which is a system call that wakes others up, without holding up the queue.
    pub fn wants_interrupt(&mut self) -> Result<bool, QueueError> {
        let used = self.queue.next_used();
        let before = std::mem::replace(&mut self.notified_at, used);
        if used == before {
            return Ok(false);
        }
        // The used index must be visible before the driver's wish is read, else both sides may wait for the other.
        fence(Ordering::SeqCst);
        let avail_ring = self.queue.avail_ring();
        if self.queue.event_idx_enabled() {
            let event = self.load_u16(avail_ring, 4 + u64::from(self.queue.size()) * 2)?;
            // 2.7.10: wanted if the element at `event` is among those used since.
            Ok(used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(before))
        } else {
            Ok(self.load_u16(avail_ring, 0)? & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
        }
    }

    /// The second half of [`Self::notify`], which does not need the queue.
    pub fn interrupter(&self) -> Interrupter {
        Interrupter {
            index: self.index,
            interrupt: Arc::clone(&self.interrupt),
        }
    }

    fn load_u16(&self, ring: u64, offset: u64) -> Result<u16, QueueError> {
        let address = self.ring_address(ring, offset)?;
        self.memory
            .memory()
            .load(address, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|source| self.ring_error(virtio_queue::Error::GuestMemory(source)))
    }

    fn ring_address(&self, ring: u64, offset: u64) -> Result<GuestAddress, QueueError> {
        GuestAddress(ring)
            .checked_add(offset)
            .ok_or_else(|| self.ring_error(virtio_queue::Error::AddressOverflow))
    }

    /// Asks the driver not to kick while the device is looking at the queue anyway.
    pub fn disable_kicks(&mut self) -> Result<(), QueueError> {
        let memory = self.memory.memory();
        self.queue
            .disable_notification(&*memory)
            .map_err(|source| self.ring_error(source))
    }

    /// Asks for kicks again. True when chains came in meanwhile: look again, there may be no kick for them.
    pub fn enable_kicks(&mut self) -> Result<bool, QueueError> {
        let memory = self.memory.memory();
        self.queue
            .enable_notification(&*memory)
            .map_err(|source| self.ring_error(source))
    }

    /// Whether the rings lie in guest memory, for tests of the transports.
    #[cfg(test)]
    pub(crate) fn is_valid(&self) -> bool {
        self.queue.is_valid(&*self.memory.memory())
    }

    /// Whether the driver offers indirect-free event suppression (VIRTIO_RING_F_EVENT_IDX was agreed on).
    pub fn event_idx_enabled(&self) -> bool {
        self.queue.event_idx_enabled()
    }

    /// The next entry of the available ring the device will look at.
    pub fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Holds [`Self::next_avail`] as it was when the queue was dropped: for a transport that has given the queue away and
    /// hears of its end only by the device's deactivation.
    pub fn position(&self) -> Arc<AtomicU16> {
        Arc::clone(&self.position)
    }

    /// Reports that this queue is beyond use: logs why and sets DEVICE_NEEDS_RESET. The worker must not touch the queue
    /// afterwards.
    pub fn fail(&self, device: &str, error: &QueueError) {
        tracing::error!(
            device,
            queue = self.index,
            error = error as &(dyn std::error::Error + 'static),
            "device stopped"
        );
        if let Err(error) = self.interrupt.signal(InterruptCause::NeedsReset) {
            tracing::error!(device, %error, "the driver could not be told");
        }
    }

    /// An error that names this queue, for a chain that breaks the device's rules.
    pub fn chain_error(&self, what: &'static str) -> QueueError {
        QueueError::Chain {
            index: self.index,
            what,
        }
    }

    fn ring_error(&self, source: virtio_queue::Error) -> QueueError {
        QueueError::Ring {
            index: self.index,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::test_driver::TestQueue, *};

    #[test]
    fn a_chain_goes_round() {
        let mut driver = TestQueue::new(8);
        let mut queue = driver.device_queue(0);
        assert!(queue.pop().unwrap().is_none());

        let head = driver.offer(&[b"hello"], &[16]);
        let chain = queue.pop().unwrap().unwrap();
        assert_eq!(chain.head_index(), head);
        queue.add_used(head, 4).unwrap();
        queue.notify().unwrap();

        assert_eq!(driver.take_used(), Some((head, 4)));
        assert_eq!(driver.take_used(), None);
        assert_eq!(driver.interrupts(), vec![InterruptCause::Queue(0)]);
    }

    #[test]
    fn chains_used_together_appear_together() {
        for event_idx in [false, true] {
            let mut driver = TestQueue::new(4);
            let mut queue = driver.device_queue_with(event_idx);
            // Several rounds, so that the ring wraps in the middle of a group.
            for round in 0..5 {
                let heads = [(); 3].map(|()| driver.offer(&[], &[8]));
                for _ in heads {
                    queue.pop().unwrap().unwrap();
                }
                queue
                    .add_used_together(&heads.map(|head| (head, u32::from(head) + round)))
                    .unwrap();
                queue.notify().unwrap();
                assert_eq!(driver.interrupts(), vec![InterruptCause::Queue(0)]);
                for head in heads {
                    assert_eq!(driver.take_used(), Some((head, u32::from(head) + round)));
                }
                assert_eq!(driver.take_used(), None);
            }
            queue.add_used_together(&[]).unwrap();
            assert!(queue.add_used_together(&[(4, 0), (0, 0)]).is_err());
            assert!(queue.add_used_together(&[(0, 0), (4, 0)]).is_err());
            assert_eq!(driver.take_used(), None);
        }
    }

    #[test]
    fn a_driver_that_wants_no_interrupt_gets_none() {
        let mut driver = TestQueue::new(8);
        let mut queue = driver.device_queue(0);
        let mut use_one = |driver: &mut TestQueue| {
            let head = driver.offer(&[b"x"], &[]);
            queue.pop().unwrap().unwrap();
            queue.add_used(head, 0).unwrap();
            queue.notify().unwrap();
            queue.notify().unwrap();
        };
        driver.set_avail_flags(1);
        use_one(&mut driver);
        assert_eq!(driver.interrupts(), vec![]);
        driver.set_avail_flags(0);
        use_one(&mut driver);
        assert_eq!(driver.interrupts(), vec![InterruptCause::Queue(0)]);
    }

    #[test]
    fn an_interrupt_is_wanted_once_for_all_that_was_used() {
        for event_idx in [false, true] {
            let mut driver = TestQueue::new(8);
            let mut queue = driver.device_queue_with(event_idx);
            assert!(!queue.wants_interrupt().unwrap(), "nothing was used");
            for _ in 0..2 {
                let head = driver.offer(&[b"x"], &[]);
                queue.pop().unwrap().unwrap();
                queue.add_used(head, 0).unwrap();
            }
            assert!(queue.wants_interrupt().unwrap());
            assert!(!queue.wants_interrupt().unwrap(), "it has been asked for");
            assert_eq!(driver.interrupts(), vec![], "and not raised by that");
            queue.interrupter().raise().unwrap();
            assert_eq!(driver.interrupts(), vec![InterruptCause::Queue(0)]);
        }
    }

    #[test]
    fn an_available_index_that_runs_ahead_is_an_error() {
        let mut driver = TestQueue::new(8);
        let mut queue = driver.device_queue(0);
        driver.set_avail_idx(9);
        assert!(matches!(queue.pop(), Err(QueueError::Ring { .. })));
    }

    #[test]
    fn undo_offers_the_same_chain_again() {
        let mut driver = TestQueue::new(8);
        let mut queue = driver.device_queue(0);
        let head = driver.offer(&[b"x"], &[]);
        assert_eq!(queue.pop().unwrap().unwrap().head_index(), head);
        queue.undo_pop();
        assert_eq!(queue.pop().unwrap().unwrap().head_index(), head);
    }
}
