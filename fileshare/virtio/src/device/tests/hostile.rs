//! A driver that writes anything into its rings and buffers, against the real server.

use fileshare::{server::Server, testing::RamFs};
use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_it_does_lasts_longer_than_a_reset(
        bytes in prop::collection::vec(any::<u8>(), 16..1000),
        heads in prop::collection::vec(prop_oneof![9 => 0u16..40, 1 => any::<u16>()], 1..30),
        opcode in 0u32..60,
        event_idx: bool,
    ) {
        let event_loop = EventLoop::spawn("hostile").unwrap();
        let config = VirtioFsConfig { tag: String::new(), request_queues: 2, threads_per_queue: 2 };
        let server = Arc::new(Server::new(Arc::new(RamFs::new())));
        let mut device = VirtioFs::new(config, server).unwrap();
        let machine = TestMachine::new();
        for hostile in [true, false] {
            let sizes = device.queue_max_sizes().to_vec();
            let mut drivers: Vec<TestQueue> =
                (0..).zip(sizes).map(|(index, size)| machine.queue(index, size)).collect();
            let queues =
                drivers.iter_mut().map(|driver| Some(driver.device_queue_with(event_idx))).collect();
            device.activate(machine.activation(queues, 0, &event_loop)).unwrap();
            if hostile {
                for driver in &mut drivers {
                    driver.offer(&[&request(opcode), &bytes], &[64]);
                    driver.scribble(&bytes);
                    for head in &heads {
                        driver.publish(*head);
                    }
                    driver.kick();
                }
            } else {
                // STATFS before INIT: an error, in good form.
                let mut statfs = vec![0; 40];
                statfs[0] = 40;
                statfs[4] = 17;
                statfs[8] = 99;
                let head = drivers[1].offer(&[&statfs], &[16, 80]);
                drivers[1].kick();
                prop_assert_eq!(drivers[1].wait_used(), (head, 16));
                let mut answer = vec![16, 0, 0, 0];
                answer.extend_from_slice(&(-libc::EIO).to_le_bytes());
                answer.extend_from_slice(&[99, 0, 0, 0, 0, 0, 0, 0]);
                prop_assert_eq!(drivers[1].buffer(head, 1), answer);
            }
            device.deactivate();
        }
    }
}
