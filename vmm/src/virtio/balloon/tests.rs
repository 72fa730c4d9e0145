use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::*;
use crate::{
    event_loop::EventLoop,
    virtio::{
        InterruptCause,
        test_driver::{TestMachine, TestQueue},
    },
};

const PAGE: u64 = BALLOON_PAGE;
/// Free pages of the test's memory, past all rings and buffers.
const PAGES: u64 = 0x3c0_0000 / PAGE;

struct Setup {
    machine: TestMachine,
    event_loop: EventLoop,
    device: Balloon,
    control: BalloonControl,
}

impl Setup {
    fn new() -> Setup {
        let (device, control) = balloon(BalloonConfig {
            free_page_reporting: true,
            deflate_on_oom: true,
        })
        .unwrap();
        Setup {
            machine: TestMachine::new(),
            event_loop: EventLoop::spawn("test").unwrap(),
            device,
            control,
        }
    }

    /// Activates with these features and as many queues from the first on.
    fn activate(&mut self, features: u64, count: u16) -> Vec<TestQueue> {
        let mut drivers: Vec<TestQueue> = (0..count)
            .map(|index| self.machine.queue(index, QUEUE_SIZE))
            .collect();
        let queues = (0..)
            .zip(&mut drivers)
            .map(|(index, driver)| Some(driver.device_queue(index)))
            .collect();
        self.device
            .activate(self.machine.activation(queues, features, &self.event_loop))
            .unwrap();
        drivers
    }

    fn fill(&self, page: u64) {
        let memory = self.machine.memory.memory();
        memory
            .write_slice(&[1; PAGE as usize], GuestAddress(page * PAGE))
            .unwrap();
    }

    fn is_empty(&self, page: u64) -> bool {
        let memory = self.machine.memory.memory();
        memory.read_obj::<u8>(GuestAddress(page * PAGE)).unwrap() == 0
    }
}

fn numbers(pages: &[u64]) -> Vec<u8> {
    pages
        .iter()
        .flat_map(|page| (*page as u32).to_le_bytes())
        .collect()
}

fn entry(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

#[test]
fn inflating_drops_exactly_the_pages_named() {
    let mut setup = Setup::new();
    let mut drivers = setup.activate(0, 2);
    for page in PAGES..PAGES + 8 {
        setup.fill(page);
    }
    // In the order Linux has them, and with numbers beyond memory.
    let named = [PAGES + 5, PAGES + 4, PAGES + 2, u64::from(u32::MAX), 1 << 30];
    let head = drivers[0].offer(&[&numbers(&named)], &[]);
    drivers[0].kick();
    assert_eq!(drivers[0].wait_used(), (head, 0));
    let empty: Vec<u64> = (0..8).filter(|page| setup.is_empty(PAGES + page)).collect();
    assert_eq!(empty, [2, 4, 5]);
    assert_eq!(setup.control.released_bytes(), 3 * PAGE);

    let head = drivers[1].offer(&[&numbers(&named)], &[]);
    drivers[1].kick();
    assert_eq!(drivers[1].wait_used(), (head, 0));
}

#[test]
fn the_target_reaches_the_guest_and_its_answer_the_host() {
    let mut setup = Setup::new();
    setup.control.set_target_pages(7).unwrap();
    let _drivers = setup.activate(0, 2);
    let mut heard = setup.control.watch_actual();
    let config = |device: &Balloon| {
        let mut space = [0; 8];
        device.read_config(0, &mut space);
        u64::from_le_bytes(space)
    };
    assert_eq!(config(&setup.device), 7);
    setup.control.set_target_pages(1000).unwrap();
    setup.machine.interrupt.wait_for(InterruptCause::Config);
    assert_eq!(config(&setup.device), 1000);
    assert!(!heard.has_changed().unwrap());
    setup.device.write_config(ACTUAL_OFFSET, &900u32.to_le_bytes());
    assert!(heard.has_changed().unwrap());
    assert_eq!(*heard.borrow_and_update(), 900);
    // No news, read-only, or odd.
    setup.device.write_config(ACTUAL_OFFSET, &900u32.to_le_bytes());
    setup.device.write_config(0, &1u32.to_le_bytes());
    setup.device.write_config(ACTUAL_OFFSET, &[1]);
    assert_eq!(setup.control.actual_pages(), 900);
    assert_eq!(config(&setup.device), 900 << 32 | 1000);
    assert!(!heard.has_changed().unwrap());
    setup.device.deactivate();
    assert_eq!(*heard.borrow_and_update(), 0);
    assert_eq!(
        (setup.control.actual_pages(), setup.control.target_pages()),
        (0, 1000)
    );
}

#[test]
fn reported_pages_go_back_wherever_the_queue_is() {
    // Features and the number of queues; reporting is the last of them.
    let layouts = [
        (F_REPORTING, 3),
        (F_REPORTING | F_STATS_VQ, 4),
        (F_REPORTING | F_STATS_VQ, 5),
    ];
    for (features, count) in layouts {
        let mut setup = Setup::new();
        let mut drivers: Vec<TestQueue> = (0..count)
            .map(|index| setup.machine.queue(index, QUEUE_SIZE))
            .collect();
        let queues = (0..)
            .zip(&mut drivers)
            // With five queues, the fourth is for hints, which the driver leaves out.
            .map(|(index, driver)| (count != 5 || index != 3).then(|| driver.device_queue(index)))
            .collect();
        setup
            .device
            .activate(setup.machine.activation(queues, features, &setup.event_loop))
            .unwrap();
        for page in PAGES..PAGES + 8 {
            setup.fill(page);
        }
        let reporting = drivers.last_mut().unwrap();
        let head = reporting.offer_raw(&[
            (GuestAddress(PAGES * PAGE), 2 * PAGE as u32, true),
            // Not whole pages: only the whole one inside goes.
            (GuestAddress((PAGES + 4) * PAGE + 1), 2 * PAGE as u32, true),
        ]);
        reporting.kick();
        assert_eq!(reporting.wait_used(), (head, 0));
        let empty: Vec<u64> = (0..8).filter(|page| setup.is_empty(PAGES + page)).collect();
        assert_eq!(empty, [0, 1, 5]);
        assert_eq!(setup.control.released_bytes(), 3 * PAGE);
    }
}

#[test]
fn statistics_come_when_asked_for() {
    let mut setup = Setup::new();
    let patience = Duration::from_secs(30);
    assert_eq!(setup.control.refresh_stats(patience).unwrap(), None);
    let mut drivers = setup.activate(F_STATS_VQ, 3);
    let first = [entry(4, 1 << 20), entry(5, 1 << 30), entry(99, 1), entry(0, 0)].concat();
    let head = drivers[2].offer(&[&first], &[]);
    drivers[2].kick();

    // The guest answers when its buffer comes back.
    let control = setup.control.clone();
    let asking = std::thread::spawn(move || control.refresh_stats(patience).unwrap());
    assert_eq!(drivers[2].wait_used(), (head, 0));
    // The first answer may have come before or after the question; both are the guest's latest word.
    let second = [entry(4, 2 << 20), entry(6, 3 << 20), vec![1, 2, 3]].concat();
    drivers[2].offer(&[&second], &[]);
    drivers[2].kick();
    let answer = asking.join().unwrap().unwrap();
    let old = BalloonStats {
        free: Some(1 << 20),
        total: Some(1 << 30),
        swap_in: Some(0),
        ..BalloonStats::default()
    };
    let new = BalloonStats {
        free: Some(2 << 20),
        available: Some(3 << 20),
        ..BalloonStats::default()
    };
    assert!(answer == old || answer == new, "{answer:?}");
    // Or the second would answer the next question.
    while setup.control.stats() != Some(new) {
        std::thread::yield_now();
    }

    // A reset while somebody waits ends the waiting.
    let control = setup.control.clone();
    let asking = std::thread::spawn(move || control.refresh_stats(patience).unwrap());
    drivers[2].wait_used();
    setup.device.deactivate();
    assert_eq!(asking.join().unwrap(), None);
    assert_eq!(setup.control.stats(), None);
}

#[test]
fn a_driver_with_many_statistics_buffers_gets_them_back() {
    let mut setup = Setup::new();
    let mut drivers = setup.activate(F_STATS_VQ, 3);
    let heads: Vec<u16> = (0..40).map(|_| drivers[2].offer(&[b"x"], &[])).collect();
    drivers[2].kick();
    for head in &heads[..39] {
        assert_eq!(drivers[2].wait_used(), (*head, 0));
    }
    assert_eq!(drivers[2].take_used(), None);
}

#[test]
fn hostile_chains_stop_the_device_until_a_reset() {
    let mut setup = Setup::new();
    for queue in 0..4 {
        let mut drivers = setup.activate(F_REPORTING | F_STATS_VQ, 4);
        drivers[queue].offer_raw(&[(GuestAddress(u64::MAX - 4096), 4096, queue == 3)]);
        drivers[queue].kick();
        setup.machine.interrupt.wait_for(InterruptCause::NeedsReset);
        setup.device.deactivate();
    }
    let mut drivers = setup.activate(F_REPORTING | F_STATS_VQ, 4);
    // The wrong direction: nothing to inflate, nothing to report.
    for (queue, readable) in [(0, false), (3, true)] {
        setup.fill(PAGES);
        let head = drivers[queue].offer_raw(&[(GuestAddress(PAGES * PAGE), PAGE as u32, !readable)]);
        drivers[queue].kick();
        assert_eq!(drivers[queue].wait_used(), (head, 0));
        assert!(!setup.is_empty(PAGES));
    }
    setup.device.deactivate();
    drivers[0].offer(&[&numbers(&[PAGES])], &[]);
    drivers[0].kick();
    assert_eq!(drivers[0].take_used(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever page numbers come, in whatever chunks, the device answers and memory stays mapped.
    #[test]
    fn arbitrary_page_numbers_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let mut setup = Setup::new();
        let mut drivers = setup.activate(0, 2);
        // Its own rings may go; only what is inside memory can.
        let in_data: Vec<u8> = bytes
            .chunks_exact(4)
            .filter(|number| number[3] != 0 || number[2] != 0 || u16::from_le_bytes([number[0], number[1]]) >= 0x1000)
            .flatten()
            .copied()
            .collect();
        let pieces: Vec<&[u8]> = in_data.chunks(999).collect();
        if !pieces.is_empty() {
            let head = drivers[0].offer(&pieces, &[]);
            drivers[0].kick();
            prop_assert_eq!(drivers[0].wait_used(), (head, 0));
        }
        setup.fill(PAGES);
        prop_assert!(!setup.is_empty(PAGES));
    }
}
