//! The device against a driver, in front of a server that only does what the tests need.

mod hostile;

use std::{
    collections::HashSet,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use fileshare::buffers::{ReplyBuffer, RequestBuffer};
use vmm::{
    event_loop::EventLoop,
    virtio::{
        InterruptCause,
        test_driver::{TestMachine, TestQueue},
    },
};

use super::*;
use crate::{Reply, Request};

const SETLKW: u32 = 33;
/// An opcode of these tests: a request that waits until the test says so.
const HOLD: u32 = 1000;
/// One that ends all waits.
const RELEASE: u32 = 1001;
/// One that is answered with whether `/etc` can be read.
const LOOK_OUTSIDE: u32 = 1002;
/// One that has no reply.
const SILENT: u32 = 1003;
/// One that is answered with whether the thread's umask masks anything.
const LOOK_AT_UMASK: u32 = 1004;

/// A request's header, as far as the shell looks at it.
fn request(opcode: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[4..].copy_from_slice(&opcode.to_le_bytes());
    bytes
}

/// Answers with the request's bytes in reverse order; waits when it is told to.
#[derive(Default)]
struct Mirror {
    state: Mutex<Waits>,
    changed: Condvar,
    resets: AtomicUsize,
    threads: Mutex<HashSet<std::thread::ThreadId>>,
}

#[derive(Default)]
struct Waits {
    released: bool,
    interrupted: bool,
    now: usize,
}

impl Mirror {
    /// Returns when exactly this many requests wait. Panics after 30 s.
    fn await_waiting(&self, count: usize) {
        let limit = std::time::Duration::from_secs(30);
        let (state, timeout) = self
            .changed
            .wait_timeout_while(self.state.lock().unwrap(), limit, |state| state.now != count)
            .unwrap();
        assert!(!timeout.timed_out(), "{} requests wait, not {count}", state.now);
    }

    fn release(&self) {
        self.state.lock().unwrap().released = true;
        self.changed.notify_all();
    }

    fn resets(&self) -> usize {
        self.resets.load(Ordering::SeqCst)
    }
}

impl RequestHandler for Mirror {
    fn handle(&self, mut request: Request, mut reply: Reply) -> usize {
        self.threads.lock().unwrap().insert(std::thread::current().id());
        let mut bytes = vec![0; request.len()];
        assert_eq!(request.read(&mut bytes), bytes.len());
        let opcode = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        match opcode {
            HOLD | SETLKW => {
                let mut state = self.state.lock().unwrap();
                state.now += 1;
                self.changed.notify_all();
                let mut state = self
                    .changed
                    .wait_while(state, |state| !state.released && !state.interrupted)
                    .unwrap();
                state.now -= 1;
                self.changed.notify_all();
            }
            RELEASE => self.release(),
            SILENT => return 0,
            LOOK_AT_UMASK => bytes.fill((umask() != "0000").into()),
            LOOK_OUTSIDE => bytes.fill(std::fs::read_dir("/etc").is_ok().into()),
            _ => {}
        }
        bytes.reverse();
        reply.write(&bytes)
    }

    fn interrupt_all(&self, on: bool) {
        self.state.lock().unwrap().interrupted = on;
        self.changed.notify_all();
    }

    fn reset(&self) {
        assert_eq!(self.state.lock().unwrap().now, 0, "requests are being handled");
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

/// The calling thread's, as the kernel writes it.
fn umask() -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.unwrap().trim().to_owned()
}

struct Rig {
    server: Arc<Mirror>,
    device: VirtioFs,
    machine: TestMachine,
    queues: Vec<TestQueue>,
    event_loop: EventLoop,
}

impl Rig {
    fn new(request_queues: u16, threads_per_queue: u16) -> Rig {
        let server = Arc::new(Mirror::default());
        let config = VirtioFsConfig {
            tag: "berth".into(),
            request_queues,
            threads_per_queue,
        };
        let device = VirtioFs::new(config, Arc::clone(&server)).unwrap();
        let mut rig = Rig {
            server,
            device,
            machine: TestMachine::new(),
            queues: Vec::new(),
            event_loop: EventLoop::spawn("test").unwrap(),
        };
        rig.set_up_queues();
        rig
    }

    fn set_up_queues(&mut self) {
        let sizes = self.device.queue_max_sizes().to_vec();
        self.queues = (0..)
            .zip(sizes)
            .map(|(index, size)| self.machine.queue(index, size))
            .collect();
    }

    fn activate(&mut self, event_idx: bool) {
        let queues = self
            .queues
            .iter_mut()
            .map(|queue| Some(queue.device_queue_with(event_idx)))
            .collect();
        let activation = self.machine.activation(queues, 0, &self.event_loop);
        self.device.activate(activation).unwrap();
    }

    fn send(&mut self, queue: usize, opcode: u32) -> u16 {
        let head = self.queues[queue].offer(&[&request(opcode)], &[8]);
        self.queues[queue].kick();
        head
    }
}

#[test]
fn the_configuration_space_names_the_tag_and_counts_the_queues() {
    let rig = Rig::new(3, 1);
    let mut config = [9; 44];
    rig.device.read_config(0, &mut config);
    assert_eq!(&config[..6], b"berth\0");
    assert_eq!(&config[36..], [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.device.queue_max_sizes(), [128, 1024, 1024, 1024]);
    assert_eq!(rig.device.device_id(), 26);
}

#[test]
fn what_cannot_be_is_refused() {
    let new = |tag: &str, request_queues, threads_per_queue| {
        let tag = tag.to_owned();
        VirtioFs::new(
            VirtioFsConfig {
                tag,
                request_queues,
                threads_per_queue,
            },
            Arc::new(Mirror::default()),
        )
        .err()
    };
    let long = "t".repeat(37);
    assert_eq!(new(&long[..36], 64, 64), None);
    assert_eq!(new(&long, 1, 1), Some(VirtioFsError::Tag(long)));
    assert_eq!(new("", 0, 1), Some(VirtioFsError::Queues(0)));
    assert_eq!(new("", 65, 1), Some(VirtioFsError::Queues(65)));
    assert_eq!(new("", 1, 0), Some(VirtioFsError::Threads(0)));
    assert_eq!(new("", 1, 65), Some(VirtioFsError::Threads(65)));
}

#[test]
fn requests_are_answered_in_every_queue() {
    for event_idx in [false, true] {
        let mut rig = Rig::new(2, 2);
        // Before there is a device to hear the kick.
        let early = rig.send(1, 7);
        rig.activate(event_idx);
        assert_eq!(rig.queues[1].wait_used(), (early, 8));
        for queue in [0, 1, 2] {
            for round in 100..150 {
                let head = rig.send(queue, round);
                assert_eq!(rig.queues[queue].wait_used(), (head, 8));
                let mut expected = request(round);
                expected.reverse();
                assert_eq!(rig.queues[queue].buffer(head, 1), expected);
            }
        }
        assert!(!rig.machine.interrupt.take().contains(&InterruptCause::NeedsReset));
    }
}

#[test]
fn requests_without_a_reply_are_handled_whether_kicked_for_or_not() {
    for event_idx in [false, true] {
        let mut rig = Rig::new(1, 1);
        rig.activate(event_idx);
        // As a driver does: the device is kicked when it asks for that. In bursts of all sizes up to a full ring, with and
        // without a lull behind them.
        for round in 0..200 {
            let count = 1 + round % 128;
            let mut heads: HashSet<u16> = (0..count)
                .map(|_| {
                    let head = rig.queues[0].offer(&[&request(SILENT)], &[]);
                    rig.queues[0].kick_if_wanted();
                    head
                })
                .collect();
            while !heads.is_empty() {
                let (head, written) = rig.queues[0].wait_used();
                assert_eq!(written, 0);
                assert!(heads.remove(&head));
            }
            if round % 20 == 0 {
                rig.queues[0].wait_until_kicks_are_wanted();
            }
        }
        // The driver was told of the last as well.
        rig.machine.interrupt.wait_for(InterruptCause::Queue(0));
    }
}

#[test]
fn a_burst_of_requests_without_a_reply_interrupts_once() {
    for event_idx in [false, true] {
        let mut rig = Rig::new(1, 1);
        for _ in 0..100 {
            rig.queues[0].offer(&[&request(SILENT)], &[]);
        }
        rig.activate(event_idx);
        for _ in 0..100 {
            rig.queues[0].wait_used();
        }
        rig.queues[0].wait_until_kicks_are_wanted();
        assert_eq!(rig.machine.interrupt.take(), [InterruptCause::Queue(0)]);
    }
}

#[test]
fn the_process_mask_is_not_that_of_new_files() {
    let before = umask();
    let mut rig = Rig::new(1, 1);
    rig.activate(true);
    // Of a thread from the start and of one started in the place of one that waits.
    for _ in 0..2 {
        let head = rig.send(1, LOOK_AT_UMASK);
        assert_eq!(rig.queues[1].wait_used(), (head, 8));
        assert_eq!(rig.queues[1].buffer(head, 1)[0], 0);
        rig.send(1, SETLKW);
        rig.server.await_waiting(1);
    }
    assert_eq!(umask(), before, "the process's own stays");
    rig.server.release();
}

#[test]
fn a_full_ring_is_answered_after_one_kick() {
    for event_idx in [false, true] {
        let mut rig = Rig::new(1, 3);
        rig.activate(event_idx);
        for _ in 0..3 {
            let mut heads: HashSet<u16> = (100..612)
                .map(|round| rig.queues[1].offer(&[&request(round)], &[8]))
                .collect();
            rig.queues[1].kick();
            while !heads.is_empty() {
                let (head, written) = rig.queues[1].wait_used();
                assert!(heads.remove(&head));
                assert_eq!(written, 8);
            }
        }
    }
}

#[test]
fn a_request_that_takes_long_does_not_hold_up_the_others() {
    for event_idx in [false, true] {
        let mut rig = Rig::new(1, 3);
        rig.activate(event_idx);
        // Each with a kick of its own, then several with one.
        let first = rig.send(1, HOLD);
        rig.server.await_waiting(1);
        let quick = rig.send(1, 1);
        assert_eq!(rig.queues[1].wait_used().0, quick);
        let second = rig.queues[1].offer(&[&request(HOLD)], &[8]);
        let third = rig.queues[1].offer(&[&request(HOLD)], &[8]);
        rig.queues[1].kick();
        rig.server.await_waiting(3);
        // All threads of the queue are taken; the high-priority queue is not held up.
        let late = rig.send(1, 2);
        let urgent = rig.send(0, 3);
        assert_eq!(rig.queues[0].wait_used(), (urgent, 8));
        assert_eq!(rig.queues[1].take_used(), None);
        rig.server.release();
        let answered: HashSet<u16> = (0..4).map(|_| rig.queues[1].wait_used().0).collect();
        assert_eq!(answered, HashSet::from([first, second, third, late]));
    }
}

#[test]
fn any_number_of_waits_for_locks_leaves_room_for_the_one_that_ends_them() {
    for event_idx in [false, true] {
        let mut rig = Rig::new(1, 1);
        rig.activate(event_idx);
        let mut expected = HashSet::new();
        for _ in 0..20 {
            // The opcode may lie across two buffers.
            let bytes = request(SETLKW);
            expected.insert(rig.queues[1].offer(&[&bytes[..5], &bytes[5..]], &[8]));
            rig.queues[1].kick();
        }
        rig.server.await_waiting(20);
        expected.insert(rig.send(1, RELEASE));
        while !expected.is_empty() {
            assert!(expected.remove(&rig.queues[1].wait_used().0));
        }
        // The threads that are not needed any more have gone; a lock that is free needs none.
        for _ in 0..5 {
            rig.send(1, SETLKW);
            rig.queues[1].wait_used();
        }
    }
}

#[test]
fn requests_that_do_not_wait_need_no_more_threads_than_there_are() {
    let mut rig = Rig::new(1, 2);
    rig.activate(true);
    rig.server.release();
    for _ in 0..100 {
        rig.send(1, SETLKW);
        rig.queues[1].wait_used();
    }
    // Two, and one in the place of the one that might have waited.
    assert!(rig.server.threads.lock().unwrap().len() <= 3);
}

#[test]
fn stopping_ends_waits_and_leaves_the_rest_for_later() {
    let mut rig = Rig::new(1, 2);
    rig.activate(false);
    let held = [rig.send(1, HOLD), rig.send(1, HOLD)];
    rig.server.await_waiting(2);
    let locks = [rig.send(0, SETLKW), rig.send(0, SETLKW)];
    rig.server.await_waiting(4);
    let left: Vec<u16> = (0..3).map(|_| rig.send(1, 1)).collect();

    rig.device.suspend();
    assert_eq!(rig.server.resets(), 0);
    let used: HashSet<u16> = (0..2).map(|_| rig.queues[1].take_used().unwrap().0).collect();
    assert_eq!(used, held.into());
    assert_eq!(rig.queues[1].take_used(), None);
    let used: HashSet<u16> = (0..2).map(|_| rig.queues[0].take_used().unwrap().0).collect();
    assert_eq!(used, locks.into());
    rig.device.suspend();
    assert_eq!(rig.server.resets(), 0);

    rig.device.deactivate();
    assert_eq!(rig.server.resets(), 1);
    rig.device.deactivate();
    assert_eq!(rig.server.resets(), 1);
    drop(left);

    // As new.
    rig.set_up_queues();
    rig.activate(true);
    let head = rig.send(1, 5);
    assert_eq!(rig.queues[1].wait_used(), (head, 8));
    drop(rig.device);
    assert_eq!(rig.server.resets(), 2);
}

#[test]
fn a_queue_left_off_goes_on_where_it_was() {
    let mut rig = Rig::new(1, 2);
    rig.activate(false);
    let held = [rig.send(1, HOLD), rig.send(1, HOLD)];
    rig.server.await_waiting(2);
    let left = [rig.send(1, 1), rig.send(1, 2)];
    rig.device.suspend();
    let used: HashSet<u16> = (0..2).map(|_| rig.queues[1].take_used().unwrap().0).collect();
    assert_eq!(used, held.into());

    let resumed = rig.queues[1].resume_device_queue(2, 2);
    let high_priority = rig.queues[0].device_queue(0);
    let activation = rig
        .machine
        .activation(vec![Some(high_priority), Some(resumed)], 0, &rig.event_loop);
    rig.device.activate(activation).unwrap();
    let used: HashSet<u16> = (0..2).map(|_| rig.queues[1].wait_used().0).collect();
    assert_eq!(used, left.into());
    assert_eq!(rig.server.resets(), 0);
}

#[test]
fn a_malformed_chain_fails_the_device_until_it_is_reset() {
    let mut rig = Rig::new(2, 2);
    rig.activate(true);
    // A head outside the table.
    rig.queues[1].publish(1024);
    rig.queues[1].kick();
    rig.machine.interrupt.wait_for(InterruptCause::NeedsReset);
    rig.send(1, 1);
    let head = rig.send(2, 1);
    assert_eq!(rig.queues[2].wait_used(), (head, 8));
    assert_eq!(rig.queues[1].take_used(), None);

    rig.device.deactivate();
    rig.set_up_queues();
    rig.activate(true);
    let head = rig.send(1, 1);
    assert_eq!(rig.queues[1].wait_used(), (head, 8));
}

#[test]
fn a_driver_may_leave_request_queues_out_but_not_all_of_them() {
    let mut rig = Rig::new(3, 1);
    let queues = vec![
        Some(rig.queues[0].device_queue(0)),
        None,
        Some(rig.queues[2].device_queue(2)),
        None,
    ];
    let activation = rig.machine.activation(queues, 0, &rig.event_loop);
    assert!(matches!(
        rig.device.activate(activation),
        Err(ActivateError::MissingQueue(1))
    ));
    let queues = vec![
        Some(rig.queues[0].device_queue(0)),
        Some(rig.queues[1].device_queue(1)),
        None,
        None,
    ];
    let activation = rig.machine.activation(queues, 0, &rig.event_loop);
    rig.device.activate(activation).unwrap();
    let head = rig.send(1, 1);
    assert_eq!(rig.queues[1].wait_used(), (head, 8));
}

#[test]
fn confined_threads_take_over_while_the_others_are_at_work() {
    let dir = tempfile::tempdir().unwrap();
    let fence = || {
        let area = crate::confine::Area {
            root: dir.path(),
            read_only: false,
        };
        Fence::new([area]).unwrap()
    };
    let seen = |confined: bool| u8::from(!confined || !fence().confines());
    let mut rig = Rig::new(2, 2);
    let confiner = rig.device.confiner();
    rig.activate(true);
    let look = |rig: &mut Rig, queue: usize| {
        let head = rig.send(queue, LOOK_OUTSIDE);
        assert_eq!(rig.queues[queue].wait_used(), (head, 8));
        rig.queues[queue].buffer(head, 1)[0]
    };
    assert_eq!(look(&mut rig, 1), seen(false));
    // One in the middle of a request, one in the place of one that waits, one asleep.
    let mut held = HashSet::from([rig.send(1, HOLD), rig.send(1, SETLKW)]);
    rig.server.await_waiting(2);
    for _ in 0..20 {
        confiner.confine(fence()).unwrap();
    }
    for queue in 0..3 {
        for _ in 0..5 {
            assert_eq!(look(&mut rig, queue), seen(true));
        }
    }
    // Those that they start are confined as well.
    held.extend((0..5).map(|_| rig.send(1, SETLKW)));
    rig.server.await_waiting(7);
    assert_eq!(look(&mut rig, 1), seen(true));
    rig.server.release();
    while !held.is_empty() {
        assert!(held.remove(&rig.queues[1].wait_used().0));
    }
    assert_eq!(look(&mut rig, 1), seen(true));
    // And after a reset.
    rig.device.deactivate();
    confiner.confine(fence()).unwrap();
    rig.set_up_queues();
    rig.activate(true);
    assert_eq!(look(&mut rig, 2), seen(true));
    assert!(std::fs::read_dir("/etc").is_ok());
}
