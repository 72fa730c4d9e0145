//! What the front end has said of one ring so far.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::EventFd;

use super::memory::MemoryTable;
use crate::virtio::{Interrupt, VirtQueue};

/// The largest ring there is (virtio 1.2, 2.7). The front end, not the device, tells the driver how large a ring may be: QEMU's
/// virtio-mmio says 1024 whatever the device wants.
const MAX_SIZE: u16 = 32768;

/// Addresses of a ring's parts, as the guest knows them.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingAddresses {
    pub(super) descriptors: GuestAddress,
    pub(super) available: GuestAddress,
    pub(super) used: GuestAddress,
}

/// One ring.
pub(super) struct Vring {
    size: u16,
    addresses: Option<RingAddresses>,
    base: u16,
    kick: Option<EventFd>,
    enabled: bool,
    /// Where the device's queue stands, while it has one or since it had.
    position: Option<Arc<AtomicU16>>,
}

impl Vring {
    /// A ring of `size` entries unless said otherwise, of which nothing else is known.
    pub(super) fn new(size: u16) -> Vring {
        Vring {
            size,
            addresses: None,
            base: 0,
            kick: None,
            enabled: false,
            position: None,
        }
    }

    /// Sets the number of entries: a power of two. False when it is not.
    pub(super) fn set_size(&mut self, size: u32) -> bool {
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= MAX_SIZE => {
                self.size = size;
                true
            }
            _ => false,
        }
    }

    /// Sets where the ring is.
    pub(super) fn set_addresses(&mut self, addresses: RingAddresses) {
        self.addresses = Some(addresses);
    }

    /// Sets the entry of the available ring to start from.
    pub(super) fn set_base(&mut self, base: u16) {
        self.base = base;
        self.position = None;
    }

    /// Sets the driver's notifications, which starts the ring; none stops it.
    pub(super) fn set_kick(&mut self, kick: Option<EventFd>) {
        self.kick = kick;
    }

    /// Lets the ring run or not.
    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Stops the ring, which no device has any more, and says where it stands.
    pub(super) fn stop(&mut self) -> u16 {
        self.settle();
        self.kick = None;
        self.base
    }

    /// Takes over where the device has left the ring.
    pub(super) fn settle(&mut self) {
        if let Some(position) = self.position.take() {
            self.base = position.load(Ordering::Acquire);
        }
    }

    /// Whether the front end has begun to set the ring up.
    pub(super) fn is_configured(&self) -> bool {
        self.addresses.is_some()
    }

    /// Whether a device may work on it.
    pub(super) fn is_ready(&self) -> bool {
        self.enabled && self.addresses.is_some() && self.kick.is_some()
    }

    /// The queue for the device.
    pub(super) fn queue(
        &mut self,
        index: u16,
        event_idx: bool,
        memory: &MemoryTable,
        interrupt: Arc<dyn Interrupt>,
    ) -> io::Result<VirtQueue> {
        let missing = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let addresses = self.addresses.ok_or_else(|| missing("the ring has no address"))?;
        let kick = self
            .kick
            .as_ref()
            .ok_or_else(|| missing("the ring has no kick"))?
            .try_clone()?;
        let guest = memory.ram().memory();
        let mut queue = Queue::new(MAX_SIZE).map_err(io::Error::other)?;
        queue.try_set_size(self.size).map_err(io::Error::other)?;
        queue
            .try_set_desc_table_address(addresses.descriptors)
            .map_err(io::Error::other)?;
        queue
            .try_set_avail_ring_address(addresses.available)
            .map_err(io::Error::other)?;
        queue
            .try_set_used_ring_address(addresses.used)
            .map_err(io::Error::other)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if !queue.is_valid(&*guest) {
            return Err(missing("the ring is not all in guest memory"));
        }
        let used_index: u16 = guest
            .load(
                GuestAddress(addresses.used.0 + 2),
                std::sync::atomic::Ordering::Acquire,
            )
            .map_err(io::Error::other)?;
        queue.set_next_avail(self.base);
        queue.set_next_used(u16::from_le(used_index));
        let queue = VirtQueue::new(index, queue, memory.ram().clone(), kick, interrupt);
        self.position = Some(queue.position());
        Ok(queue)
    }
}
