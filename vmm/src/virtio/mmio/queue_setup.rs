//! What a driver says of a queue, and the checks it must pass before a device sees it.

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::GuestRegions;

/// A queue as the driver describes it (virtio 1.2, 2.7). Nothing in it is trusted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueSetup {
    /// The number of entries.
    pub size: u32,
    /// The address of the descriptor table.
    pub desc: u64,
    /// The address of the available ring.
    pub driver: u64,
    /// The address of the used ring.
    pub device: u64,
    /// The driver says that the rest is set.
    pub ready: bool,
}

/// What is wrong with a queue's setup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueSetupError {
    /// The size breaks 2.7's rules.
    #[error("its size {size} is not a power of two up to {max}")]
    Size {
        /// What the driver set.
        size: u32,
        /// What the device has.
        max: u16,
    },
    /// An address is not aligned as 2.7 demands.
    #[error("its {area} at {address:#x} is not aligned to {alignment}")]
    Alignment {
        /// Which.
        area: &'static str,
        /// Where.
        address: u64,
        /// To what.
        alignment: u64,
    },
    /// A ring does not lie in guest memory.
    #[error("its {area} at {address:#x} lies outside guest memory")]
    OutsideMemory {
        /// Which.
        area: &'static str,
        /// Where.
        address: u64,
    },
}

impl QueueSetup {
    /// The queue, when everything the driver said of it is sound.
    pub fn check(&self, max: u16, event_idx: bool, memory: &GuestRegions) -> Result<Queue, QueueSetupError> {
        let bad_size = QueueSetupError::Size { size: self.size, max };
        let size = u16::try_from(self.size).map_err(|_| bad_size)?;
        if !size.is_power_of_two() || size > max {
            return Err(bad_size);
        }
        let entries = usize::from(size);
        // Sizes and alignments: 2.7, table 2.4; rings with their event field (6 = flags, idx, event).
        check_area(memory, "descriptor table", self.desc, 16, 16 * entries)?;
        check_area(memory, "available ring", self.driver, 2, 6 + 2 * entries)?;
        check_area(memory, "used ring", self.device, 4, 6 + 8 * entries)?;

        let mut queue = Queue::new(max).map_err(|_| bad_size)?;
        queue.set_size(size);
        queue.set_desc_table_address(Some(self.desc as u32), Some((self.desc >> 32) as u32));
        queue.set_avail_ring_address(Some(self.driver as u32), Some((self.driver >> 32) as u32));
        queue.set_used_ring_address(Some(self.device as u32), Some((self.device >> 32) as u32));
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(queue)
    }
}

fn check_area(
    memory: &GuestRegions,
    area: &'static str,
    address: u64,
    alignment: u64,
    length: usize,
) -> Result<(), QueueSetupError> {
    if !address.is_multiple_of(alignment) {
        return Err(QueueSetupError::Alignment {
            area,
            address,
            alignment,
        });
    }
    if !memory.check_range(GuestAddress(address), length) {
        return Err(QueueSetupError::OutsideMemory { area, address });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MEMORY: u64 = 1 << 20;

    fn memory() -> GuestRegions {
        crate::memory::allocate(&[(GuestAddress(0), MEMORY as usize)]).unwrap()
    }

    const SOUND: QueueSetup = QueueSetup {
        size: 16,
        desc: 0x1000,
        driver: 0x2000,
        device: 0x3000,
        ready: true,
    };

    #[test]
    fn a_sound_queue_is_as_described() {
        let memory = memory();
        let queue = SOUND.check(256, true, &memory).unwrap();
        assert_eq!((queue.size(), queue.max_size()), (16, 256));
        assert_eq!(
            (queue.desc_table(), queue.avail_ring(), queue.used_ring()),
            (0x1000, 0x2000, 0x3000)
        );
        assert!(queue.event_idx_enabled());
        assert!(queue.is_valid(&memory));
    }

    #[test]
    fn sizes_are_powers_of_two_up_to_the_most() {
        for size in [0, 3, 24, 512, 0x1_0010, u32::MAX] {
            let setup = QueueSetup { size, ..SOUND };
            assert_eq!(
                setup.check(256, false, &memory()).err(),
                Some(QueueSetupError::Size { size, max: 256 })
            );
        }
        for size in [1, 2, 256] {
            assert!(QueueSetup { size, ..SOUND }.check(256, false, &memory()).is_ok());
        }
    }

    #[test]
    fn rings_are_aligned() {
        for setup in [
            QueueSetup {
                desc: 0x1008,
                ..SOUND
            },
            QueueSetup {
                driver: 0x2001,
                ..SOUND
            },
            QueueSetup {
                device: 0x3002,
                ..SOUND
            },
        ] {
            let error = setup.check(256, false, &memory()).unwrap_err();
            assert!(matches!(error, QueueSetupError::Alignment { .. }), "{error}");
        }
    }

    #[test]
    fn rings_lie_in_memory_to_their_last_byte() {
        let fits = QueueSetup {
            desc: MEMORY - 256,
            ..SOUND
        };
        assert!(fits.check(256, false, &memory()).is_ok());
        for setup in [
            QueueSetup {
                desc: MEMORY - 240,
                ..SOUND
            },
            QueueSetup {
                driver: MEMORY - 36,
                ..SOUND
            },
            QueueSetup {
                device: u64::MAX - 3,
                ..SOUND
            },
        ] {
            let error = setup.check(256, false, &memory()).unwrap_err();
            assert!(matches!(error, QueueSetupError::OutsideMemory { .. }), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_is_valid(
            size in prop_oneof![Just(8u32), 0..=300u32, any::<u32>()],
            desc in prop_oneof![(0..MEMORY / 16).prop_map(|at| at * 16), any::<u64>()],
            driver in prop_oneof![0..MEMORY, any::<u64>()],
            device in prop_oneof![0..MEMORY, any::<u64>()],
        ) {
            let memory = memory();
            let setup = QueueSetup { size, desc, driver, device, ready: true };
            if let Ok(queue) = setup.check(256, false, &memory) {
                prop_assert!(queue.is_valid(&memory));
                prop_assert_eq!(u32::from(queue.size()), size);
                prop_assert_eq!(queue.desc_table(), desc);
            }
        }
    }
}
