use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{atomic::Ordering, mpsc},
};

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;
use crate::{
    event_loop::EventLoop,
    virtio::{
        InterruptCause,
        test_driver::{TestMachine, TestQueue},
    },
};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

struct Setup {
    machine: TestMachine,
    event_loop: EventLoop,
    device: Net,
    link: NetLink,
}

struct Active {
    receive: TestQueue,
    transmit: TestQueue,
}

impl Setup {
    fn new() -> Setup {
        let (device, link) = net(MAC).unwrap();
        Setup {
            machine: TestMachine::new(),
            event_loop: EventLoop::spawn("test").unwrap(),
            device,
            link,
        }
    }

    fn activate(&mut self, features: u64) -> Active {
        let mut receive = self.machine.queue(0, QUEUE_SIZE);
        let mut transmit = self.machine.queue(1, QUEUE_SIZE);
        let queues = vec![Some(receive.device_queue(0)), Some(transmit.device_queue(1))];
        self.device
            .activate(self.machine.activation(queues, features, &self.event_loop))
            .unwrap();
        Active { receive, transmit }
    }

    fn attach(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.link.attach(Some(ours)).unwrap();
        theirs
    }
}

impl Active {
    /// The guest sends a frame; returns its head.
    fn send(&mut self, frame: &[u8]) -> u16 {
        let head = self.transmit.offer(&[&[0; HEADER_SIZE], frame], &[]);
        self.transmit.kick();
        head
    }

    /// The guest offers `count` buffers of `size` bytes.
    fn offer(&mut self, count: usize, size: u32) {
        for _ in 0..count {
            self.receive.offer(&[], &[size]);
        }
        self.receive.kick();
    }

    /// The guest takes the next frame, put together from as many buffers as it says.
    fn take(&mut self) -> Vec<u8> {
        let (head, written) = self.receive.wait_used();
        let mut bytes = self.receive.buffer(head, 0);
        bytes.truncate(written as usize);
        let frame = bytes.split_off(HEADER_SIZE);
        assert_eq!(bytes[..10], [0; 10]);
        let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
        let mut frame = frame;
        for _ in 1..buffers {
            let (head, written) = self
                .receive
                .take_used()
                .expect("all buffers of a frame come at once");
            frame.extend_from_slice(&self.receive.buffer(head, 0)[..written as usize]);
        }
        frame
    }
}

fn write_frame(stream: &mut UnixStream, frame: &[u8]) {
    let framed = [&(frame.len() as u32).to_be_bytes(), frame].concat();
    stream.write_all(&framed).unwrap();
}

fn read_frame(stream: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame
}

/// A frame whose bytes say which one it is.
fn numbered(number: usize, length: usize) -> Vec<u8> {
    let mut frame = vec![number as u8; length];
    frame[..8].copy_from_slice(&(number as u64).to_le_bytes());
    frame
}

#[test]
fn frames_go_both_ways() {
    let mut setup = Setup::new();
    let mut host = setup.attach();
    let mut guest = setup.activate(MERGEABLE);
    guest.offer(4, 2048);
    for length in [MIN_FRAME, 60, 1514] {
        let frame = numbered(length, length);
        let head = guest.send(&frame);
        assert_eq!(read_frame(&mut host), frame);
        assert_eq!(guest.transmit.wait_used(), (head, 0));
        write_frame(&mut host, &frame);
        assert_eq!(guest.take(), frame);
    }
    let bytes = (MIN_FRAME + 60 + 1514) as u64;
    let expected = NetStats {
        frames_from_guest: 3,
        bytes_from_guest: bytes,
        frames_to_guest: 3,
        bytes_to_guest: bytes,
        dropped: 0,
    };
    assert_eq!(setup.link.stats(), expected);
}

#[test]
fn a_large_frame_takes_several_buffers() {
    let mut setup = Setup::new();
    let mut host = setup.attach();
    let mut guest = setup.activate(MERGEABLE);
    let frame = numbered(1, MAX_FRAME);
    write_frame(&mut host, &frame);
    // They come in two portions: the device waits for the second one.
    guest.offer(20, 1526);
    assert_eq!(guest.receive.take_used(), None);
    guest.offer(30, 1526);
    assert!(guest.take() == frame);
    write_frame(&mut host, &numbered(2, 100));
    assert_eq!(guest.take(), numbered(2, 100));
}

#[test]
fn buffers_held_for_a_frame_are_given_back() {
    let mut driver = TestQueue::new(QUEUE_SIZE);
    let mut receiver = Receiver::new(driver.device_queue(0), true);
    for _ in 0..3 {
        driver.offer(&[], &[100]);
    }
    let delivered = receiver.deliver(&numbered(1, 1000)).unwrap();
    assert_eq!(delivered, super::receive::Delivered::NoRoom);
    let position = receiver.queue().position();
    drop(receiver);
    assert_eq!(position.load(Ordering::Acquire), 0);
}

#[test]
fn without_mergeable_buffers_a_large_frame_is_dropped() {
    let mut setup = Setup::new();
    let mut host = setup.attach();
    let mut guest = setup.activate(0);
    guest.offer(2, 1526);
    write_frame(&mut host, &numbered(1, 1515));
    write_frame(&mut host, &numbered(2, 1514));
    assert_eq!(guest.take(), numbered(2, 1514));
    assert_eq!(setup.link.stats().dropped, 1);
}

#[test]
fn a_frame_larger_than_the_whole_queue_is_dropped() {
    let mut setup = Setup::new();
    let mut host = setup.attach();
    let mut guest = setup.activate(MERGEABLE);
    guest.offer(usize::from(QUEUE_SIZE), 100);
    write_frame(&mut host, &numbered(1, 30_000));
    write_frame(&mut host, &numbered(2, 60));
    assert_eq!(guest.take(), numbered(2, 60));
    assert_eq!(setup.link.stats().dropped, 1);
}

#[test]
fn a_guest_that_does_not_read_stops_the_host() {
    let mut setup = Setup::new();
    let mut host = setup.attach();
    let mut guest = setup.activate(MERGEABLE);
    let total = 3000;
    let sender = std::thread::spawn(move || {
        for number in 0..total {
            write_frame(&mut host, &numbered(number, 1000));
        }
        host
    });
    for number in 0..total {
        // One buffer at a time: the device is stuck before each.
        guest.offer(1, 1526);
        assert!(guest.take() == numbered(number, 1000), "frame {number}");
    }
    drop(sender.join().unwrap());
    assert_eq!(setup.link.stats().dropped, 0);
}

#[test]
fn a_host_that_does_not_read_stops_the_guest() {
    for event_idx in [false, true] {
        let mut setup = Setup::new();
        let mut host = setup.attach();
        let mut receive = setup.machine.queue(0, QUEUE_SIZE);
        let mut transmit = setup.machine.queue(1, QUEUE_SIZE);
        let queues = vec![
            Some(receive.device_queue_with(event_idx)),
            Some(transmit.device_queue_with(event_idx)),
        ];
        setup
            .device
            .activate(setup.machine.activation(queues, 0, &setup.event_loop))
            .unwrap();
        let mut guest = Active { receive, transmit };

        // Far more than a socket holds: the guest runs out of descriptors.
        let mut sent = 0;
        while guest.transmit.free_descriptors() >= 2 {
            guest.send(&numbered(sent, 20_000));
            sent += 1;
        }
        let mut used = 0;
        for number in 0..400 {
            assert!(
                read_frame(&mut host) == numbered(number, 20_000),
                "frame {number}"
            );
            while guest.transmit.take_used().is_some() {
                used += 1;
            }
            while sent < 400 && guest.transmit.free_descriptors() >= 2 {
                guest.send(&numbered(sent, 20_000));
                sent += 1;
            }
        }
        while used < 400 {
            guest.transmit.wait_used();
            used += 1;
        }
        assert_eq!(setup.link.stats().dropped, 0);
    }
}

#[test]
fn without_a_host_frames_are_dropped_and_the_link_stays() {
    let mut setup = Setup::new();
    let mut guest = setup.activate(MERGEABLE);
    for number in 0..3 {
        let head = guest.send(&numbered(number, 100));
        assert_eq!(guest.transmit.wait_used(), (head, 0));
    }
    assert_eq!(setup.link.stats().dropped, 3);
    let mut status = [0; 2];
    setup.device.read_config(6, &mut status);
    assert_eq!(status, [1, 0]);
}

#[test]
fn a_host_that_goes_is_reported_and_replaced() {
    let mut setup = Setup::new();
    let (gone, gone_rx) = mpsc::channel();
    setup.link.on_detached(Box::new(move || gone.send(()).unwrap()));
    let first = setup.attach();
    let mut guest = setup.activate(MERGEABLE);
    guest.offer(8, 2048);
    drop(first);
    gone_rx.recv().unwrap();
    let head = guest.send(&numbered(1, 100));
    assert_eq!(guest.transmit.wait_used(), (head, 0));

    let mut second = setup.attach();
    // The old link may still take the first of these; the new one gets what comes after it is in place.
    write_frame(&mut second, &numbered(2, 100));
    assert_eq!(guest.take(), numbered(2, 100));
    guest.send(&numbered(3, 100));
    assert_eq!(read_frame(&mut second), numbered(3, 100));

    // One that breaks the protocol counts as gone.
    second.write_all(&[0xff; 4]).unwrap();
    gone_rx.recv().unwrap();
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "the device hung up");

    // Replacing or detaching on purpose is nothing to report.
    let third = setup.attach();
    let mut fourth = setup.attach();
    write_frame(&mut fourth, &numbered(4, 100));
    assert_eq!(guest.take(), numbered(4, 100));
    setup.link.attach(None).unwrap();
    assert_eq!(fourth.read(&mut [0; 1]).unwrap(), 0);
    drop(third);
    assert!(gone_rx.try_recv().is_err());
}

#[test]
fn a_callback_may_attach_the_next_host() {
    let mut setup = Setup::new();
    let (hosts, hosts_rx) = mpsc::channel();
    let link = setup.link.clone();
    setup.link.on_detached(Box::new(move || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        link.attach(Some(ours)).unwrap();
        // Nobody receives the one that follows the last round, for that round ends the test.
        let _ = hosts.send(theirs);
    }));
    let first = setup.attach();
    let mut guest = setup.activate(MERGEABLE);
    guest.offer(8, 2048);
    drop(first);
    for round in 0..3 {
        let mut host = hosts_rx.recv().unwrap();
        write_frame(&mut host, &numbered(round, 100));
        assert_eq!(guest.take(), numbered(round, 100));
    }
}

#[test]
fn a_host_that_goes_while_the_guest_is_stuck_is_noticed() {
    let mut setup = Setup::new();
    let (gone, gone_rx) = mpsc::channel();
    setup.link.on_detached(Box::new(move || gone.send(()).unwrap()));
    let mut host = setup.attach();
    let mut guest = setup.activate(MERGEABLE);
    write_frame(&mut host, &numbered(1, 100));
    let mut sent = 0;
    while guest.transmit.free_descriptors() >= 2 {
        guest.send(&numbered(sent, 20_000));
        sent += 1;
    }
    drop(host);
    gone_rx.recv().unwrap();
    for _ in 0..sent {
        guest.transmit.wait_used();
    }
}

#[test]
fn a_reset_in_the_middle_of_a_frame_keeps_the_stream_whole() {
    let mut setup = Setup::new();
    let mut host = setup.attach();
    let mut guest = setup.activate(MERGEABLE);
    let mut sent = 0;
    while guest.transmit.free_descriptors() >= 2 {
        guest.send(&numbered(sent, 20_000));
        sent += 1;
    }
    // Half a frame towards the guest, too.
    host.write_all(&100u32.to_be_bytes()).unwrap();
    host.write_all(&[7; 40]).unwrap();
    let head_of_first = guest.transmit.wait_used();
    setup.device.deactivate();
    let mut accepted = 1;
    while guest.transmit.take_used().is_some() {
        accepted += 1;
    }
    assert_eq!(head_of_first.1, 0);

    let mut guest = setup.activate(MERGEABLE);
    guest.offer(4, 2048);
    let last = guest.send(&numbered(9999, 100));
    for number in 0..accepted {
        assert!(
            read_frame(&mut host) == numbered(number, 20_000),
            "frame {number}"
        );
    }
    assert_eq!(read_frame(&mut host), numbered(9999, 100));
    assert_eq!(guest.transmit.wait_used(), (last, 0));
    host.write_all(&[7; 60]).unwrap();
    assert_eq!(guest.take(), [7; 100]);
}

#[test]
fn frames_that_are_none_are_dropped() {
    let mut setup = Setup::new();
    let mut host = setup.attach();
    let mut guest = setup.activate(MERGEABLE);
    guest.send(&[1; MIN_FRAME - 1]);
    guest.send(&vec![1; MAX_FRAME + 1]);
    // Not even a header; and the wrong direction.
    guest.transmit.offer(&[&[0; HEADER_SIZE - 1]], &[]);
    guest.transmit.offer(&[], &[100]);
    guest.send(&numbered(1, 64));
    assert_eq!(read_frame(&mut host), numbered(1, 64));
    for _ in 0..5 {
        guest.transmit.wait_used();
    }
    assert_eq!(setup.link.stats().dropped, 4);
}

#[test]
fn hostile_chains_stop_the_device_until_a_reset() {
    let offers: [fn(&mut Active); 3] = [
        |guest| {
            guest
                .transmit
                .offer_raw(&[(GuestAddress(u64::MAX - 9), 100, false)]);
            guest.transmit.kick();
        },
        |guest| {
            guest
                .receive
                .offer_raw(&[(GuestAddress(u64::MAX - 9), 100, true)]);
            guest.receive.kick();
        },
        // No room for the header, then plenty.
        |guest| {
            guest.receive.offer(&[], &[HEADER_SIZE as u32 - 1]);
            guest.offer(1, 4096);
        },
    ];
    for offer in offers {
        let mut setup = Setup::new();
        let mut host = setup.attach();
        let mut guest = setup.activate(MERGEABLE);
        write_frame(&mut host, &numbered(1, 100));
        offer(&mut guest);
        setup.machine.interrupt.wait_for(InterruptCause::NeedsReset);

        setup.device.deactivate();
        let mut guest = setup.activate(MERGEABLE);
        let mut host = setup.attach();
        guest.offer(1, 2048);
        write_frame(&mut host, &numbered(2, 100));
        assert_eq!(guest.take(), numbered(2, 100));
    }
}

#[test]
fn the_cable_can_be_pulled() {
    let mut setup = Setup::new();
    let status = |device: &Net| {
        let mut bytes = [0; 8];
        device.read_config(0, &mut bytes);
        assert_eq!(bytes[..6], MAC);
        bytes[6]
    };
    setup.link.set_up(false).unwrap();
    assert_eq!(status(&setup.device), 0);
    let _guest = setup.activate(MERGEABLE);
    setup.link.set_up(true).unwrap();
    setup.machine.interrupt.wait_for(InterruptCause::Config);
    assert_eq!(status(&setup.device), 1);
    setup.link.set_up(true).unwrap();
    assert_eq!(setup.machine.interrupt.take(), []);
}

#[test]
fn the_mtu_is_offered_when_there_is_one() {
    assert!(matches!(
        net_with(NetConfig {
            mac: MAC,
            mtu: Some(1279)
        }),
        Err(NetError::Mtu(1279))
    ));
    let (device, _link) = net_with(NetConfig {
        mac: MAC,
        mtu: Some(65_520),
    })
    .unwrap();
    assert!(device.features() & (1 << VIRTIO_NET_F_MTU) != 0);
    let mut mtu = [0; 2];
    device.read_config(10, &mut mtu);
    assert_eq!(u16::from_le_bytes(mtu), 65_520);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the descriptors say, frames are delivered, dropped or refused; nothing panics.
    #[test]
    fn arbitrary_rings_do_no_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        heads in prop::collection::vec(0u16..260, 1..20),
        mergeable: bool,
    ) {
        let mut driver = TestQueue::new(QUEUE_SIZE);
        let mut receiver = Receiver::new(driver.device_queue(0), mergeable);
        driver.scribble(&bytes);
        for head in heads {
            driver.publish(head);
            if receiver.deliver(&numbered(1, 200)).is_err() {
                break;
            }
        }
    }
}
