//! Arbitrary accesses to a device's registers, and the proof that a driver can start it afterwards.

use std::{io, io::sink, sync::Arc};

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{devices::disk, input::Input, machine::machine};
use crate::{
    event_loop::EventLoop,
    memory::GuestRam,
    virtio::{
        VirtioDevice,
        balloon::{BalloonConfig, balloon},
        console::console,
        mmio::{
            Doorbells, MmioBus, MmioInterrupt, MmioTransport,
            registers::{self as reg, status},
        },
        net::net,
        rng::Rng,
        vsock::vsock,
    },
};

const BASE: u64 = 0xd000_0000;
const STRIDE: u64 = 0x1000;
/// Where an orderly driver has the rings of its queues, and how far apart.
const RINGS: u64 = 1 << 20;
const VERSION_1: u64 = 1 << 32;

/// Every kick goes through the QueueNotify register.
struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn connect(&self, _: u16, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
    fn disconnect(&self, _: u16, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

struct Guest {
    bus: MmioBus,
    memory: GuestRam,
}

/// The body of the fuzz target `mmio`.
pub fn fuzz_mmio(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (device, _file): (Box<dyn VirtioDevice>, _) = match input.byte() % 6 {
        0 => {
            let (disk, file) = disk(false);
            (Box::new(disk), Some(file))
        }
        1 => (Box::new(net([2, 0, 0, 0, 0, 1]).unwrap().0), None),
        2 => (Box::new(console(Box::new(sink())).unwrap().0), None),
        3 => {
            let config = BalloonConfig {
                free_page_reporting: true,
                deflate_on_oom: true,
            };
            (Box::new(balloon(config).unwrap().0), None)
        }
        4 => (Box::new(vsock(3).unwrap().0), None),
        _ => (Box::new(Rng::new()), None),
    };
    let event_loop = EventLoop::spawn("fuzz").unwrap();
    let memory = machine().memory;
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    let transport = MmioTransport::new(
        device,
        memory.clone(),
        event_loop.handle(),
        Box::new(NoDoorbells),
        Arc::new(MmioInterrupt::new(line)),
    );
    let guest = Guest {
        bus: MmioBus::new(BASE, STRIDE, vec![transport]),
        memory,
    };
    while !input.is_empty() {
        guest.step(&mut input);
    }
    // Whatever it was.
    assert_eq!(guest.read(reg::MAGIC_VALUE), reg::MAGIC);
    guest.write(reg::STATUS, 0);
    assert_eq!(guest.read(reg::STATUS), 0);
    guest.start(VERSION_1);
    let all_well = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    assert_eq!(guest.read(reg::STATUS), all_well);
    guest.bus.shut_down(0);
}

impl Guest {
    fn read(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.bus.read(BASE + offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn write(&self, offset: u64, value: u32) {
        self.bus.write(BASE + offset, &value.to_le_bytes());
    }

    fn step(&self, input: &mut Input<'_>) {
        match input.byte() {
            // One of the registers that there are, and some that there are not.
            0..80 => self.write(u64::from(input.byte() & !3), input.number()),
            80..100 => {
                self.read(u64::from(input.byte() & !3));
            }
            100..130 => {
                let address = BASE + u64::from(input.short());
                let length = usize::from(input.byte() % 9);
                self.bus.write(address, input.bytes(length));
            }
            130..150 => {
                let address = if input.chance(20) {
                    input.long()
                } else {
                    BASE + u64::from(input.short())
                };
                self.bus
                    .read(address, &mut vec![0; usize::from(input.byte() % 9)]);
            }
            150..165 => {
                let low = input.pick(&[reg::QUEUE_DESC_LOW, reg::QUEUE_DRIVER_LOW, reg::QUEUE_DEVICE_LOW]);
                self.write_address(low, input.address() & !15);
            }
            165..175 => {
                let features = if input.chance(128) {
                    VERSION_1
                } else {
                    VERSION_1 | input.long()
                };
                self.start(features);
            }
            175..190 => {
                let length = usize::from(input.byte());
                self.fill(input.address(), input.bytes(length));
            }
            190..230 => self.offer(input),
            230..250 => self.write(reg::QUEUE_NOTIFY, u32::from(input.byte() % 6)),
            _ => self.write(reg::STATUS, 0),
        }
    }

    /// The whole of virtio 1.2, 3.1.1, as far as the device goes along.
    fn start(&self, features: u64) {
        for bit in [status::ACKNOWLEDGE, status::DRIVER] {
            self.add_status(bit);
        }
        for half in 0..2 {
            self.write(reg::DRIVER_FEATURES_SEL, half);
            self.write(reg::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.add_status(status::FEATURES_OK);
        for queue in 0..5 {
            self.write(reg::QUEUE_SEL, queue);
            let size = self.read(reg::QUEUE_SIZE_MAX);
            if size == 0 {
                break;
            }
            self.write(reg::QUEUE_SIZE, size.min(64));
            let [descriptors, available, used] = rings(queue);
            self.fill(available, &[0; 4]);
            self.fill(used, &[0; 4]);
            self.write_address(reg::QUEUE_DESC_LOW, descriptors);
            self.write_address(reg::QUEUE_DRIVER_LOW, available);
            self.write_address(reg::QUEUE_DEVICE_LOW, used);
            self.write(reg::QUEUE_READY, 1);
        }
        self.add_status(status::DRIVER_OK);
    }

    fn add_status(&self, bit: u32) {
        self.write(reg::STATUS, self.read(reg::STATUS) | bit);
    }

    fn write_address(&self, low: u64, address: u64) {
        self.write(low, address as u32);
        self.write(low + 4, (address >> 32) as u32);
    }

    /// Makes one descriptor available where an orderly driver would.
    fn offer(&self, input: &mut Input<'_>) {
        let [descriptors, available, _] = rings(u32::from(input.byte() % 5));
        let entry = u64::from(input.byte() % 64);
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&input.address().to_le_bytes());
        descriptor[8..12].copy_from_slice(&input.length().to_le_bytes());
        descriptor[12] = input.byte() & 7;
        descriptor[14] = input.byte() % 64;
        self.fill(descriptors + 16 * entry, &descriptor);
        let memory = self.memory.memory();
        let index: u16 = memory.read_obj(GuestAddress(available + 2)).unwrap();
        self.fill(available + 4 + 2 * u64::from(index % 64), &[entry as u8, 0]);
        self.fill(available + 2, &index.wrapping_add(1).to_le_bytes());
    }

    fn fill(&self, address: u64, bytes: &[u8]) {
        // The guest's processor stops it from writing where there is no memory.
        let _ = self.memory.memory().write_slice(bytes, GuestAddress(address));
    }
}

fn rings(queue: u32) -> [u64; 3] {
    let base = RINGS * (u64::from(queue) + 1);
    [base, base + 0x1000, base + 0x2000]
}
