//! The protocol's corners: opening, closing, resets, and guests that break the rules.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    time::Duration,
};

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::{
    super::{
        host::{ConnectError, ListenError},
        muxer::Limits,
        packet::{HEADER_SIZE, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND, TYPE_STREAM},
    },
    guest::{Guest, bytes},
};
use crate::virtio::{InterruptCause, vsock::worker::Command};

fn ops(guest: &Guest) -> Vec<Op> {
    guest.log.iter().filter_map(Header::operation).collect()
}

#[test]
fn a_refused_connection_says_so() {
    let mut guest = Guest::new();
    let mut receiver = guest.host_connect(99);
    guest.settle();
    assert!(matches!(receiver.try_recv().unwrap(), Err(ConnectError::Refused)));
    assert_eq!(guest.shared.stats.read().connections, 0);
}

#[test]
fn a_guest_that_never_answers_is_given_up() {
    let limits = Limits {
        connect_timeout: Duration::ZERO,
        ..Limits::default()
    };
    let mut guest = Guest::with(limits, 64, false);
    guest.refill = false;
    let mut receiver = guest.host_connect(99);
    guest.settle();
    assert!(matches!(
        receiver.try_recv().unwrap(),
        Err(ConnectError::TimedOut)
    ));
    guest.refill = true;
    guest.settle();
    assert_eq!(ops(&guest), vec![Op::Rst]);
    assert_eq!(guest.shared.stats.read().connections, 0);
}

#[test]
fn a_connection_nobody_waits_for_any_more_is_closed() {
    let mut guest = Guest::new();
    guest.listening.push(5);
    drop(guest.host_connect(5));
    guest.settle();
    assert_eq!(ops(&guest), vec![Op::Request, Op::Shutdown]);
    assert_eq!(guest.shared.stats.read().connections, 0);
}

#[test]
fn a_port_has_one_listener_and_a_bounded_backlog() {
    let mut guest = Guest::new();
    guest.guest_connect((1, 80));
    guest.settle();
    assert!(guest.sockets[&(1, 80)].reset, "nobody listens");

    let mut listener = guest.shared.listen(80).unwrap();
    assert_eq!(guest.shared.listen(80).unwrap_err(), ListenError::InUse(80));
    for port in 100..300 {
        guest.guest_connect((port, 80));
        guest.settle();
    }
    let accepted = (100..300)
        .filter(|port| guest.sockets[&(*port, 80)].established)
        .count();
    assert_eq!(accepted, 128);
    listener.try_recv().unwrap();
    guest.guest_connect((400, 80));
    guest.settle();
    assert!(guest.sockets[&(400, 80)].established, "there was a place again");

    drop(listener);
    guest.guest_connect((401, 80));
    guest.settle();
    assert!(guest.sockets[&(401, 80)].reset);
    assert!(guest.shared.listen(80).is_ok());
}

#[test]
fn each_direction_closes_on_its_own() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected_from_host(5);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest.settle();
    assert_eq!(guest.sockets[&ports].host_shutdown, SHUTDOWN_SEND);
    assert_eq!(guest.read(ports, 100), b"question");

    guest.send(ports, b"answer");
    guest.control(ports, Op::Shutdown, SHUTDOWN_SEND);
    guest.settle();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    guest.control(ports, Op::Shutdown, SHUTDOWN_BOTH);
    guest.settle();
    assert_eq!(guest.shared.stats.read().connections, 0);
}

#[test]
fn a_guest_that_sends_and_closes_at_once_loses_nothing_to_a_slow_reader() {
    for last in [Op::Shutdown, Op::Rst] {
        let mut guest = Guest::new();
        let (mut stream, ports) = guest.connected_from_host(5);
        let data = bytes(1, 0, 250_000);
        assert_eq!(guest.send(ports, &data), data.len());
        guest.control(ports, last, SHUTDOWN_BOTH);
        guest.settle();
        if last == Op::Shutdown {
            assert!(guest.sockets[&ports].reset, "its port is free at once");
        }
        // The guest may be gone altogether.
        guest.deactivate();
        let mut got: Vec<u8> = Vec::new();
        loop {
            let mut chunk = [0; 10_000];
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => got.extend(&chunk[..read]),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    guest.worker.turn();
                }
            }
        }
        assert!(got == data);
        guest.worker.turn();
        assert_eq!(guest.shared.stats.read().connections, 0);
    }
}

#[test]
fn a_host_that_closes_with_everything_read_shuts_down_both_ways() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected_from_host(5);
    stream.write_all(b"bye").unwrap();
    drop(stream);
    guest.settle();
    assert_eq!(guest.read(ports, 10), b"bye");
    assert_eq!(ops(&guest), vec![Op::Request, Op::Rw, Op::Shutdown]);
    assert_eq!(guest.sockets[&ports].host_shutdown, SHUTDOWN_BOTH);
    assert_eq!(guest.shared.stats.read().connections, 0);
}

#[test]
fn a_host_that_closes_with_data_unread_resets_after_its_own_data() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected_from_host(5);
    guest.send(ports, b"never read");
    guest.settle();
    stream.write_all(b"last words").unwrap();
    drop(stream);
    guest.settle();
    assert_eq!(ops(&guest).last(), Some(&Op::Rst));
    assert!(guest.sockets[&ports].reset);
    assert_eq!(guest.read(ports, 100), b"last words");
    assert_eq!(guest.shared.stats.read().connections, 0);
}

#[test]
fn a_host_that_stops_reading_is_heard_of() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected_from_host(5);
    stream.shutdown(Shutdown::Read).unwrap();
    guest.send(ports, b"into the void");
    guest.settle();
    assert_eq!(guest.sockets[&ports].host_shutdown, SHUTDOWN_RCV);
    stream.write_all(b"still talking").unwrap();
    guest.settle();
    assert_eq!(guest.read(ports, 100), b"still talking");
}

#[test]
fn a_guest_that_stops_reading_is_heard_of() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected_from_host(5);
    guest.control(ports, Op::Shutdown, SHUTDOWN_RCV);
    guest.settle();
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.send(ports, b"still talking");
    guest.settle();
    let mut got = [0; 13];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still talking");
    drop(stream);
    guest.settle();
    assert_eq!(guest.shared.stats.read().connections, 0);
}

#[test]
fn a_closed_connection_the_guest_ignores_is_ended_in_time() {
    let limits = Limits {
        close_timeout: Duration::ZERO,
        ..Limits::default()
    };
    let mut guest = Guest::with(limits, 64, false);
    let (stream, _) = guest.connected_from_host(5);
    guest.silent = true;
    drop(stream);
    guest.settle();
    assert_eq!(ops(&guest), vec![Op::Request, Op::Shutdown, Op::Rst]);
    assert_eq!(guest.shared.stats.read().connections, 0);
}

#[test]
fn a_port_the_guest_uses_again_before_its_reset_is_a_new_connection() {
    let mut guest = Guest::new();
    let mut listener = guest.shared.listen(80).unwrap();
    guest.guest_connect((7, 80));
    guest.settle();
    // Linux with unread data: it takes the SHUTDOWN, forgets the socket, and answers only when that is closed.
    guest.silent = true;
    drop(listener.try_recv().unwrap());
    guest.settle();
    assert_eq!(ops(&guest).last(), Some(&Op::Shutdown));
    guest.silent = false;
    guest.guest_connect((7, 80));
    guest.settle();
    let mut stream = listener.try_recv().unwrap();
    assert_eq!(guest.send((7, 80), b"new"), 3);
    guest.settle();
    let mut got = [0; 3];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"new");
}

#[test]
fn more_than_the_credit_resets_that_connection_only() {
    let mut guest = Guest::new();
    let (good, good_ports) = guest.connected_from_host(5);
    let (_bad, bad_ports) = guest.connected_from_host(6);
    let packet = bytes(0, 0, 64 * 1024);
    for _ in 0..20 {
        let header = guest.header(bad_ports, Op::Rw, 0, packet.len() as u32);
        guest.post(&header, &packet);
    }
    guest.settle();
    assert!(guest.sockets[&bad_ports].reset);
    assert!(!guest.sockets[&good_ports].reset);
    assert_eq!(guest.shared.stats.read().resets_to_guest, 1);
    drop(good);
}

#[test]
fn packets_for_no_connection_are_reset() {
    let mut guest = Guest::new();
    for op in [
        Op::Response,
        Op::Rw,
        Op::Shutdown,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        let header = guest.header((1, 2), op, 0, 0);
        guest.post(&header, &[]);
    }
    let rst = guest.header((1, 2), Op::Rst, 0, 0);
    guest.post(&rst, &[]);
    guest.settle();
    assert_eq!(ops(&guest), vec![Op::Rst; 5], "and a reset is not answered");
    assert_eq!((guest.log[0].src_port, guest.log[0].dst_port), (2, 1));
}

#[test]
fn packets_that_are_not_ours_or_not_the_guest_s_make_no_connection() {
    let mut guest = Guest::new();
    let _listener = guest.shared.listen(80).unwrap();
    let request = guest.header((1, 80), Op::Request, 0, 0);
    guest.post(
        &Header {
            src_cid: 99,
            ..request
        },
        &[],
    );
    guest.settle();
    assert!(guest.log.is_empty(), "an answer would go to another guest");
    guest.post(
        &Header {
            dst_cid: 99,
            ..request
        },
        &[],
    );
    guest.post(
        &Header {
            socket_type: 2,
            ..request
        },
        &[],
    );
    guest.settle();
    assert_eq!(ops(&guest), vec![Op::Rst; 2]);
    assert_eq!((guest.log[0].src_cid, guest.log[1].socket_type), (99, 2));
    assert_eq!(guest.shared.stats.read().connections_total, 0);
}

#[test]
fn a_packet_with_less_data_than_it_says_ends_its_stream() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected_from_host(5);
    let header = guest.header(ports, Op::Rw, 0, 100);
    guest.post(&header, &[7; 99]);
    guest.settle();
    assert!(guest.sockets[&ports].reset);
    assert_eq!(stream.read(&mut [0; 100]).unwrap(), 0);
}

#[test]
fn resets_nobody_makes_room_for_stay_bounded_and_the_device_goes_on() {
    let mut guest = Guest::new();
    guest.refill = false;
    for port in 0..5000 {
        let header = guest.header((port, 2), Op::Rw, 0, 0);
        guest.post(&header, &[]);
        guest.turn();
    }
    guest.refill = true;
    guest.settle();
    assert!(
        guest.log.len() <= 1024 && guest.log.len() >= 1000,
        "{}",
        guest.log.len()
    );
    let (_stream, ports) = guest.connected_from_host(5);
    assert!(guest.sockets[&ports].established);
}

#[test]
fn a_buffer_outside_memory_stops_the_device_and_nothing_else() {
    let mut guest = Guest::new();
    let (mut stream, _) = guest.connected_from_host(5);
    guest
        .tx
        .offer_raw(&[(GuestAddress(u64::MAX - 100), HEADER_SIZE as u32, false)]);
    guest.tx.kick();
    guest.worker.turn();
    assert!(guest.tx.interrupts().contains(&InterruptCause::NeedsReset));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "connections have ended");
    let mut receiver = guest.host_connect(5);
    guest.worker.turn();
    assert!(matches!(
        receiver.try_recv().unwrap(),
        Err(ConnectError::NotReady)
    ));
}

#[test]
fn a_receive_buffer_without_room_stops_the_device() {
    let mut guest = Guest::new();
    guest.refill = false;
    // Whatever was offered before is used up first.
    let _receivers: Vec<_> = (0..100).map(|_| guest.host_connect(5)).collect();
    guest.settle();
    guest.rx.offer(&[], &[HEADER_SIZE as u32]);
    guest.rx.kick();
    guest.worker.turn();
    assert!(guest.rx.interrupts().contains(&InterruptCause::NeedsReset));
}

#[test]
fn what_waits_for_credit_goes_on_when_it_comes_and_costs_nothing_until_then() {
    let mut guest = Guest::new();
    guest.buf_alloc = 20_000;
    let (mut stream, ports) = guest.connected_from_host(5);
    let data = bytes(0, 0, 150_000);
    stream.write_all(&data).unwrap();
    guest.settle();
    assert_eq!(guest.sockets[&ports].rx_bytes, 20_000);
    assert_eq!(ops(&guest).last(), Some(&Op::CreditRequest));
    let sent = guest.log.len();
    guest.settle();
    assert_eq!(guest.log.len(), sent, "asked once");
    let mut got = Vec::new();
    while got.len() < data.len() {
        let more = guest.read(ports, 7000);
        assert!(!more.is_empty());
        got.extend(more);
        guest.settle();
    }
    assert!(got == data);
}

#[test]
fn a_host_that_closes_while_the_guest_has_no_credit_still_gets_everything_through() {
    let mut guest = Guest::new();
    guest.buf_alloc = 20_000;
    let (mut stream, ports) = guest.connected_from_host(5);
    let data = bytes(0, 0, 100_000);
    stream.write_all(&data).unwrap();
    guest.settle();
    drop(stream);
    guest.settle();
    let mut got = Vec::new();
    while !guest.sockets[&ports].at_end() {
        got.extend(guest.read(ports, 7000));
        guest.settle();
    }
    assert!(got == data);
    assert_eq!(guest.shared.stats.read().connections, 0);
}

#[test]
fn a_transport_reset_ends_everything_and_tells_the_guest() {
    let mut guest = Guest::new();
    let (mut stream, _) = guest.connected_from_host(5);
    let (done, _receiver) = std::sync::mpsc::sync_channel(1);
    guest.shared.command(Command::ResetTransport { done });
    guest.settle();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(
        guest.event.take_used(),
        None,
        "there is no buffer for the event yet"
    );
    let head = guest.event.offer(&[], &[4]);
    guest.event.kick();
    guest.settle();
    assert_eq!(guest.event.take_used(), Some((head, 4)));
    assert_eq!(guest.event.buffer(head, 0), [0; 4]);
    guest.sockets.clear();
    guest.connected_from_host(5);
}

#[test]
fn at_the_limit_of_connections_one_more_is_refused() {
    let limits = Limits {
        connections: 3,
        ..Limits::default()
    };
    let mut guest = Guest::with(limits, 64, true);
    let open: Vec<_> = (0..3).map(|port| guest.connected_from_host(port)).collect();
    let mut receiver = guest.host_connect(9);
    let _listener = guest.shared.listen(80).unwrap();
    guest.guest_connect((1, 80));
    guest.settle();
    assert!(matches!(
        receiver.try_recv().unwrap(),
        Err(ConnectError::TooMany(3))
    ));
    assert!(guest.sockets[&(1, 80)].reset);
    drop(open);
    guest.settle();
    guest.connected_from_host(9);
}

#[test]
fn windows_shrink_when_their_budget_is_spent() {
    let limits = Limits {
        window_budget: 2 * 256 * 1024,
        ..Limits::default()
    };
    let mut guest = Guest::with(limits, 64, true);
    let open: Vec<_> = (0..3).map(|port| guest.connected_from_host(port)).collect();
    let window = |ports| guest.sockets[&ports].peer_buf_alloc;
    assert_eq!((window(open[1].1), window(open[2].1)), (256 * 1024, 32 * 1024));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// Any packets at all: the device neither panics nor stops, and an honest connection beside them is unharmed.
    #[test]
    fn nonsense_harms_nobody(packets in prop::collection::vec(
        (0u16..10, prop_oneof![Just(TYPE_STREAM), any::<u16>()], 0u32..4, any::<u32>(), any::<u32>(),
         prop_oneof![0u32..100, any::<u32>()], 0usize..3, 0usize..200), 1..120),
        cuts in prop::collection::vec(1usize..60, 0..4),
    ) {
        let mut guest = Guest::new();
        guest.cuts = cuts;
        let _listener = guest.shared.listen(80).unwrap();
        let (mut honest, honest_ports) = guest.connected_from_host(5);
        let victims: Vec<_> = (0..2).map(|port| guest.connected_from_host(port)).collect();
        for (op, socket_type, flags, buf_alloc, fwd_cnt, len, target, data) in packets {
            let (guest_port, host_port) = match target {
                0 | 1 => victims[target].1,
                _ => (len % 5, 80),
            };
            // The guest has no such socket as far as its own model goes.
            guest.sockets.remove(&(guest_port, host_port));
            let header = Header {
                op, socket_type, flags, buf_alloc, fwd_cnt, len,
                ..guest.header((guest_port, host_port), Op::Rw, 0, 0)
            };
            guest.post(&header, &vec![0; data]);
            guest.turn();
        }
        guest.settle();
        honest.write_all(b"there?").unwrap();
        guest.settle();
        prop_assert_eq!(guest.read(honest_ports, 100), b"there?");
        guest.send(honest_ports, b"there.");
        guest.settle();
        let mut got = [0; 6];
        honest.read_exact(&mut got).unwrap();
        prop_assert_eq!(&got, b"there.");
    }

    /// Chains of any shape: the device may stop, but never panics or reads outside of them.
    #[test]
    fn chains_of_any_shape_are_survived(chains in prop::collection::vec(
        prop::collection::vec((any::<u64>(), any::<u32>(), any::<bool>(), any::<bool>()), 1..6), 1..10)) {
        let mut guest = Guest::new();
        let _open = guest.connected_from_host(5);
        for parts in chains {
            let parts: Vec<_> = parts.into_iter().map(|(address, length, writable, near)| {
                let address = if near { address % (1 << 26) } else { address };
                let length = if near { length % 100_000 } else { length };
                (GuestAddress(address | 0x3f0_0000), length, writable)
            }).collect();
            guest.tx.offer_raw(&parts);
            guest.tx.kick();
            guest.worker.turn();
        }
    }
}
