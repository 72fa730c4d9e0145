use vm_memory::GuestAddress;

use super::*;
use crate::{
    event_loop::EventLoop,
    virtio::{
        InterruptCause,
        test_driver::{TestMachine, TestQueue},
    },
};

struct Setup {
    machine: TestMachine,
    event_loop: EventLoop,
    device: Rng,
}

impl Setup {
    fn new() -> Setup {
        Setup {
            machine: TestMachine::new(),
            event_loop: EventLoop::spawn("test").unwrap(),
            device: Rng::new(),
        }
    }

    fn activate(&mut self) -> TestQueue {
        let mut driver = self.machine.queue(0, QUEUE_SIZE);
        let queue = driver.device_queue(0);
        self.device
            .activate(self.machine.activation(vec![Some(queue)], 0, &self.event_loop))
            .unwrap();
        driver
    }
}

#[test]
fn requests_are_answered_in_full_up_to_the_limit() {
    let mut setup = Setup::new();
    let mut driver = setup.activate();

    let small = driver.offer(&[], &[20, 44]);
    driver.kick();
    assert_eq!(driver.wait_used(), (small, 64));
    let bytes = [driver.buffer(small, 0), driver.buffer(small, 1)].concat();
    assert!(
        bytes.iter().any(|byte| *byte != bytes[0]),
        "64 equal random bytes"
    );

    let big = driver.offer(&[], &[1 << 20]);
    driver.kick();
    assert_eq!(driver.wait_used(), (big, 4096));
    assert!(driver.buffer(big, 0)[4096..].iter().all(|byte| *byte == 0));
}

#[test]
fn requests_from_before_activation_are_answered() {
    let mut setup = Setup::new();
    let mut driver = setup.machine.queue(0, QUEUE_SIZE);
    let queue = driver.device_queue(0);
    let head = driver.offer(&[], &[8]);
    setup
        .device
        .activate(setup.machine.activation(vec![Some(queue)], 0, &setup.event_loop))
        .unwrap();
    assert_eq!(driver.wait_used(), (head, 8));
}

#[test]
fn a_chain_without_room_gets_nothing() {
    let mut setup = Setup::new();
    let mut driver = setup.activate();
    let head = driver.offer(&[b"not for you"], &[]);
    driver.kick();
    assert_eq!(driver.wait_used(), (head, 0));
}

#[test]
fn a_malformed_chain_stops_the_device_until_it_is_reset() {
    let mut setup = Setup::new();
    let mut driver = setup.activate();
    driver.offer_raw(&[(GuestAddress(u64::MAX - 10), 4, true)]);
    driver.kick();
    setup.machine.interrupt.wait_for(InterruptCause::NeedsReset);

    setup.device.deactivate();
    let mut driver = setup.activate();
    let head = driver.offer(&[], &[8]);
    driver.kick();
    assert_eq!(driver.wait_used(), (head, 8));
}

#[test]
fn deactivated_it_touches_nothing() {
    let mut setup = Setup::new();
    let mut driver = setup.activate();
    setup.device.deactivate();
    setup.device.deactivate();
    driver.offer(&[], &[8]);
    driver.kick();
    assert_eq!(driver.take_used(), None);
}
