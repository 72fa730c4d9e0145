//! Plays the driver over register reads and writes.

use std::sync::{Mutex, mpsc};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    registers::{self as reg, status},
    transport::*,
    *,
};
use crate::{
    event_loop::EventLoop,
    memory::GuestRam,
    virtio::{
        ActivateError, Activation, Interrupt, InterruptCause, VirtQueue, VirtioDevice,
        device::read_config_bytes,
    },
};
use std::{io, sync::Arc};

const MEMORY: u64 = 1 << 20;
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
const DEVICE_FEATURE: u64 = 1 << 5;
const DEVICE_FEATURE_HIGH: u64 = 1 << 40;

/// What happened to the device and its notifications.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// Active with these features; of each queue its size, if there.
    Activated(u64, Vec<Option<u16>>),
    Deactivated,
    Connected(u16),
    Disconnected(u16),
    Config(u64, Vec<u8>),
}

/// A device that reports, and holds its queues while active.
struct Recorder {
    events: mpsc::Sender<Event>,
    active: Arc<Mutex<Option<Activation>>>,
    refuse: bool,
}

impl VirtioDevice for Recorder {
    fn device_id(&self) -> u32 {
        42
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[16, 64]
    }
    fn features(&self) -> u64 {
        DEVICE_FEATURE | DEVICE_FEATURE_HIGH
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&[1, 2, 3, 4, 5, 6, 7, 8], offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.events.send(Event::Config(offset, data.to_vec())).unwrap();
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.refuse {
            return Err(ActivateError::MissingQueue(0));
        }
        let mut active = self.active.lock().unwrap();
        assert!(active.is_none(), "activated twice");
        let sizes = activation
            .queues
            .iter()
            .map(|queue| queue.as_ref().map(VirtQueue::size))
            .collect();
        self.events
            .send(Event::Activated(activation.features, sizes))
            .unwrap();
        *active = Some(activation);
        Ok(())
    }
    fn deactivate(&mut self) {
        *self.active.lock().unwrap() = None;
        self.events.send(Event::Deactivated).unwrap();
    }
}

struct RecordedDoorbells(mpsc::Sender<Event>);

impl Doorbells for RecordedDoorbells {
    fn connect(&self, queue: u16, _: &EventFd) -> io::Result<()> {
        self.0.send(Event::Connected(queue)).unwrap();
        Ok(())
    }
    fn disconnect(&self, queue: u16, _: &EventFd) -> io::Result<()> {
        self.0.send(Event::Disconnected(queue)).unwrap();
        Ok(())
    }
}

/// A driver with its device.
struct Driver {
    transport: MmioTransport,
    events: mpsc::Receiver<Event>,
    active: Arc<Mutex<Option<Activation>>>,
    line: EventFd,
    _event_loop: EventLoop,
}

impl Driver {
    fn new() -> Driver {
        Driver::with(false)
    }

    fn with(refuse: bool) -> Driver {
        let (send, events) = mpsc::channel();
        let active = Arc::default();
        let device = Recorder {
            events: send.clone(),
            active: Arc::clone(&active),
            refuse,
        };
        let memory = crate::memory::allocate(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let event_loop = EventLoop::spawn("test").unwrap();
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let transport = MmioTransport::new(
            Box::new(device),
            GuestRam::new(memory),
            event_loop.handle(),
            Box::new(RecordedDoorbells(send)),
            Arc::new(MmioInterrupt::new(line.try_clone().unwrap())),
        );
        Driver {
            transport,
            events,
            active,
            line,
            _event_loop: event_loop,
        }
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn add_status(&mut self, bit: u32) -> u32 {
        let status = self.read(reg::STATUS);
        self.write(reg::STATUS, status | bit);
        self.read(reg::STATUS)
    }

    fn set_features(&mut self, features: u64) {
        self.write(reg::DRIVER_FEATURES_SEL, 0);
        self.write(reg::DRIVER_FEATURES, features as u32);
        self.write(reg::DRIVER_FEATURES_SEL, 1);
        self.write(reg::DRIVER_FEATURES, (features >> 32) as u32);
    }

    /// Up to FEATURES_OK; whether the device agreed.
    fn negotiate(&mut self, features: u64) -> bool {
        self.write(reg::STATUS, 0);
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        self.set_features(features);
        self.add_status(status::FEATURES_OK) & status::FEATURES_OK != 0
    }

    fn set_up_queue(&mut self, index: u32, size: u32, base: u64) {
        self.write(reg::QUEUE_SEL, index);
        assert_eq!(self.read(reg::QUEUE_READY), 0);
        self.write(reg::QUEUE_SIZE, size);
        for (low, address) in [
            (reg::QUEUE_DESC_LOW, base),
            (reg::QUEUE_DRIVER_LOW, base + 0x1000),
            (reg::QUEUE_DEVICE_LOW, base + 0x2000),
        ] {
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
        self.write(reg::QUEUE_READY, 1);
        assert_eq!(self.read(reg::QUEUE_READY), 1);
    }

    /// The whole of 3.1.1 with both queues.
    fn start(&mut self, features: u64) -> u32 {
        assert!(self.negotiate(features));
        self.set_up_queue(0, 16, 0x1_0000);
        self.set_up_queue(1, 32, 0x2_0000);
        self.add_status(status::DRIVER_OK)
    }

    fn events(&self) -> Vec<Event> {
        self.events.try_iter().collect()
    }
}

const RUNNING: u32 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;

#[test]
fn the_device_identifies_itself() {
    let mut driver = Driver::new();
    assert_eq!(driver.read(reg::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(reg::VERSION), 2);
    assert_eq!(driver.read(reg::DEVICE_ID), 42);
    assert_eq!(driver.read(reg::STATUS), 0);
    for shared_memory in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(driver.read(shared_memory), u32::MAX, "no shared memory region");
    }
}

#[test]
fn features_of_device_and_transport_are_offered() {
    let mut driver = Driver::new();
    driver.write(reg::DEVICE_FEATURES_SEL, 0);
    let low = driver.read(reg::DEVICE_FEATURES);
    driver.write(reg::DEVICE_FEATURES_SEL, 1);
    let high = driver.read(reg::DEVICE_FEATURES);
    assert_eq!(
        u64::from(high) << 32 | u64::from(low),
        DEVICE_FEATURE | DEVICE_FEATURE_HIGH | VERSION_1 | EVENT_IDX | INDIRECT
    );
    driver.write(reg::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(reg::DEVICE_FEATURES), 0);
}

#[test]
fn a_driver_starts_the_device() {
    let mut driver = Driver::new();
    let features = VERSION_1 | EVENT_IDX | DEVICE_FEATURE | DEVICE_FEATURE_HIGH;
    assert_eq!(driver.start(features), RUNNING);
    assert_eq!(
        driver.events(),
        [
            Event::Connected(0),
            Event::Connected(1),
            Event::Activated(features, vec![Some(16), Some(32)])
        ]
    );
    let active = driver.active.lock().unwrap();
    let queues = &active.as_ref().unwrap().queues;
    assert!(queues[0].as_ref().unwrap().event_idx_enabled());
}

#[test]
fn a_queue_left_out_is_none() {
    let mut driver = Driver::new();
    assert!(driver.negotiate(VERSION_1));
    driver.set_up_queue(1, 64, 0x1_0000);
    assert_eq!(driver.add_status(status::DRIVER_OK), RUNNING);
    assert!(
        driver
            .events()
            .contains(&Event::Activated(VERSION_1, vec![None, Some(64)]))
    );
}

#[test]
fn features_not_offered_are_refused() {
    let mut driver = Driver::new();
    assert!(!driver.negotiate(VERSION_1 | 1 << 7));
    assert!(!driver.negotiate(DEVICE_FEATURE), "predates 1.0");
    assert!(driver.negotiate(VERSION_1));
}

#[test]
fn a_device_does_not_start_before_features_are_agreed() {
    let mut driver = Driver::new();
    driver.write(reg::STATUS, status::DRIVER_OK);
    driver.write(
        reg::STATUS,
        status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK,
    );
    assert_eq!(driver.read(reg::STATUS), status::ACKNOWLEDGE | status::DRIVER);
    assert_eq!(driver.events(), []);
}

#[test]
fn features_do_not_change_once_agreed() {
    let mut driver = Driver::new();
    assert!(driver.negotiate(VERSION_1));
    driver.set_features(VERSION_1 | DEVICE_FEATURE);
    driver.set_up_queue(0, 16, 0x1_0000);
    driver.add_status(status::DRIVER_OK);
    assert!(
        driver
            .events()
            .contains(&Event::Activated(VERSION_1, vec![Some(16), None]))
    );
}

#[test]
fn a_bit_of_the_status_is_only_cleared_by_reset() {
    let mut driver = Driver::new();
    driver.start(VERSION_1);
    driver.write(reg::STATUS, status::ACKNOWLEDGE);
    assert_eq!(driver.read(reg::STATUS), RUNNING);
    driver.write(reg::STATUS, 0);
    assert_eq!(driver.read(reg::STATUS), 0);
}

#[test]
fn a_broken_queue_asks_for_a_reset_and_can_be_set_up_again() {
    for (size, base) in [(3, 0x1_0000), (128, 0x1_0000), (16, MEMORY), (16, 0x1_0008)] {
        let mut driver = Driver::new();
        assert!(driver.negotiate(VERSION_1));
        driver.set_up_queue(1, 16, 0x2_0000);
        driver.set_up_queue(0, size, base);
        let after = driver.add_status(status::DRIVER_OK);
        assert_eq!(after, RUNNING | status::DEVICE_NEEDS_RESET, "{size} at {base:#x}");
        assert_eq!(driver.line.read().unwrap(), 1, "the driver is told");
        assert_eq!(driver.read(reg::INTERRUPT_STATUS), 2);
        assert!(
            !driver
                .events()
                .iter()
                .any(|event| matches!(event, Event::Activated(..)))
        );

        assert_eq!(driver.start(VERSION_1), RUNNING);
        assert_eq!(driver.events().len(), 3);
    }
}

#[test]
fn a_device_that_refuses_asks_for_a_reset() {
    let mut driver = Driver::with(true);
    assert_eq!(driver.start(VERSION_1), RUNNING | status::DEVICE_NEEDS_RESET);
    assert_eq!(
        driver.events(),
        [
            Event::Connected(0),
            Event::Connected(1),
            Event::Disconnected(0),
            Event::Disconnected(1)
        ]
    );
    driver.write(reg::STATUS, 0);
    assert_eq!(driver.read(reg::STATUS), 0);
    assert_eq!(driver.events(), [], "it was never active");
}

#[test]
fn reset_and_start_again_many_times() {
    let mut driver = Driver::new();
    for _ in 0..20 {
        assert_eq!(driver.start(VERSION_1), RUNNING);
        driver.events();
        driver.write(reg::STATUS, 0);
        assert_eq!(
            driver.events(),
            [Event::Disconnected(0), Event::Disconnected(1), Event::Deactivated]
        );
        driver.write(reg::QUEUE_SEL, 1);
        assert_eq!(driver.read(reg::QUEUE_READY), 0);
    }
}

#[test]
fn a_reset_forgets_interrupts() {
    let mut driver = Driver::new();
    driver.start(VERSION_1);
    let interrupt = driver.active.lock().unwrap().as_ref().unwrap().interrupt.clone();
    interrupt.signal(InterruptCause::Queue(0)).unwrap();
    interrupt.signal(InterruptCause::NeedsReset).unwrap();
    assert_eq!(driver.read(reg::INTERRUPT_STATUS), 3);
    assert_ne!(driver.read(reg::STATUS) & status::DEVICE_NEEDS_RESET, 0);
    driver.write(reg::INTERRUPT_ACK, 1);
    assert_eq!(driver.read(reg::INTERRUPT_STATUS), 2);
    driver.write(reg::STATUS, 0);
    assert_eq!(
        (driver.read(reg::INTERRUPT_STATUS), driver.read(reg::STATUS)),
        (0, 0)
    );
}

#[test]
fn a_configuration_change_shows_in_the_generation() {
    let mut driver = Driver::new();
    driver.start(VERSION_1);
    let before = driver.read(reg::CONFIG_GENERATION);
    let interrupt = driver.active.lock().unwrap().as_ref().unwrap().interrupt.clone();
    interrupt.signal(InterruptCause::Config).unwrap();
    assert_ne!(driver.read(reg::CONFIG_GENERATION), before);
}

#[test]
fn kicks_reach_their_queue() {
    let mut driver = Driver::new();
    driver.start(VERSION_1);
    driver.write(reg::QUEUE_NOTIFY, 1);
    driver.write(reg::QUEUE_NOTIFY, 2);
    driver.write(reg::QUEUE_NOTIFY, 0x1_0000);
    assert_eq!(kicks(&driver), [0, 1]);
}

#[test]
fn a_kick_before_the_start_is_not_lost() {
    let mut driver = Driver::new();
    assert!(driver.negotiate(VERSION_1));
    driver.set_up_queue(0, 16, 0x1_0000);
    driver.set_up_queue(1, 16, 0x2_0000);
    driver.write(reg::QUEUE_NOTIFY, 0);
    driver.add_status(status::DRIVER_OK);
    assert_eq!(kicks(&driver), [1, 0]);
}

/// The kicks each queue has got.
fn kicks(driver: &Driver) -> Vec<u64> {
    use std::os::fd::AsRawFd;
    let active = driver.active.lock().unwrap();
    let queues = &active.as_ref().unwrap().queues;
    queues
        .iter()
        .map(|queue| {
            let fd = queue.as_ref().unwrap().kick_fd().as_raw_fd();
            let mut count = [0; 8];
            nix_read(fd, &mut count).map_or(0, |()| u64::from_le_bytes(count))
        })
        .collect()
}

fn nix_read(fd: i32, bytes: &mut [u8]) -> Option<()> {
    // SAFETY: the buffer has that length, and the descriptor is open: its queue is held by the caller.
    let length = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) };
    (length == bytes.len() as isize).then_some(())
}

#[test]
fn the_configuration_is_read_and_written_at_every_width() {
    let mut driver = Driver::new();
    for width in [1, 2, 4, 8] {
        let mut data = vec![0; width];
        driver.transport.read(reg::CONFIG, &mut data);
        assert_eq!(data, (1..=width as u8).collect::<Vec<_>>());
        driver.transport.write(reg::CONFIG + 2, &data);
        assert_eq!(driver.events(), [Event::Config(2, data)]);
    }
    let mut data = [0xaa; 4];
    driver.transport.read(reg::CONFIG + 6, &mut data);
    assert_eq!(data, [7, 8, 0, 0], "zero past the end");
}

#[test]
fn registers_take_nothing_but_aligned_words() {
    let mut driver = Driver::new();
    let mut byte = [0xaa];
    driver.transport.read(reg::MAGIC_VALUE, &mut byte);
    assert_eq!(byte, [0]);
    let mut eight = [0xaa; 8];
    driver.transport.read(reg::MAGIC_VALUE, &mut eight);
    assert_eq!(eight, [0; 8]);
    assert_eq!(driver.read(2), 0);
    driver.transport.write(reg::STATUS, &[1]);
    assert_eq!(driver.read(reg::STATUS), 0);
}

#[test]
fn a_queue_that_is_ready_or_running_does_not_change() {
    let mut driver = Driver::new();
    driver.start(VERSION_1);
    driver.write(reg::QUEUE_SEL, 0);
    driver.write(reg::QUEUE_SIZE, 1);
    driver.write(reg::QUEUE_READY, 0);
    assert_eq!(
        driver.read(reg::QUEUE_READY),
        1,
        "a single queue cannot be stopped"
    );
}

#[test]
fn the_most_entries_of_each_queue_are_told() {
    let mut driver = Driver::new();
    for (queue, expected) in [(0, 16), (1, 64), (2, 0), (u32::MAX, 0)] {
        driver.write(reg::QUEUE_SEL, queue);
        assert_eq!(driver.read(reg::QUEUE_SIZE_MAX), expected);
    }
}

#[test]
fn a_queue_works_from_end_to_end() {
    let mut driver = Driver::new();
    driver.start(VERSION_1);
    let mut active = driver.active.lock().unwrap();
    let queue = active.as_mut().unwrap().queues[0].as_mut().unwrap();
    let memory = queue.memory();
    // One readable descriptor, made available.
    memory.write_obj(0x3_0000u64, GuestAddress(0x1_0000)).unwrap();
    memory.write_obj(64u32, GuestAddress(0x1_0008)).unwrap();
    memory.write_obj(0u16, GuestAddress(0x1_1004)).unwrap();
    memory.write_obj(1u16, GuestAddress(0x1_1002)).unwrap();
    let chain = queue.pop().unwrap().unwrap();
    queue.add_used(chain.head_index(), 7).unwrap();
    queue.notify().unwrap();
    assert_eq!(memory.read_obj::<u32>(GuestAddress(0x1_2008)).unwrap(), 7);
    assert_eq!(driver.line.read().unwrap(), 1);
}

#[test]
fn the_bus_finds_devices_and_nothing_between() {
    let bus = MmioBus::new(
        0x1000,
        0x200,
        vec![Driver::new().transport, Driver::new().transport],
    );
    let read = |address| {
        let mut data = [0; 4];
        bus.read(address, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!((read(0x1000), read(0x1200)), (reg::MAGIC, reg::MAGIC));
    assert_eq!(
        (read(0xffc), read(0x1400), read(u64::MAX - 3)),
        (u32::MAX, u32::MAX, u32::MAX)
    );
    bus.write(0x1270, &status::ACKNOWLEDGE.to_le_bytes());
    assert_eq!((read(0x1070), read(0x1270)), (0, status::ACKNOWLEDGE));
    assert_eq!(bus.shut_down(1), Some(42));
    assert_eq!(read(0x1270), 0);
    assert_eq!(bus.shut_down(2), None);
}

/// Registers that matter, their neighbours, and anything.
fn any_offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => prop::sample::select(vec![
            reg::DRIVER_FEATURES_SEL, reg::DRIVER_FEATURES, reg::QUEUE_SEL, reg::QUEUE_SIZE, reg::QUEUE_READY,
            reg::QUEUE_NOTIFY, reg::INTERRUPT_ACK, reg::STATUS, reg::QUEUE_DESC_LOW, reg::QUEUE_DESC_HIGH,
            reg::QUEUE_DRIVER_LOW, reg::QUEUE_DRIVER_HIGH, reg::QUEUE_DEVICE_LOW, reg::QUEUE_DEVICE_HIGH,
        ]),
        1 => 0..0x300u64,
    ]
}

fn any_value() -> impl Strategy<Value = u32> {
    prop_oneof![
        prop::sample::select(vec![0, 1, 2, 3, 11, 15, 16, 64, 128, 0x1_0000, 0x2_0000]),
        0..0x20_0000u32,
        any::<u32>(),
    ]
}

proptest! {
    /// Whatever is written: no panic, and what is activated is sound.
    #[test]
    fn no_write_activates_a_broken_queue(
        writes in prop::collection::vec((any_offset(), any_value()), 0..200),
        prepared in any::<bool>(),
    ) {
        let mut driver = Driver::new();
        if prepared {
            prop_assert!(driver.negotiate(VERSION_1));
            driver.set_up_queue(0, 16, 0x1_0000);
            driver.write(reg::QUEUE_READY, 0);
        }
        for (offset, value) in writes {
            driver.write(offset, value);
            driver.read(offset);
            let active = driver.active.lock().unwrap();
            let Some(activation) = active.as_ref() else { continue };
            for (queue, max) in activation.queues.iter().zip([16, 64]) {
                if let Some(queue) = queue {
                    prop_assert!(queue.size().is_power_of_two() && queue.size() <= max);
                    prop_assert!(queue.is_valid());
                }
            }
            drop(active);
            prop_assert_eq!(driver.read(reg::STATUS) & RUNNING, RUNNING);
        }
    }

    /// Any access of any width anywhere.
    #[test]
    fn no_access_panics(accesses in prop::collection::vec((any::<u64>(), 0usize..9, any::<bool>()), 0..50)) {
        let mut driver = Driver::new();
        for (offset, width, write) in accesses {
            let mut data = vec![0xff; width];
            if write {
                driver.transport.write(offset, &data);
            } else {
                driver.transport.read(offset, &mut data);
            }
        }
    }
}
