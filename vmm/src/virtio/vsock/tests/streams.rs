//! Whatever the two ends do in whatever order, each stream arrives byte for byte.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use proptest::prelude::*;

use super::{
    super::{
        muxer::Limits,
        packet::{Op, SHUTDOWN_SEND},
    },
    guest::{Guest, Ports, bytes},
};

#[derive(Debug, Clone)]
enum Step {
    HostWrite(usize, usize),
    HostRead(usize, usize),
    GuestSend(usize, usize),
    GuestRead(usize, usize),
    HostEnds(usize),
    GuestEnds(usize),
    Turn,
}

struct Conversation {
    stream: UnixStream,
    ports: Ports,
    id: u64,
    to_guest: usize,
    at_guest: usize,
    to_host: usize,
    at_host: usize,
    host_ended: bool,
    guest_ended: bool,
    host_saw_end: bool,
}

impl Conversation {
    fn host_write(&mut self, length: usize) {
        if self.host_ended {
            return;
        }
        match self.stream.write(&bytes(self.id, self.to_guest, length)) {
            Ok(written) => self.to_guest += written,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn host_read(&mut self, length: usize) {
        let mut buffer = vec![0; length];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.host_saw_end = true,
            Ok(read) => {
                assert!(
                    buffer[..read] == bytes(self.id | 1 << 20, self.at_host, read),
                    "wrong bytes at the host after {}",
                    self.at_host
                );
                self.at_host += read;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn guest_send(&mut self, guest: &mut Guest, length: usize) {
        if !self.guest_ended {
            let data = bytes(self.id | 1 << 20, self.to_host, length);
            self.to_host += guest.send(self.ports, &data);
        }
    }

    fn guest_read(&mut self, guest: &mut Guest, length: usize) {
        let data = guest.read(self.ports, length);
        assert!(
            data == bytes(self.id, self.at_guest, data.len()),
            "wrong bytes at the guest after {}",
            self.at_guest
        );
        self.at_guest += data.len();
    }

    fn host_ends(&mut self) {
        if !self.host_ended {
            self.host_ended = true;
            self.stream.shutdown(Shutdown::Write).unwrap();
        }
    }

    fn guest_ends(&mut self, guest: &mut Guest) {
        if !self.guest_ended {
            self.guest_ended = true;
            guest.control(self.ports, Op::Shutdown, SHUTDOWN_SEND);
        }
    }
}

fn steps(connections: usize) -> impl Strategy<Value = Vec<Step>> {
    let which = 0..connections;
    let size = prop_oneof![1usize..300, 1usize..20_000, 1usize..400_000];
    prop::collection::vec(
        prop_oneof![
            4 => (which.clone(), size.clone()).prop_map(|(c, n)| Step::HostWrite(c, n)),
            4 => (which.clone(), size.clone()).prop_map(|(c, n)| Step::HostRead(c, n)),
            4 => (which.clone(), size.clone()).prop_map(|(c, n)| Step::GuestSend(c, n)),
            4 => (which.clone(), size).prop_map(|(c, n)| Step::GuestRead(c, n)),
            1 => which.clone().prop_map(Step::HostEnds),
            1 => which.prop_map(Step::GuestEnds),
            6 => Just(Step::Turn),
        ],
        20..200,
    )
}

fn open(guest: &mut Guest, index: usize) -> Conversation {
    let (stream, ports) = if index.is_multiple_of(2) {
        guest.connected_from_host(1000 + index as u32)
    } else {
        let ports = (50_000 + index as u32, 70 + index as u32);
        let mut listener = guest.shared.listen(ports.1).unwrap();
        guest.guest_connect(ports);
        guest.settle();
        let stream = listener.try_recv().unwrap();
        stream.set_nonblocking(true).unwrap();
        (stream, ports)
    };
    Conversation {
        stream,
        ports,
        id: index as u64,
        to_guest: 0,
        at_guest: 0,
        to_host: 0,
        at_host: 0,
        host_ended: false,
        guest_ended: false,
        host_saw_end: false,
    }
}

fn run(guest: &mut Guest, connections: usize, steps: Vec<Step>) {
    let mut all: Vec<Conversation> = (0..connections).map(|index| open(guest, index)).collect();
    for step in steps {
        match step {
            Step::HostWrite(c, n) => all[c].host_write(n),
            Step::HostRead(c, n) => all[c].host_read(n),
            Step::GuestSend(c, n) => all[c].guest_send(guest, n),
            Step::GuestRead(c, n) => all[c].guest_read(guest, n),
            Step::HostEnds(c) => all[c].host_ends(),
            Step::GuestEnds(c) => all[c].guest_ends(guest),
            Step::Turn => {
                guest.turn();
            }
        }
    }
    // Both ends finish, and read slowly to the end.
    for one in &mut all {
        one.host_ends();
        one.guest_ends(guest);
    }
    let mut rounds = 0;
    while !all
        .iter()
        .all(|one| one.host_saw_end && guest.sockets[&one.ports].at_end())
    {
        guest.turn();
        for one in &mut all {
            one.host_read(70_000);
            one.guest_read(guest, 9_000);
        }
        rounds += 1;
        assert!(rounds < 100_000, "a stream does not come to its end");
    }
    for one in &all {
        assert_eq!(
            (one.at_guest, one.at_host),
            (one.to_guest, one.to_host),
            "bytes are missing"
        );
    }
    drop(all);
    guest.settle();
    assert_eq!(
        guest.shared.stats.read().connections,
        0,
        "a connection was left behind"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn streams_arrive_byte_for_byte(
        steps in steps(5),
        cuts in prop::collection::vec(prop_oneof![1usize..60, 1usize..40_000], 0..6),
        event_idx: bool,
        buf_alloc in prop_oneof![Just(256 * 1024u32), 20_000u32..100_000],
        window in prop_oneof![Just(256 * 1024u32), 1000u32..100_000],
    ) {
        let limits = Limits { window, ..Limits::default() };
        let mut guest = Guest::with(limits, 64, event_idx);
        guest.cuts = cuts;
        guest.buf_alloc = buf_alloc;
        run(&mut guest, 5, steps);
    }
}

#[test]
fn many_small_writes_to_a_reader_that_sleeps_lose_nothing() {
    let mut guest = Guest::new();
    let mut one = open(&mut guest, 0);
    for _ in 0..3000 {
        one.host_write(130);
        guest.turn();
    }
    run_out(&mut guest, one);
}

#[test]
fn a_stream_longer_than_the_counters_of_both_windows_arrives() {
    let mut guest = Guest::new();
    let mut one = open(&mut guest, 1);
    while one.at_host < 4 << 20 || one.at_guest < 4 << 20 {
        one.host_write(100_000);
        one.guest_send(&mut guest, 100_000);
        guest.turn();
        one.host_read(1 << 20);
        one.guest_read(&mut guest, 1 << 20);
    }
    run_out(&mut guest, one);
}

fn run_out(guest: &mut Guest, mut one: Conversation) {
    one.host_ends();
    one.guest_ends(guest);
    for _ in 0..100_000 {
        guest.turn();
        one.host_read(70_000);
        one.guest_read(guest, 9_000);
        if one.host_saw_end && guest.sockets[&one.ports].at_end() {
            assert_eq!((one.at_guest, one.at_host), (one.to_guest, one.to_host));
            return;
        }
    }
    panic!("the stream does not come to its end");
}
