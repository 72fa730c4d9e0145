//! A front end that behaves like QEMU, and one that does not.

use std::{
    fs::File,
    os::{
        fd::AsRawFd,
        unix::{fs::FileExt, net::UnixListener},
    },
    sync::{Arc, Mutex},
};

use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
        message::{VhostUserConfigFlags, VhostUserHeaderFlag},
    },
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::VhostUserServer;
use crate::virtio::{ActivateError, Activation, VirtQueue, VirtioDevice, device::read_config_bytes};

const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7f00_0000_0000;
const SIZE: u64 = 0x10_0000;
const RING: u64 = 0x1_0000;
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// A device that uses whatever is in its first queue when it is activated, and writes down what happens to it.
struct Greedy {
    queues: Vec<VirtQueue>,
    log: Arc<Mutex<Vec<String>>>,
}

impl VirtioDevice for Greedy {
    fn device_id(&self) -> u32 {
        99
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[16, 16, 16]
    }
    fn features(&self) -> u64 {
        1
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(b"configuration", offset, data);
    }
    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mut first = activation.require_queue(0)?;
        let second = activation.require_queue(1)?;
        let mut used = 0;
        while let Some(chain) = first.pop().unwrap() {
            first.add_used(chain.head_index(), 5).unwrap();
            used += 1;
        }
        first.notify().unwrap();
        let others = activation.queues.iter().flatten().count();
        self.log
            .lock()
            .unwrap()
            .push(format!("used {used}, others {others}"));
        self.queues = vec![first, second];
        Ok(())
    }
    fn deactivate(&mut self) {
        self.queues.clear();
        self.log.lock().unwrap().push("stopped".to_owned());
    }
    fn suspend(&mut self) {
        self.queues.clear();
        self.log.lock().unwrap().push("suspended".to_owned());
    }
}

struct Rig {
    server: VhostUserServer,
    front: Frontend,
    memory: File,
    log: Arc<Mutex<Vec<String>>>,
    calls: Vec<EventFd>,
    _directory: tempfile::TempDir,
}

fn region(memory: &File, size: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: GUEST,
        memory_size: size,
        userspace_addr: USER,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    }
}

impl Rig {
    fn new() -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let log = Arc::default();
        let device = Greedy {
            queues: Vec::new(),
            log: Arc::clone(&log),
        };
        let server = VhostUserServer::spawn("test", listener, Box::new(device)).unwrap();
        let front = Frontend::connect(&path, 3).unwrap();
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(SIZE).unwrap();
        Rig {
            server,
            front,
            memory,
            log,
            calls: Vec::new(),
            _directory: directory,
        }
    }

    fn negotiate(&mut self) {
        self.front.set_owner().unwrap();
        let features = self.front.get_features().unwrap();
        assert_eq!(features, 1 | 1 << 28 | 1 << 29 | 1 << 32 | PROTOCOL_FEATURES);
        let protocol = self.front.get_protocol_features().unwrap();
        assert!(protocol.contains(
            VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
        ));
        self.front.set_protocol_features(protocol).unwrap();
        self.front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        self.front.set_features(1 | 1 << 32 | PROTOCOL_FEATURES).unwrap();
        self.share_memory();
    }

    fn share_memory(&self) {
        self.front.set_mem_table(&[region(&self.memory, SIZE)]).unwrap();
    }

    fn set_up_ring(&mut self, index: usize, base: u16) {
        let ring = USER + RING * (index as u64 + 1);
        self.front.set_vring_num(index, 8).unwrap();
        self.front.set_vring_base(index, base).unwrap();
        self.front
            .set_vring_addr(
                index,
                &VringConfigData {
                    queue_max_size: 8,
                    queue_size: 8,
                    flags: 0,
                    desc_table_addr: ring,
                    used_ring_addr: ring + 0x2000,
                    avail_ring_addr: ring + 0x1000,
                    log_addr: None,
                },
            )
            .unwrap();
        let call = EventFd::new(EFD_NONBLOCK).unwrap();
        self.front.set_vring_call(index, &call).unwrap();
        self.calls.push(call);
        // QEMU's are blocking.
        self.front
            .set_vring_kick(index, &EventFd::new(0).unwrap())
            .unwrap();
    }

    /// Offers one writable buffer in ring 0, as entry `number` from the start of time.
    fn offer(&self, number: u16) {
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&(GUEST + 0x8000).to_le_bytes());
        descriptor[8..12].copy_from_slice(&64u32.to_le_bytes());
        descriptor[12] = 2;
        let entry = u64::from(number % 8);
        self.memory.write_all_at(&descriptor, RING + 16 * entry).unwrap();
        self.memory
            .write_all_at(&(entry as u16).to_le_bytes(), RING + 0x1004 + 2 * entry)
            .unwrap();
        self.memory
            .write_all_at(&(number + 1).to_le_bytes(), RING + 0x1002)
            .unwrap();
    }

    fn used_index(&self) -> u16 {
        let mut index = [0; 2];
        self.memory.read_exact_at(&mut index, RING + 0x2002).unwrap();
        u16::from_le_bytes(index)
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

#[test]
fn a_device_starts_stops_and_starts_again_where_it_was() {
    let mut rig = Rig::new();
    rig.negotiate();
    assert_eq!(rig.front.get_queue_num().unwrap(), 3);
    rig.offer(0);
    rig.offer(1);
    rig.set_up_ring(0, 0);
    rig.set_up_ring(1, 0);
    assert!(rig.log().is_empty(), "rings start disabled");
    rig.front.set_vring_enable(0, true).unwrap();
    assert!(rig.log().is_empty(), "one of two");
    rig.front.set_vring_enable(1, true).unwrap();
    assert_eq!(rig.log(), ["used 2, others 0"]);
    assert_eq!((rig.used_index(), rig.calls[0].read().unwrap()), (2, 1));

    assert_eq!(rig.front.get_vring_base(0).unwrap(), 2);
    assert_eq!(rig.front.get_vring_base(1).unwrap(), 0);
    assert_eq!(rig.log(), ["suspended"]);

    // The machine goes on.
    rig.offer(2);
    rig.set_up_ring(0, 2);
    rig.set_up_ring(1, 0);
    assert_eq!(rig.log(), ["used 1, others 0"]);
    assert_eq!(rig.used_index(), 3);
    rig.front.set_vring_enable(0, false).unwrap();
    rig.front.set_vring_enable(0, true).unwrap();
    assert_eq!(rig.log(), ["suspended", "used 0, others 0"]);

    // A ring that comes in later.
    rig.set_up_ring(2, 0);
    rig.front.set_vring_enable(2, true).unwrap();
    assert_eq!(rig.log(), ["suspended", "used 0, others 1"]);

    drop(rig.front);
    rig.server.wait().unwrap();
    assert_eq!(*rig.log.lock().unwrap(), ["stopped"]);
}

#[test]
fn without_protocol_features_rings_start_by_themselves() {
    let mut rig = Rig::new();
    rig.front.set_owner().unwrap();
    rig.front.get_features().unwrap();
    rig.front.set_features(1 | 1 << 32).unwrap();
    rig.share_memory();
    rig.offer(0);
    rig.set_up_ring(0, 0);
    rig.set_up_ring(1, 0);
    // Nothing is acknowledged, but answers come in order.
    assert_eq!(rig.front.get_vring_base(0).unwrap(), 1);
    assert_eq!(rig.log(), ["used 1, others 0", "suspended"]);
    // It will not go on.
    drop(rig.front);
    rig.server.wait().unwrap();
    assert_eq!(*rig.log.lock().unwrap(), ["stopped"]);
}

#[test]
fn the_configuration_is_the_device_s() {
    let mut rig = Rig::new();
    rig.negotiate();
    let (_, bytes) = rig
        .front
        .get_config(3, 6, VhostUserConfigFlags::empty(), &[0; 6])
        .unwrap();
    assert_eq!(bytes, b"figura");
}

#[test]
fn a_front_end_may_have_a_configuration_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let device = Greedy {
        queues: Vec::new(),
        log: Arc::default(),
    };
    let _server = VhostUserServer::spawn_without_config("test", listener, Box::new(device)).unwrap();
    let mut front = Frontend::connect(&path, 3).unwrap();
    front.set_owner().unwrap();
    front.get_features().unwrap();
    let protocol = front.get_protocol_features().unwrap();
    assert!(protocol.contains(VhostUserProtocolFeatures::MQ));
    assert!(!protocol.contains(VhostUserProtocolFeatures::CONFIG));
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    type Request = fn(&mut Rig) -> bool;
    let requests: [Request; 5] = [
        |rig| rig.front.set_vring_num(0, 7).is_err(),
        |rig| rig.front.set_features(1 << 5).is_err(),
        |rig| rig.front.set_mem_table(&[region(&rig.memory, SIZE * 2)]).is_err(),
        |rig| {
            let outside = VringConfigData {
                queue_max_size: 8,
                queue_size: 8,
                flags: 0,
                desc_table_addr: USER + SIZE,
                used_ring_addr: USER,
                avail_ring_addr: USER,
                log_addr: None,
            };
            rig.front.set_vring_addr(0, &outside).is_err()
        },
        |rig| {
            // The descriptor table begins in memory and ends outside.
            rig.set_up_ring(0, 0);
            let across = VringConfigData {
                queue_max_size: 8,
                queue_size: 8,
                flags: 0,
                desc_table_addr: USER + SIZE - 64,
                used_ring_addr: USER,
                avail_ring_addr: USER + 0x1000,
                log_addr: None,
            };
            rig.front.set_vring_addr(0, &across).unwrap();
            rig.front.set_vring_enable(0, true).is_err()
        },
    ];
    for (index, request) in requests.iter().enumerate() {
        let mut rig = Rig::new();
        rig.negotiate();
        assert!(request(&mut rig), "request {index}");
        rig.server.wait().unwrap();
        assert!(
            !rig.log
                .lock()
                .unwrap()
                .iter()
                .any(|line| line.starts_with("used"))
        );
    }
}

#[test]
fn a_server_stops_with_a_front_end_and_without() {
    let mut rig = Rig::new();
    rig.negotiate();
    rig.set_up_ring(0, 0);
    rig.set_up_ring(1, 0);
    rig.front.set_vring_enable(0, true).unwrap();
    rig.front.set_vring_enable(1, true).unwrap();
    rig.server.stop().unwrap();
    assert_eq!(*rig.log.lock().unwrap(), ["used 0, others 0", "stopped"]);

    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
    let device = Greedy {
        queues: Vec::new(),
        log: Arc::default(),
    };
    let server = VhostUserServer::spawn("test", listener, Box::new(device)).unwrap();
    server.stop().unwrap();
}
