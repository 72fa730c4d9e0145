//! Plays the driver in tests: owns guest memory with one queue's rings in it, offers buffers, and looks at what comes
//! back.

use std::{
    collections::HashMap,
    io,
    os::fd::AsRawFd,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, Interrupt, InterruptCause, VirtQueue};
use crate::{
    event_loop::EventLoop,
    memory::{GuestRam, GuestRegions},
};

/// The memory that [`TestMachine`] has, and that another one has to have from address 0.
pub const MEMORY_SIZE: usize = 64 << 20;
/// Each queue's rings live in a slot of this size at the bottom of memory.
const RINGS_SIZE: u64 = 1 << 20;
const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;

/// Collects interrupts.
#[derive(Default)]
pub struct TestInterrupt {
    seen: Mutex<Vec<InterruptCause>>,
    changed: Condvar,
}

impl Interrupt for TestInterrupt {
    fn signal(&self, cause: InterruptCause) -> io::Result<()> {
        self.seen.lock().unwrap().push(cause);
        self.changed.notify_all();
        Ok(())
    }
}

impl TestInterrupt {
    /// All interrupts so far; forgets them.
    pub fn take(&self) -> Vec<InterruptCause> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// Waits until an interrupt of this cause has come, and forgets all that came. Panics after 30 s.
    pub fn wait_for(&self, cause: InterruptCause) {
        let seen = self.seen.lock().unwrap();
        let limit = std::time::Duration::from_secs(30);
        let (mut seen, timeout) = self
            .changed
            .wait_timeout_while(seen, limit, |seen| !seen.contains(&cause))
            .unwrap();
        assert!(!timeout.timed_out(), "no interrupt {cause:?} came");
        seen.clear();
    }
}

/// The memory and interrupt that the queues of one device share.
#[derive(Clone)]
pub struct TestMachine {
    /// Guest memory: 64 MiB from address 0.
    pub memory: GuestRam,
    /// All interrupts end here.
    pub interrupt: Arc<TestInterrupt>,
}

impl TestMachine {
    /// Blank memory and no interrupt yet.
    #[allow(clippy::new_without_default, reason = "a test says that it makes a machine")]
    pub fn new() -> TestMachine {
        let regions = GuestRegions::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap();
        TestMachine {
            memory: GuestRam::new(regions),
            interrupt: Arc::default(),
        }
    }

    /// What a transport hands a device whose driver agreed on `features`.
    pub fn activation(
        &self,
        queues: Vec<Option<VirtQueue>>,
        features: u64,
        event_loop: &EventLoop,
    ) -> Activation {
        Activation {
            features,
            queues,
            interrupt: self.interrupt.clone(),
            event_loop: event_loop.handle(),
        }
    }

    /// Queue `index` of up to 15, `size` entries long.
    pub fn queue(&self, index: u16, size: u16) -> TestQueue {
        TestQueue::on(self.clone(), index, size)
    }
}

/// One queue, seen from the driver.
pub struct TestQueue {
    machine: TestMachine,
    index: u16,
    size: u16,
    event_idx: bool,
    avail_idx: u16,
    used_seen: u16,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    buffers: HashMap<u16, Vec<(GuestAddress, u32)>>,
    next_buffer: u64,
    buffer_base: u64,
    buffer_end: u64,
    kick: EventFd,
}

impl TestQueue {
    /// A queue with a machine of its own.
    pub fn new(size: u16) -> TestQueue {
        TestMachine::new().queue(0, size)
    }

    fn on(machine: TestMachine, index: u16, size: u16) -> TestQueue {
        assert!(index < 15);
        let share = (MEMORY_SIZE as u64 - 16 * RINGS_SIZE) / 16;
        let buffer_base = 16 * RINGS_SIZE + u64::from(index) * share;
        let queue = TestQueue {
            machine,
            index,
            size,
            event_idx: false,
            avail_idx: 0,
            used_seen: 0,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
            buffers: HashMap::new(),
            next_buffer: buffer_base,
            buffer_base,
            buffer_end: buffer_base + share,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        };
        // The rings may have been used before a reset.
        queue.write(queue.avail(), 0u32);
        queue.write(queue.used(), 0u32);
        queue
    }

    /// The device's end, with VIRTIO_RING_F_EVENT_IDX as given.
    pub fn device_queue_with(&mut self, event_idx: bool) -> VirtQueue {
        self.event_idx = event_idx;
        self.resume_device_queue(0, 0)
    }

    /// The device's end, as it was before but for its positions in the available and the used ring.
    pub fn resume_device_queue(&mut self, next_avail: u16, next_used: u16) -> VirtQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_size(self.size);
        queue.set_event_idx(self.event_idx);
        queue.set_desc_table_address(Some(self.desc(0) as u32), Some(0));
        queue.set_avail_ring_address(Some(self.avail() as u32), Some(0));
        queue.set_used_ring_address(Some(self.used() as u32), Some(0));
        queue.set_ready(true);
        queue.set_next_avail(next_avail);
        queue.set_next_used(next_used);
        let interrupt: Arc<dyn Interrupt> = self.machine.interrupt.clone();
        VirtQueue::new(
            self.index,
            queue,
            self.machine.memory.clone(),
            self.kick.try_clone().unwrap(),
            interrupt,
        )
    }

    /// The device's end, without event suppression. `index` must be this queue's.
    pub fn device_queue(&mut self, index: u16) -> VirtQueue {
        assert_eq!(index, self.index);
        self.device_queue_with(false)
    }

    fn rings(&self) -> u64 {
        u64::from(self.index) * RINGS_SIZE + 0x1000
    }
    fn desc(&self, entry: u16) -> u64 {
        self.rings() + u64::from(entry) * 16
    }
    fn avail(&self) -> u64 {
        self.rings() + 0x8_0000
    }
    fn used(&self) -> u64 {
        self.rings() + 0xa_0000
    }

    fn write<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.machine
            .memory
            .memory()
            .write_obj(value, GuestAddress(address))
            .unwrap();
    }
    fn read<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.machine
            .memory
            .memory()
            .read_obj(GuestAddress(address))
            .unwrap()
    }

    fn allocate(&mut self, length: u32) -> GuestAddress {
        if self.next_buffer + u64::from(length) > self.buffer_end {
            // Old buffers are long used by then; tests that keep more alive than fits would notice garbage.
            self.next_buffer = self.buffer_base;
        }
        let address = self.next_buffer;
        self.next_buffer += u64::from(length).next_multiple_of(16);
        GuestAddress(address)
    }

    /// Offers one chain: `readable` buffers with these contents, then `writable` ones of these sizes. Returns its head.
    /// Does not kick.
    pub fn offer(&mut self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let mut parts = Vec::new();
        for bytes in readable {
            let address = self.allocate(bytes.len() as u32);
            self.machine.memory.memory().write_slice(bytes, address).unwrap();
            parts.push((address, bytes.len() as u32, false));
        }
        for length in writable {
            let address = self.allocate(*length);
            parts.push((address, *length, true));
        }
        self.offer_raw(&parts)
    }

    /// Offers one chain of exactly these (address, length, device-writable) descriptors, hostile ones too.
    pub fn offer_raw(&mut self, parts: &[(GuestAddress, u32, bool)]) -> u16 {
        assert!(
            !parts.is_empty() && parts.len() <= self.free.len(),
            "not enough free descriptors"
        );
        let entries: Vec<u16> = parts.iter().map(|_| self.free.pop().unwrap()).collect();
        for (position, (address, length, writable)) in parts.iter().enumerate() {
            let next = entries.get(position + 1);
            let flags =
                if next.is_some() { DESC_F_NEXT } else { 0 } | if *writable { DESC_F_WRITE } else { 0 };
            self.write_descriptor(
                entries[position],
                address.0,
                *length,
                flags,
                next.copied().unwrap_or_default(),
            );
        }
        let head = entries[0];
        self.buffers.insert(
            head,
            parts
                .iter()
                .map(|(address, length, _)| (*address, *length))
                .collect(),
        );
        self.chains.insert(head, entries);
        self.publish(head);
        head
    }

    /// Writes one descriptor as it is.
    pub fn write_descriptor(&self, entry: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = self.desc(entry);
        self.write(at, address);
        self.write(at + 8, length);
        self.write(at + 12, flags);
        self.write(at + 14, next);
    }

    /// Writes arbitrary bytes over the descriptor table, as descriptors that a bit more often than not point somewhere
    /// in memory: of every 16 bytes the upper half of the address and of the length are cleared where the last byte is
    /// even.
    pub fn scribble(&self, bytes: &[u8]) {
        for (entry, descriptor) in bytes.chunks_exact(16).take(usize::from(self.size)).enumerate() {
            let mut descriptor: [u8; 16] = descriptor.try_into().unwrap();
            if descriptor[15].is_multiple_of(2) {
                descriptor[3..8].fill(0);
                descriptor[10..12].fill(0);
                let (flags, next) = (descriptor[12] & 7, descriptor[14] & 15);
                descriptor[12..].copy_from_slice(&[flags, 0, next, 0]);
            }
            self.write(self.desc(entry as u16), descriptor);
        }
    }

    /// Puts a head on the available ring, whatever it points to.
    pub fn publish(&mut self, head: u16) {
        self.write(self.avail() + 4 + u64::from(self.avail_idx % self.size) * 2, head);
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    /// Sets the available index as it is.
    pub fn set_avail_idx(&mut self, index: u16) {
        self.avail_idx = index;
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.write(self.avail() + 2, index);
    }

    /// Sets the flags of the available ring: 1 asks for no interrupts.
    pub fn set_avail_flags(&self, flags: u16) {
        self.write(self.avail(), flags);
    }

    /// Kicks the device.
    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Whether the device has not taken notice of the last kick yet.
    pub fn is_kicked(&self) -> bool {
        let mut fd = libc::pollfd {
            fd: self.kick.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `fd` is one pollfd that outlives the call.
        unsafe { libc::poll(&raw mut fd, 1, 0) == 1 }
    }

    /// Kicks the device if it has asked for that since the chain offered last, as drivers do (virtio 1.2, 2.7.13).
    pub fn kick_if_wanted(&self) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let wanted = if self.event_idx {
            self.avail_event() == self.avail_idx.wrapping_sub(1)
        } else {
            self.read::<u16>(self.used()) & 1 == 0
        };
        if wanted {
            self.kick();
        }
    }

    /// Waits until the device asks to be kicked for the chain that will be offered next. Panics after 30 s.
    pub fn wait_until_kicks_are_wanted(&self) {
        let begin = Instant::now();
        loop {
            let wanted = if self.event_idx {
                self.avail_event() == self.avail_idx
            } else {
                self.read::<u16>(self.used()) & 1 == 0
            };
            if wanted {
                return;
            }
            assert!(begin.elapsed() < Duration::from_secs(30), "no kicks are wanted");
            std::thread::yield_now();
        }
    }

    fn avail_event(&self) -> u16 {
        self.read(self.used() + 4 + u64::from(self.size) * 8)
    }

    /// Takes the next used element: (head, bytes written). Frees its descriptors.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.read(self.used() + 2);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if index == self.used_seen {
            return None;
        }
        let element = self.used() + 4 + u64::from(self.used_seen % self.size) * 8;
        let head = self.read::<u32>(element) as u16;
        let written = self.read::<u32>(element + 4);
        self.used_seen = self.used_seen.wrapping_add(1);
        if self.event_idx {
            // used_event follows the available ring: interrupt at the next used element.
            self.write(self.avail() + 4 + u64::from(self.size) * 2, self.used_seen);
        }
        if let Some(entries) = self.chains.remove(&head) {
            self.free.extend(entries);
        }
        Some((head, written))
    }

    /// Waits for the next used element. Panics after 30 s.
    pub fn wait_used(&mut self) -> (u16, u32) {
        let interrupt = Arc::clone(&self.machine.interrupt);
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            // Held from the look at the ring to the wait, so that no interrupt slips in between.
            let seen = interrupt.seen.lock().unwrap();
            if let Some(used) = self.take_used() {
                return used;
            }
            let left = limit.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no chain of queue {} was used", self.index);
            // With event suppression the device may stay silent; look again now and then.
            let nap = left.min(Duration::from_millis(20));
            drop(interrupt.changed.wait_timeout(seen, nap).unwrap());
        }
    }

    /// The bytes of buffer `which` of the chain that `head` starts or started.
    pub fn buffer(&self, head: u16, which: usize) -> Vec<u8> {
        let (address, length) = self.buffers[&head][which];
        let mut bytes = vec![0; length as usize];
        self.machine
            .memory
            .memory()
            .read_slice(&mut bytes, address)
            .unwrap();
        bytes
    }

    /// How many descriptors are free.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// All interrupts of the machine so far; forgets them.
    pub fn interrupts(&self) -> Vec<InterruptCause> {
        self.machine.interrupt.take()
    }
}
