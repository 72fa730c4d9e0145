//! The device on its own thread, through its public face.

use std::io::{Read, Write};

use super::{
    super::{ConnectError, VsockHost, vsock},
    guest::Guest,
};
use crate::{
    event_loop::EventLoop,
    virtio::{ActivateError, VirtioDevice, test_driver::TestMachine},
};

fn connect(host: &VsockHost) -> ConnectError {
    match host.connect(5).blocking_recv().unwrap() {
        Ok(_) => panic!("there is no guest that could accept"),
        Err(error) => error,
    }
}

#[test]
fn the_device_comes_and_goes_and_its_handle_stays() {
    let event_loop = EventLoop::spawn("test").unwrap();
    let (mut device, host) = vsock(3).unwrap();
    let mut cid = [0; 8];
    device.read_config(0, &mut cid);
    assert_eq!((device.device_id(), u64::from_le_bytes(cid)), (19, 3));
    assert!(matches!(connect(&host), ConnectError::NotReady));

    for _ in 0..3 {
        let machine = TestMachine::new();
        let mut queues: Vec<_> = (0..3).map(|index| machine.queue(index, 16)).collect();
        let mut device_queues: Vec<_> = (0..3)
            .map(|index| Some(queues[index as usize].device_queue(index)))
            .collect();
        // QEMU keeps the event queue.
        device_queues[2] = None;
        device
            .activate(machine.activation(device_queues, 1, &event_loop))
            .unwrap();
        let mut pending = host.connect(5);
        assert!(pending.try_recv().is_err(), "the guest has not answered");
        device.deactivate();
        assert!(matches!(
            pending.blocking_recv().unwrap(),
            Err(ConnectError::GuestReset)
        ));
        queues[0].offer(&[], &[4096]);
        queues[0].kick();
        assert!(matches!(connect(&host), ConnectError::NotReady));
        assert_eq!(queues[0].take_used(), None, "no queue is touched any more");
    }
    assert_eq!(host.stats().connections, 0);
    drop(device);
    assert!(matches!(connect(&host), ConnectError::NotReady));
}

#[test]
fn a_driver_without_the_queues_is_refused() {
    let event_loop = EventLoop::spawn("test").unwrap();
    let (mut device, _host) = vsock(3).unwrap();
    let machine = TestMachine::new();
    let rx = machine.queue(0, 16).device_queue(0);
    let refused = device.activate(machine.activation(vec![Some(rx)], 1, &event_loop));
    assert!(matches!(refused, Err(ActivateError::MissingQueue(1))));
}

#[test]
fn a_thousand_connections_at_once() {
    raise_descriptor_limit();
    let mut guest = Guest::new();
    let mut open: Vec<_> = (0..1000)
        .map(|index| guest.connected_from_host(10_000 + index % 7))
        .collect();
    for (index, (stream, _)) in open.iter_mut().enumerate() {
        stream.write_all(&(index as u64).to_le_bytes()).unwrap();
    }
    guest.settle();
    let ports: Vec<_> = open.iter().map(|(_, ports)| *ports).collect();
    for (index, ports) in ports.into_iter().enumerate() {
        let question = guest.read(ports, 100);
        assert_eq!(question, (index as u64).to_le_bytes());
        guest.send(ports, &question.repeat(100));
    }
    guest.settle();
    for (index, (stream, _)) in open.iter_mut().enumerate() {
        let mut answer = [0; 800];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[792..], (index as u64).to_le_bytes());
    }
    assert_eq!(guest.shared.stats.read().connections, 1000);
    drop(open);
    guest.settle();
    assert_eq!(guest.shared.stats.read().connections, 0);
}

fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure outlives both calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}
