use std::{io::Read, os::unix::net::UnixStream};

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
    device: Console,
    input: ConsoleInput,
    screen: UnixStream,
}

impl Setup {
    fn new() -> Setup {
        let (ours, screen) = UnixStream::pair().unwrap();
        let (device, input) = console(Box::new(ours)).unwrap();
        Setup {
            machine: TestMachine::new(),
            event_loop: EventLoop::spawn("test").unwrap(),
            device,
            input,
            screen,
        }
    }

    fn activate(&mut self) -> (TestQueue, TestQueue) {
        let mut receive = self.machine.queue(0, QUEUE_SIZE);
        let mut transmit = self.machine.queue(1, QUEUE_SIZE);
        let queues = vec![Some(receive.device_queue(0)), Some(transmit.device_queue(1))];
        self.device
            .activate(self.machine.activation(queues, 0, &self.event_loop))
            .unwrap();
        (receive, transmit)
    }

    fn screen_shows(&mut self, expected: &str) {
        let mut text = vec![0; expected.len()];
        self.screen.read_exact(&mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}

#[test]
fn what_the_guest_prints_is_shown() {
    let mut setup = Setup::new();
    let (_receive, mut transmit) = setup.activate();
    let head = transmit.offer(&[b"Linux version ", b"6.12"], &[]);
    transmit.kick();
    assert_eq!(transmit.wait_used(), (head, 0));
    setup.screen_shows("Linux version 6.12");

    let long = "0123456789".repeat(500);
    let head = transmit.offer(&[long.as_bytes()], &[]);
    transmit.kick();
    assert_eq!(transmit.wait_used(), (head, 0));
    setup.screen_shows(&long);
}

#[test]
fn a_huge_chain_is_cut_short_with_a_note() {
    let mut setup = Setup::new();
    let (_receive, mut transmit) = setup.activate();
    let head = transmit.offer(&[&vec![b'.'; 100_000]], &[]);
    transmit.kick();
    assert_eq!(transmit.wait_used(), (head, 0));
    let mut text = String::new();
    while !text.contains("bytes of output lost]") {
        let mut piece = [0; 4096];
        let length = setup.screen.read(&mut piece).unwrap();
        text.push_str(std::str::from_utf8(&piece[..length]).unwrap());
    }
    let dots = text.bytes().filter(|byte| *byte == b'.').count();
    assert!(
        text.contains(&format!("[{} bytes", 100_000 - dots)),
        "{dots} were shown"
    );
}

#[test]
fn the_guest_goes_on_when_nobody_reads() {
    let mut setup = Setup::new();
    let (_receive, mut transmit) = setup.activate();
    // Far more than the socket and the buffer hold; nobody reads the screen.
    let page = vec![b'.'; 4096];
    for _ in 0..400 {
        let head = transmit.offer(&[&page], &[]);
        transmit.kick();
        assert_eq!(transmit.wait_used(), (head, 0));
    }
}

#[test]
fn what_is_typed_arrives_whenever_there_is_room() {
    let mut setup = Setup::new();
    // Typed before the guest is there.
    assert_eq!(setup.input.write(b"early").unwrap(), 5);
    let (mut receive, _transmit) = setup.activate();
    let head = receive.offer(&[], &[3]);
    let second = receive.offer(&[], &[2, 100]);
    let third = receive.offer(&[], &[100]);
    receive.kick();
    assert_eq!(receive.wait_used(), (head, 3));
    assert_eq!(receive.wait_used(), (second, 2));
    assert_eq!(receive.buffer(head, 0), b"ear");
    assert_eq!(receive.buffer(second, 0), b"ly");

    assert_eq!(setup.input.write(b"late").unwrap(), 4);
    assert_eq!(receive.wait_used(), (third, 4));
    assert_eq!(&receive.buffer(third, 0)[..4], b"late");

    // A guest that does not read.
    assert_eq!(setup.input.write(&[b'a'; 5000]).unwrap(), 4096);
    assert_eq!(setup.input.write(b"b").unwrap(), 0);
    let fourth = receive.offer(&[], &[8192]);
    receive.kick();
    assert_eq!(receive.wait_used(), (fourth, 4096));
    assert_eq!(setup.input.write(b"b").unwrap(), 1);
}

#[test]
fn an_emergency_write_needs_no_queue() {
    let mut setup = Setup::new();
    for byte in b"oops" {
        setup.device.write_config(EMERG_WRITE_OFFSET, &[*byte, 0, 0, 0]);
    }
    setup.device.write_config(0, b"x");
    setup.device.write_config(EMERG_WRITE_OFFSET, &[]);
    setup.screen_shows("oops");
}

#[test]
fn it_works_again_after_a_reset() {
    let mut setup = Setup::new();
    for _ in 0..3 {
        let (mut receive, mut transmit) = setup.activate();
        let printed = transmit.offer(&[b"again"], &[]);
        transmit.kick();
        assert_eq!(transmit.wait_used(), (printed, 0));
        setup.screen_shows("again");
        let typed = receive.offer(&[], &[8]);
        receive.kick();
        setup.input.write(b"key").unwrap();
        assert_eq!(receive.wait_used(), (typed, 3));

        setup.device.deactivate();
        receive.offer(&[], &[8]);
        receive.kick();
        transmit.offer(&[b"nobody"], &[]);
        transmit.kick();
        assert_eq!((receive.take_used(), transmit.take_used()), (None, None));
    }
}

#[test]
fn hostile_chains_stop_the_device_until_a_reset() {
    let mut setup = Setup::new();
    for queue in 0..2 {
        let (mut receive, mut transmit) = setup.activate();
        setup.input.write(b"key").unwrap();
        let hostile = if queue == 0 { &mut receive } else { &mut transmit };
        hostile.offer_raw(&[(GuestAddress(u64::MAX - 8), 16, queue == 0)]);
        hostile.kick();
        setup.machine.interrupt.wait_for(InterruptCause::NeedsReset);
        setup.device.deactivate();
    }
    let (_receive, mut transmit) = setup.activate();
    // The wrong direction is harmless: there is nothing to print in it.
    let head = transmit.offer(&[], &[16]);
    transmit.kick();
    assert_eq!(transmit.wait_used(), (head, 0));
    let head = transmit.offer(&[b"fine"], &[]);
    transmit.kick();
    assert_eq!(transmit.wait_used(), (head, 0));
    setup.screen_shows("fine");
}
