//! Every device against a driver that writes anything into its rings and buffers.
//!
//! What may come of it: answers, refusals, DEVICE_NEEDS_RESET. What must not: a panic, a loop without end, or a device that
//! does not work again after a reset.

use std::os::unix::net::UnixStream;

use event_manager::{EventOps, Events, MutEventSubscriber};
use proptest::prelude::*;

use super::{
    VirtioDevice,
    balloon::{BalloonConfig, balloon},
    block::{Block, BlockConfig},
    console::console,
    net::net,
    rng::Rng,
    test_driver::{TestMachine, TestQueue},
};
use crate::event_loop::EventLoop;

/// All features of the device, that is, the most code paths; and none of them.
fn feature_sets(device: &dyn VirtioDevice) -> [u64; 2] {
    [device.features(), 0]
}

struct Nothing;

impl MutEventSubscriber for Nothing {
    fn process(&mut self, _: Events, _: &mut EventOps) {}
    fn init(&mut self, _: &mut EventOps) {}
}

/// Returns when the loop has handled all that was ready before. Fails if its thread has died.
fn settle(event_loop: &EventLoop) {
    for _ in 0..2 {
        let id = event_loop.handle().add(Box::new(Nothing)).unwrap();
        event_loop.handle().remove(id).unwrap();
    }
}

/// One round: rings full of `bytes`, `heads` made available in all queues, then a reset and an orderly start.
fn torment(device: &mut dyn VirtioDevice, bytes: &[u8], heads: &[u16], event_idx: bool) {
    let event_loop = EventLoop::spawn("hostile").unwrap();
    for features in feature_sets(device) {
        let machine = TestMachine::new();
        let sizes = device.queue_max_sizes().to_vec();
        let mut drivers: Vec<TestQueue> = (0..)
            .zip(&sizes)
            .map(|(index, size)| machine.queue(index, *size))
            .collect();
        let queues = drivers
            .iter_mut()
            .map(|driver| Some(driver.device_queue_with(event_idx)))
            .collect();
        device
            .activate(machine.activation(queues, features, &event_loop))
            .unwrap();
        for driver in &mut drivers {
            driver.scribble(bytes);
            for head in heads {
                driver.publish(*head);
            }
            driver.kick();
        }
        device.write_config(u64::from(heads[0]), &bytes[..bytes.len().min(8)]);
        device.read_config(u64::MAX - 1, &mut [0; 8]);
        settle(&event_loop);
        device.deactivate();
        settle(&event_loop);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_device_minds_arbitrary_rings(
        bytes in prop::collection::vec(any::<u8>(), 16..1000),
        heads in prop::collection::vec(prop_oneof![9 => 0u16..40, 1 => any::<u16>()], 1..30),
        event_idx: bool,
    ) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let mut disk = Block::open(BlockConfig {
            path: file.path().into(),
            read_only: false,
            serial: "hostile".into(),
            queues: 2,
        })
        .unwrap();
        torment(&mut disk, &bytes, &heads, event_idx);
        prop_assert_eq!(file.as_file().metadata().unwrap().len(), 1 << 20);

        torment(&mut Rng::new(), &bytes, &heads, event_idx);

        let (mut screen, keyboard) = console(Box::new(std::io::sink())).unwrap();
        keyboard.write(&bytes).unwrap();
        torment(&mut screen, &bytes, &heads, event_idx);

        let config = BalloonConfig { free_page_reporting: true, deflate_on_oom: true };
        let (mut memory, control) = balloon(config).unwrap();
        control.set_target_pages(5).unwrap();
        torment(&mut memory, &bytes, &heads, event_idx);

        let (mut card, link) = net([2, 0, 0, 0, 0, 1]).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        link.attach(Some(ours)).unwrap();
        let frame = [&100u32.to_be_bytes()[..], &[7; 100]].concat();
        std::io::Write::write_all(&mut theirs, &frame.repeat(20)).unwrap();
        torment(&mut card, &bytes, &heads, event_idx);
    }
}
