use std::{
    fs::File,
    io::Write,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::{FileExt, MetadataExt},
    },
};

use proptest::prelude::*;
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::GuestAddress;

use super::*;
use crate::virtio::{
    InterruptCause, QueueError, VirtQueue,
    test_driver::{TestMachine, TestQueue},
};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const UNMAP: u32 = 1;

fn image(sectors: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(sectors * SECTOR_SIZE).unwrap();
    file
}

fn config(path: impl Into<PathBuf>) -> BlockConfig {
    BlockConfig {
        path: path.into(),
        read_only: false,
        serial: "berth-test".into(),
        queues: 1,
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&sector.to_le_bytes());
    bytes
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend_from_slice(&sectors.to_le_bytes());
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes
}

/// A disk whose queue is driven by hand, on the test's own thread.
struct Bench {
    driver: TestQueue,
    worker: Worker,
    device: Block,
}

impl Bench {
    fn new(config: BlockConfig) -> Bench {
        let device = Block::open(config).unwrap();
        let mut driver = TestQueue::new(128);
        let worker = Worker::new(driver.device_queue(0), Arc::clone(&device.disk));
        Bench {
            driver,
            worker,
            device,
        }
    }

    /// Submits one chain and returns its head and the length reported.
    fn submit(&mut self, readable: &[&[u8]], writable: &[u32]) -> (u16, u32) {
        let head = self.driver.offer(readable, writable);
        self.worker.run().unwrap();
        let (used, written) = self.driver.take_used().expect("the request was answered");
        assert_eq!(used, head);
        (head, written)
    }

    /// Submits a request without data for the driver; returns its status.
    fn request(&mut self, readable: &[&[u8]]) -> u8 {
        let (head, _) = self.submit(readable, &[1]);
        self.driver.buffer(head, readable.len())[0]
    }

    fn read(&mut self, sector: u64, length: u32) -> (u8, Vec<u8>) {
        let (head, written) = self.submit(&[&header(VIRTIO_BLK_T_IN, sector)], &[length, 1]);
        let status = self.driver.buffer(head, 2)[0];
        if status == OK {
            assert_eq!(written, length + 1);
        }
        (status, self.driver.buffer(head, 1))
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.request(&[&header(VIRTIO_BLK_T_OUT, sector), data])
    }
}

#[test]
fn the_disk_is_the_file() {
    let file = image(64);
    file.as_file().write_all_at(b"from the host", 512).unwrap();
    let mut bench = Bench::new(config(file.path()));

    let (status, data) = bench.read(1, 1024);
    assert_eq!(status, OK);
    assert_eq!(&data[..13], b"from the host");

    assert_eq!(bench.write(62, &[7; 1024]), OK);
    let mut end = [0; 1024];
    file.as_file().read_exact_at(&mut end, 62 * 512).unwrap();
    assert_eq!(end, [7; 1024]);
    assert_eq!(bench.request(&[&header(VIRTIO_BLK_T_FLUSH, 0)]), OK);
}

#[test]
fn the_layout_of_descriptors_does_not_matter() {
    let file = image(64);
    let mut bench = Bench::new(config(file.path()));
    let bytes = [header(VIRTIO_BLK_T_OUT, 3), vec![9; 1024]].concat();
    let pieces: Vec<&[u8]> = bytes.chunks(100).collect();
    assert_eq!(bench.request(&pieces), OK);

    // The status byte shares the data's last buffer.
    let (head, written) = bench.submit(&[&header(VIRTIO_BLK_T_IN, 3)], &[1, 511, 513]);
    assert_eq!(written, 1025);
    let all = [
        bench.driver.buffer(head, 1),
        bench.driver.buffer(head, 2),
        bench.driver.buffer(head, 3),
    ]
    .concat();
    assert_eq!(&all[..1024], &[9; 1024]);
    assert_eq!(all[1024], OK);
}

#[test]
fn requests_beyond_the_disk_are_refused() {
    let file = image(64);
    let mut bench = Bench::new(config(file.path()));
    for (sector, length) in [
        (64, 512),
        (63, 1024),
        (u64::MAX, 512),
        (1 << 55, 512),
        (u64::MAX / 512, 1024),
    ] {
        assert_eq!(bench.read(sector, length).0, IOERR);
        assert_eq!(bench.write(sector, &vec![1; length as usize]), IOERR);
        let sectors = length / 512;
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            let status = bench.request(&[&header(kind, 0), &range(sector, sectors, 0)]);
            assert_eq!(status, IOERR);
        }
    }
    assert_eq!(bench.write(0, &[1; 100]), IOERR, "no whole sector");
    assert_eq!(file.as_file().metadata().unwrap().len(), 64 * 512);
    assert_eq!(
        bench.device.health().report(),
        BlockHealthReport::default(),
        "the guest's mistakes are not the host's"
    );
}

#[test]
fn malformed_requests_are_refused() {
    let file = image(1 << 24);
    let mut bench = Bench::new(config(file.path()));
    // An unknown type; legacy SCSI commands; a header too short.
    assert_eq!(bench.request(&[&header(999, 0)]), UNSUPP);
    assert_eq!(bench.request(&[&header(2, 0)]), UNSUPP);
    assert_eq!(bench.request(&[&[0; 15]]), IOERR);
    assert_eq!(bench.submit(&[], &[1]).1, 1);
    let discard = header(VIRTIO_BLK_T_DISCARD, 0);
    // UNMAP means nothing in DISCARD; unknown flags; no range; half a range; too many ranges; a range too long.
    assert_eq!(bench.request(&[&discard, &range(0, 1, UNMAP)]), UNSUPP);
    assert_eq!(bench.request(&[&discard, &range(0, 1, 2)]), UNSUPP);
    assert_eq!(bench.request(&[&discard]), IOERR);
    assert_eq!(bench.request(&[&discard, &range(0, 1, 0)[..8]]), IOERR);
    assert_eq!(bench.request(&[&discard, &range(0, 1, 0).repeat(33)]), IOERR);
    assert_eq!(bench.request(&[&discard, &range(0, (8 << 20) + 1, 0)]), IOERR);
    let zeroes = header(VIRTIO_BLK_T_WRITE_ZEROES, 0);
    assert_eq!(bench.request(&[&zeroes, &range(0, (2 << 20) + 1, 0)]), IOERR);
}

#[test]
fn the_serial_number_is_20_bytes() {
    let file = image(64);
    let mut bench = Bench::new(BlockConfig {
        serial: "0123456789abcdefghijklmn".into(),
        ..config(file.path())
    });
    let (head, written) = bench.submit(&[&header(VIRTIO_BLK_T_GET_ID, 0)], &[20, 1]);
    assert_eq!(written, 21);
    assert_eq!(bench.driver.buffer(head, 1), b"0123456789abcdefghij");
    let (head, _) = bench.submit(&[&header(VIRTIO_BLK_T_GET_ID, 0)], &[19, 1]);
    assert_eq!(bench.driver.buffer(head, 2), [IOERR]);
}

#[test]
fn discards_give_space_back() {
    let file = image(0);
    file.as_file().write_all_at(&vec![5; 1 << 20], 0).unwrap();
    file.as_file().sync_all().unwrap();
    let before = file.as_file().metadata().unwrap().blocks();
    let mut bench = Bench::new(config(file.path()));
    assert!(bench.device.features() & (1 << VIRTIO_BLK_F_DISCARD) != 0);

    let ranges = [range(0, 1024, 0), range(1024, 512, 0)].concat();
    assert_eq!(bench.request(&[&header(VIRTIO_BLK_T_DISCARD, 0), &ranges]), OK);
    file.as_file().sync_all().unwrap();
    let metadata = file.as_file().metadata().unwrap();
    assert_eq!(metadata.len(), 1 << 20);
    assert!(metadata.blocks() < before, "no block was freed");
    assert_eq!(bench.read(1535, 1024).1, [vec![0; 512], vec![5; 512]].concat());
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let file = image(64);
    let mut bench = Bench::new(BlockConfig {
        read_only: true,
        ..config(file.path())
    });
    let features = bench.device.features();
    assert!(features & (1 << VIRTIO_BLK_F_RO) != 0);
    for bit in [
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
    ] {
        assert_eq!(features & (1 << bit), 0);
    }
    assert_eq!(bench.write(0, &[1; 512]), IOERR);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(bench.request(&[&header(kind, 0), &range(0, 1, 0)]), IOERR);
    }
    assert_eq!(bench.request(&[&header(VIRTIO_BLK_T_FLUSH, 0)]), OK);
    assert_eq!(bench.read(0, 512), (OK, vec![0; 512]));
}

#[test]
fn one_machine_writes_or_many_read() {
    let file = image(64);
    let read_only = BlockConfig {
        read_only: true,
        ..config(file.path())
    };
    let in_use = |result: Result<Block, BlockError>| {
        matches!(
            result,
            Err(BlockError::Image {
                source: ImageError::InUse,
                ..
            })
        )
    };

    let writer = Block::open(config(file.path())).unwrap();
    assert!(in_use(Block::open(config(file.path()))));
    assert!(in_use(Block::open(read_only.clone())));
    drop(writer);

    let reader = Block::open(read_only.clone()).unwrap();
    let another = Block::open(read_only).unwrap();
    assert!(in_use(Block::open(config(file.path()))));
    drop((reader, another));
    assert!(Block::open(config(file.path())).is_ok());
}

#[test]
fn what_is_no_disk_is_refused() {
    let refusal = |path: &std::path::Path| match Block::open(config(path)) {
        Err(BlockError::Image { source, .. }) => source,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("{} was opened", path.display()),
    };
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        refusal(&folder.path().join("missing")),
        ImageError::Open(_)
    ));
    assert!(matches!(refusal(folder.path()), ImageError::Open(_)));
    assert!(matches!(
        refusal(std::path::Path::new("/dev/null")),
        ImageError::NotAFile
    ));
    let mut small = NamedTempFile::new().unwrap();
    small.write_all(&[0; 511]).unwrap();
    assert!(matches!(refusal(small.path()), ImageError::TooSmall(511)));
    for queues in [0, 17] {
        let config = BlockConfig {
            queues,
            ..config(small.path())
        };
        assert!(matches!(Block::open(config), Err(BlockError::Queues(_))));
    }
}

/// A memory file that can be sealed against writing after the device has opened it.
fn sealable_image(sectors: u64) -> (File, PathBuf) {
    // SAFETY: the name is a C string; a descriptor that is returned is ours alone.
    let file = unsafe {
        let descriptor = libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        assert!(descriptor >= 0);
        File::from_raw_fd(descriptor)
    };
    file.set_len(sectors * SECTOR_SIZE).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (file, path)
}

#[test]
fn host_errors_reach_the_guest_and_the_health_report() {
    let (file, path) = sealable_image(64);
    let mut bench = Bench::new(config(path));
    assert_eq!(bench.write(0, &[1; 512]), OK);
    // SAFETY: the call takes no pointers.
    let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
    assert_eq!(sealed, 0);

    assert_eq!(bench.write(0, &[2; 512]), IOERR);
    let discard = header(VIRTIO_BLK_T_DISCARD, 0);
    assert_eq!(bench.request(&[&discard, &range(0, 1, 0)]), IOERR);
    let zeroes = header(VIRTIO_BLK_T_WRITE_ZEROES, 0);
    assert_eq!(bench.request(&[&zeroes, &range(0, 1, 0)]), IOERR);
    assert_eq!(bench.device.health().report().io_errors, 3);
    assert_eq!(bench.read(0, 512), (OK, vec![1; 512]));

    // Somebody cut the file short behind our back.
    let (file, path) = sealable_image(64);
    let mut bench = Bench::new(config(path));
    file.set_len(512).unwrap();
    assert_eq!(bench.read(0, 1024).0, IOERR);
    assert_eq!(bench.device.health().report().io_errors, 1);
}

#[test]
fn write_through_follows_the_driver() {
    let file = image(64);
    let mut device = Block::open(config(file.path())).unwrap();
    let write_back = |device: &Block| {
        let mut byte = [9];
        device.read_config(config::WRITE_BACK_OFFSET, &mut byte);
        byte[0]
    };
    assert_eq!(write_back(&device), 1);
    device.write_config(config::WRITE_BACK_OFFSET, &[0]);
    assert_eq!(write_back(&device), 0);
    device.write_config(config::WRITE_BACK_OFFSET, &[1]);
    assert_eq!(write_back(&device), 1);
    // Nothing else can be written.
    device.write_config(0, &[0xff; 8]);
    device.write_config(config::WRITE_BACK_OFFSET, &[0, 0]);
    assert_eq!((write_back(&device), device.capacity()), (1, 64 * 512));

    // A driver that does not know FLUSH cannot have its writes cached.
    let machine = TestMachine::new();
    let event_loop = EventLoop::spawn("test").unwrap();
    let mut driver = machine.queue(0, 128);
    let queue = driver.device_queue(0);
    device
        .activate(machine.activation(vec![Some(queue)], 0, &event_loop))
        .unwrap();
    device.write_config(config::WRITE_BACK_OFFSET, &[1]);
    assert_eq!(write_back(&device), 0);
    let head = driver.offer(&[&header(VIRTIO_BLK_T_OUT, 0), &[3; 512]], &[1]);
    driver.kick();
    assert_eq!(driver.wait_used(), (head, 1));
    assert_eq!(driver.buffer(head, 2), [OK]);
    device.deactivate();
    assert_eq!(write_back(&device), 1);
}

#[test]
fn the_configuration_space_says_what_the_device_is() {
    let file = image(1000);
    let device = Block::open(BlockConfig {
        queues: 4,
        ..config(file.path())
    })
    .unwrap();
    let mut space = [0xff; 64];
    device.read_config(0, &mut space);
    assert_eq!(u64::from_le_bytes(space[..8].try_into().unwrap()), 1000);
    assert_eq!(u32::from_le_bytes(space[12..16].try_into().unwrap()), 126);
    assert_eq!(u32::from_le_bytes(space[20..24].try_into().unwrap()), 512);
    assert_eq!(u16::from_le_bytes(space[34..36].try_into().unwrap()), 4);
    assert_eq!(space[60..], [0; 4]);
    assert!(device.features() & (1 << VIRTIO_BLK_F_MQ) != 0);
}

#[test]
fn queues_work_side_by_side_through_resets() {
    let file = image(64);
    let mut device = Block::open(BlockConfig {
        queues: 3,
        ..config(file.path())
    })
    .unwrap();
    let features = 1 << VIRTIO_BLK_F_FLUSH;
    let machine = TestMachine::new();
    let event_loop = EventLoop::spawn("test").unwrap();
    for round in 0u8..3 {
        let mut drivers: Vec<TestQueue> = (0..3).map(|index| machine.queue(index, 128)).collect();
        let queues: Vec<Option<VirtQueue>> = drivers
            .iter_mut()
            .enumerate()
            // In the second round the driver leaves the last queue out.
            .map(|(index, driver)| (round != 1 || index < 2).then(|| driver.device_queue(index as u16)))
            .collect();
        let active = queues.iter().flatten().count();
        device
            .activate(machine.activation(queues, features, &event_loop))
            .unwrap();
        for (index, driver) in drivers.iter_mut().enumerate().take(active) {
            let data = vec![round * 16 + index as u8; 512];
            let write = driver.offer(&[&header(VIRTIO_BLK_T_OUT, index as u64), &data], &[1]);
            driver.kick();
            assert_eq!(driver.wait_used(), (write, 1));
            let read = driver.offer(&[&header(VIRTIO_BLK_T_IN, index as u64)], &[512, 1]);
            driver.kick();
            assert_eq!(driver.wait_used(), (read, 513));
            assert_eq!(driver.buffer(read, 1), data);
        }
        device.deactivate();
        // Nobody listens any more.
        drivers[0].offer(&[&header(VIRTIO_BLK_T_OUT, 63), &[0xaa; 512]], &[1]);
        drivers[0].kick();
        assert_eq!(drivers[0].take_used(), None);
    }
    let mut last = [1; 512];
    file.as_file().read_exact_at(&mut last, 63 * 512).unwrap();
    assert_eq!(last, [0; 512]);
    device.deactivate();
    let missing = device.activate(machine.activation(vec![None], features, &event_loop));
    assert!(matches!(missing, Err(ActivateError::MissingQueue(0))));
}

#[test]
fn hostile_chains_stop_the_device_only() {
    let file = image(64);
    let read = header(VIRTIO_BLK_T_IN, 0);
    type Offer = fn(&mut TestQueue);
    let hostile: [(&str, Offer); 4] = [
        ("no status byte", |driver| {
            driver.offer(&[&header(VIRTIO_BLK_T_OUT, 0), &[1; 512]], &[]);
        }),
        ("data outside memory", |driver| {
            driver.offer_raw(&[
                (GuestAddress(0x10_0000), 16, false),
                (GuestAddress(u64::MAX - 600), 512, true),
                (GuestAddress(0x20_0000), 1, true),
            ]);
        }),
        ("a head outside the table", |driver| driver.publish(200)),
        ("an available index far ahead", |driver| {
            driver.set_avail_idx(1000);
        }),
    ];
    for (what, offer) in hostile {
        let mut device = Block::open(config(file.path())).unwrap();
        let machine = TestMachine::new();
        let event_loop = EventLoop::spawn("test").unwrap();
        let mut driver = machine.queue(0, 128);
        let queue = driver.device_queue(0);
        device
            .activate(machine.activation(vec![Some(queue)], 0, &event_loop))
            .unwrap();
        offer(&mut driver);
        driver.kick();
        machine.interrupt.wait_for(InterruptCause::NeedsReset);
        assert_eq!(driver.take_used(), None, "{what}");

        device.deactivate();
        let mut driver = machine.queue(0, 128);
        let queue = driver.device_queue(0);
        driver.set_avail_idx(0);
        device
            .activate(machine.activation(vec![Some(queue)], 0, &event_loop))
            .unwrap();
        let head = driver.offer(&[&read], &[512, 1]);
        driver.kick();
        assert_eq!(driver.wait_used(), (head, 513), "{what}");
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Read { sector: u64, sectors: u64 },
    Write { sector: u64, sectors: u64, fill: u8 },
    Discard { sector: u64, sectors: u64 },
    WriteZeroes { sector: u64, sectors: u64, unmap: bool },
    Flush,
}

const MODEL_SECTORS: u64 = 96;

fn operation() -> impl Strategy<Value = Operation> {
    let place = (0..MODEL_SECTORS + 4, 0u64..40);
    prop_oneof![
        3 => place.clone().prop_map(|(sector, sectors)| Operation::Read { sector, sectors }),
        4 => (place.clone(), 1u8..)
            .prop_map(|((sector, sectors), fill)| Operation::Write { sector, sectors, fill }),
        1 => place.clone().prop_map(|(sector, sectors)| Operation::Discard { sector, sectors }),
        2 => (place, any::<bool>())
            .prop_map(|((sector, sectors), unmap)| Operation::WriteZeroes { sector, sectors, unmap }),
        1 => Just(Operation::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The device and a plain array of bytes go through the same operations and stay equal.
    #[test]
    fn a_disk_behaves_like_an_array(operations in prop::collection::vec(operation(), 1..40)) {
        let file = image(MODEL_SECTORS);
        let mut bench = Bench::new(config(file.path()));
        let mut model = vec![0u8; (MODEL_SECTORS * SECTOR_SIZE) as usize];
        for operation in operations {
            let place = |sector: u64, sectors: u64| {
                (sector + sectors <= MODEL_SECTORS).then(|| {
                    let start = (sector * SECTOR_SIZE) as usize;
                    start..start + (sectors * SECTOR_SIZE) as usize
                })
            };
            match operation {
                Operation::Read { sector, sectors } => {
                    let (status, data) = bench.read(sector, (sectors * SECTOR_SIZE) as u32);
                    match place(sector, sectors) {
                        Some(place) => {
                            prop_assert_eq!(status, OK);
                            prop_assert!(data == model[place]);
                        }
                        None => prop_assert_eq!(status, IOERR),
                    }
                }
                Operation::Write { sector, sectors, fill } => {
                    let data = vec![fill; (sectors * SECTOR_SIZE) as usize];
                    let status = bench.write(sector, &data);
                    match place(sector, sectors) {
                        Some(place) => {
                            prop_assert_eq!(status, OK);
                            model[place].copy_from_slice(&data);
                        }
                        None => prop_assert_eq!(status, IOERR),
                    }
                }
                Operation::Discard { sector, sectors } => {
                    let range = range(sector, sectors as u32, 0);
                    let status = bench.request(&[&header(VIRTIO_BLK_T_DISCARD, 0), &range]);
                    match place(sector, sectors) {
                        Some(place) => {
                            prop_assert_eq!(status, OK);
                            model[place].fill(0);
                        }
                        None => prop_assert_eq!(status, IOERR),
                    }
                }
                Operation::WriteZeroes { sector, sectors, unmap } => {
                    let range = range(sector, sectors as u32, u32::from(unmap));
                    let status = bench.request(&[&header(VIRTIO_BLK_T_WRITE_ZEROES, 0), &range]);
                    match place(sector, sectors) {
                        Some(place) => {
                            prop_assert_eq!(status, OK);
                            model[place].fill(0);
                        }
                        None => prop_assert_eq!(status, IOERR),
                    }
                }
                Operation::Flush => {
                    prop_assert_eq!(bench.request(&[&header(VIRTIO_BLK_T_FLUSH, 0)]), OK);
                }
            }
        }
        let mut end = vec![0; model.len()];
        file.as_file().read_exact_at(&mut end, 0).unwrap();
        prop_assert!(end == model);
    }

    /// Whatever the bytes in the rings and buffers say, the device answers, refuses or stops; the file keeps its size.
    #[test]
    fn arbitrary_rings_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..600), heads in prop::collection::vec(0u16..140, 1..20)) {
        let file = image(MODEL_SECTORS);
        let mut bench = Bench::new(config(file.path()));
        bench.driver.scribble(&bytes);
        for head in heads {
            bench.driver.publish(head);
            let result = bench.worker.run();
            if let Err(error) = result {
                let the_drivers_fault = matches!(error, QueueError::Chain { .. } | QueueError::Ring { .. });
                prop_assert!(the_drivers_fault, "{}", error);
                break;
            }
        }
        prop_assert_eq!(file.as_file().metadata().unwrap().len(), MODEL_SECTORS * SECTOR_SIZE);
    }
}
