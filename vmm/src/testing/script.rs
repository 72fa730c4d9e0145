//! A driver that does anything to its queues, step by step.

use std::{
    thread,
    time::{Duration, Instant},
};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::{input::Input, machine::machine};
use crate::{
    event_loop::EventLoop,
    virtio::{
        InterruptCause, VirtioDevice,
        test_driver::{TestMachine, TestQueue},
    },
};

const DESC_F_INDIRECT: u16 = 4;
/// Where indirect tables are written: above every buffer of the test driver that is in use.
const TABLES: u64 = 60 << 20;
/// How long a device may take for what it has been given.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a driver puts in a queue: readable buffers, then the sizes of writable ones.
pub(super) type Request = (Vec<Vec<u8>>, Vec<u32>);

/// A device under attack.
pub(super) struct Subject<'a> {
    pub(super) device: &'a mut dyn VirtioDevice,
    /// Makes a request for a queue as a driver would, more or less.
    pub(super) request: &'a mut dyn FnMut(u16, &mut Input<'_>) -> Request,
    /// Something happens on the host.
    pub(super) host: &'a mut dyn FnMut(&mut Input<'_>),
    /// Whether the device works on threads of its own; then it watches every queue that it has.
    pub(super) own_threads: bool,
}

/// Runs what `input` says, over as many resets as it says.
pub(super) fn torment(subject: &mut Subject<'_>, input: &mut Input<'_>) {
    let event_loop = EventLoop::spawn("fuzz").unwrap();
    while !input.is_empty() {
        Session::run(subject, input, &event_loop);
    }
}

/// A driver that does everything right, with all the device's features.
pub(super) fn orderly(
    device: &mut dyn VirtioDevice,
    check: impl FnOnce(&mut dyn VirtioDevice, &mut [TestQueue]),
) {
    let event_loop = EventLoop::spawn("fuzz").unwrap();
    let machine = machine();
    let mut drivers: Vec<TestQueue> = (0..)
        .zip(device.queue_max_sizes())
        .map(|(index, size)| machine.queue(index, *size))
        .collect();
    let queues = drivers
        .iter_mut()
        .map(|driver| Some(driver.device_queue_with(true)))
        .collect();
    let activation = machine.activation(queues, device.features(), &event_loop);
    device.activate(activation).unwrap();
    check(device, &mut drivers);
    device.deactivate();
}

struct Session<'a> {
    machine: TestMachine,
    drivers: Vec<TestQueue>,
    event_loop: &'a EventLoop,
    /// The device has asked for a reset.
    failed: bool,
}

impl Session<'_> {
    /// From an activation to a reset.
    fn run(subject: &mut Subject<'_>, input: &mut Input<'_>, event_loop: &EventLoop) {
        let machine = machine();
        let event_idx = input.chance(128);
        let mut drivers = Vec::new();
        let mut queues = Vec::new();
        for (index, max) in (0..).zip(subject.device.queue_max_sizes()) {
            // The transports see to it that it is a power of two.
            let size = if input.chance(128) {
                *max
            } else {
                (1 << (input.byte() % 8)).min(*max)
            };
            let mut driver = machine.queue(index, size);
            let mut queue = driver.device_queue_with(event_idx);
            if input.chance(20) {
                // As a vhost-user front end may say.
                let (next_avail, next_used) = (input.short(), input.short());
                queue = driver.resume_device_queue(next_avail, next_used);
                driver.set_avail_idx(next_avail);
            }
            queues.push((!input.chance(4)).then_some(queue));
            drivers.push(driver);
        }
        let features = match input.byte() {
            0..180 => subject.device.features(),
            180..220 => 0,
            _ => input.long() & subject.device.features(),
        };
        let mut session = Session {
            machine,
            drivers,
            event_loop,
            failed: false,
        };
        let complete = queues.iter().all(Option::is_some);
        let activation = session.machine.activation(queues, features, event_loop);
        if subject.device.activate(activation).is_ok() {
            // Of a device that has failed, nothing more is to be expected.
            while !input.is_empty() && !input.chance(if session.failed { 100 } else { 4 }) {
                session.step(subject, input, complete);
                session.notice_failure();
            }
            session.settle(subject.own_threads && complete);
        } else {
            assert!(!complete, "a device with all its queues was not activated");
        }
        if input.chance(64) {
            subject.device.suspend();
        } else {
            subject.device.deactivate();
        }
    }

    fn step(&mut self, subject: &mut Subject<'_>, input: &mut Input<'_>, complete: bool) {
        let which = usize::from(input.byte()) % self.drivers.len();
        let driver = &mut self.drivers[which];
        match input.byte() {
            0..70 => {
                let (readable, writable) = (subject.request)(which as u16, input);
                let count = readable.len() + writable.len();
                if (1..=driver.free_descriptors()).contains(&count) {
                    let readable: Vec<&[u8]> = readable.iter().map(Vec::as_slice).collect();
                    driver.offer(&readable, &writable);
                }
                if !input.chance(30) {
                    driver.kick();
                }
            }
            70..90 => {
                let count = usize::from(input.byte() % 8) + 1;
                let mut parts: Vec<_> = (0..count)
                    .map(|_| (GuestAddress(input.address()), input.length(), input.chance(128)))
                    .collect();
                if !input.chance(20) {
                    // As it must be.
                    parts.sort_by_key(|(_, _, writable)| *writable);
                }
                if count <= driver.free_descriptors() {
                    driver.offer_raw(&parts);
                }
            }
            90..110 => {
                let (entry, address, length) = (input.byte(), input.address(), input.length());
                let flags = descriptor_flags(input);
                driver.write_descriptor(u16::from(entry), address, length, flags, next(input));
            }
            110..125 => driver.publish(next(input)),
            125..135 => driver.set_avail_idx(input.short()),
            135..140 => driver.set_avail_flags(input.short()),
            140..160 => self.indirect(which, input),
            160..175 => {
                let length = usize::from(input.byte());
                self.write(input.address(), input.bytes(length));
            }
            175..190 => driver.kick(),
            190..205 => {
                self.settle(subject.own_threads && complete);
            }
            205..220 => {
                let length = usize::from(input.byte() % 9);
                let offset = if input.chance(30) {
                    input.long()
                } else {
                    u64::from(input.byte() % 64)
                };
                subject.device.read_config(offset, &mut vec![0; length]);
                subject.device.write_config(offset, input.bytes(length));
            }
            220..240 => (subject.host)(input),
            _ => while driver.take_used().is_some() {},
        }
    }

    /// A chain through a table of its own (virtio 1.2, 2.7.5.3).
    fn indirect(&mut self, which: usize, input: &mut Input<'_>) {
        let entries = u64::from(input.byte() % 16) + 1;
        let table = TABLES + u64::from(input.byte()) * 16;
        for entry in 0..entries {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&input.address().to_le_bytes());
            bytes[8..12].copy_from_slice(&input.length().to_le_bytes());
            let last = entry + 1 == entries;
            let (flags, next) = if input.chance(40) {
                (descriptor_flags(input), next(input))
            } else {
                (
                    u16::from(!last) | u16::from(input.chance(100)) << 1,
                    entry as u16 + 1,
                )
            };
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&next.to_le_bytes());
            self.write(table + entry * 16, &bytes);
        }
        let length = if input.chance(30) {
            input.length()
        } else {
            entries as u32 * 16
        };
        let driver = &mut self.drivers[which];
        let head = u16::from(input.byte() % 128);
        driver.write_descriptor(head, table, length, DESC_F_INDIRECT, 0);
        driver.publish(head);
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        // The guest's processor stops it from writing where there is no memory.
        let _ = self
            .machine
            .memory
            .memory()
            .write_slice(bytes, GuestAddress(address));
    }

    /// Returns when the device has handled all that it was kicked for. Panics when it does not.
    fn settle(&mut self, own_threads: bool) {
        if own_threads {
            self.wait_for_kicks();
        } else {
            // Twice: what was ready before the second is handled before the second.
            for _ in 0..2 {
                let id = self.event_loop.handle().add(Box::new(Nothing)).unwrap();
                self.event_loop.handle().remove(id).unwrap();
            }
        }
    }

    /// When a kick is taken notice of, everything before the last one has been handled.
    fn wait_for_kicks(&mut self) {
        let limit = Instant::now() + PATIENCE;
        for _ in 0..2 {
            for driver in &self.drivers {
                driver.kick();
            }
            while self.drivers.iter().any(TestQueue::is_kicked) {
                self.notice_failure();
                if self.failed {
                    return;
                }
                assert!(Instant::now() < limit, "the device does not answer any more");
                thread::sleep(Duration::from_micros(20));
            }
        }
    }

    fn notice_failure(&mut self) {
        self.failed |= self
            .machine
            .interrupt
            .take()
            .contains(&InterruptCause::NeedsReset);
    }
}

fn descriptor_flags(input: &mut Input<'_>) -> u16 {
    if input.chance(20) {
        input.short()
    } else {
        u16::from(input.byte() & 7)
    }
}

/// The number of a descriptor.
fn next(input: &mut Input<'_>) -> u16 {
    if input.chance(20) {
        input.short()
    } else {
        u16::from(input.byte() % 64)
    }
}

struct Nothing;

impl MutEventSubscriber for Nothing {
    fn process(&mut self, _: Events, _: &mut EventOps) {}
    fn init(&mut self, _: &mut EventOps) {}
}
