//! Chains taken apart, whole and in pieces, and what must not be taken apart.

use std::{io::Read, os::fd::AsFd, os::unix::net::UnixStream};

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::{super::test_driver::TestQueue, *};

const END_OF_MEMORY: u64 = 64 << 20;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn buffers(driver: &mut TestQueue) -> Result<ChainBuffers, QueueError> {
    let mut queue = driver.device_queue(0);
    let chain = queue.pop().unwrap().unwrap();
    ChainBuffers::new(&queue, chain)
}

fn refused(driver: &mut TestQueue) -> &'static str {
    match buffers(driver) {
        Err(QueueError::Chain { index: 0, what }) => what,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("the chain was accepted"),
    }
}

#[test]
fn the_halves_come_apart() {
    let mut driver = TestQueue::new(8);
    let head = driver.offer(&[b"head", b"er"], &[3, 5]);
    let ChainBuffers {
        mut readable,
        mut writable,
    } = buffers(&mut driver).unwrap();

    assert_eq!(readable.len(), 6);
    assert_eq!(readable.read_array::<7>(), None);
    assert_eq!(&readable.read_array::<5>().unwrap(), b"heade");
    assert_eq!(readable.len(), 1);

    let mut status = writable.split_end(1).unwrap();
    assert_eq!(writable.write(b"0123456789"), 7);
    assert!(writable.is_empty());
    assert_eq!(status.write(b"S"), 1);
    assert_eq!(driver.buffer(head, 2), b"012");
    assert_eq!(driver.buffer(head, 3), b"3456S");
}

#[test]
fn zero_lengths_are_skipped_wherever_they_point() {
    let mut driver = TestQueue::new(8);
    driver.offer_raw(&[
        (GuestAddress(u64::MAX), 0, false),
        (GuestAddress(0x20_0000), 4, true),
        (GuestAddress(u64::MAX), 0, true),
    ]);
    let buffers = buffers(&mut driver).unwrap();
    assert!(buffers.readable.is_empty());
    assert_eq!(buffers.writable.len(), 4);
}

#[test]
fn buffers_outside_memory_are_refused() {
    for (address, length) in [
        (END_OF_MEMORY, 1),
        (END_OF_MEMORY - 1, 2),
        (0, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
    ] {
        let mut driver = TestQueue::new(8);
        driver.offer_raw(&[(GuestAddress(address), length, true)]);
        assert_eq!(refused(&mut driver), "a buffer lies outside guest memory");
    }
}

#[test]
fn the_wrong_order_is_refused() {
    let mut driver = TestQueue::new(8);
    driver.offer_raw(&[
        (GuestAddress(0x20_0000), 4, true),
        (GuestAddress(0x20_0000), 4, false),
    ]);
    assert!(refused(&mut driver).contains("follows"));
}

#[test]
fn loops_and_broken_links_are_refused() {
    // A descriptor that is its own next.
    let mut driver = TestQueue::new(8);
    driver.write_descriptor(0, 0x20_0000, 4, NEXT, 0);
    driver.publish(0);
    assert!(refused(&mut driver).contains("ends"));
    // A next outside the table.
    let mut driver = TestQueue::new(8);
    driver.write_descriptor(0, 0x20_0000, 4, NEXT, 8);
    driver.publish(0);
    assert!(refused(&mut driver).contains("ends"));
    // A head outside the table.
    let mut driver = TestQueue::new(8);
    driver.publish(8);
    assert!(refused(&mut driver).contains("ends"));
    // More than 2^32 bytes.
    let mut driver = TestQueue::new(128);
    for entry in 0..127 {
        driver.write_descriptor(entry, 0, END_OF_MEMORY as u32, NEXT | WRITE, entry + 1);
    }
    driver.write_descriptor(127, 0, END_OF_MEMORY as u32, WRITE, 0);
    driver.publish(0);
    assert!(refused(&mut driver).contains("ends"));
}

#[test]
fn indirect_tables_are_bounded() {
    // A table outside memory.
    let mut driver = TestQueue::new(8);
    driver.write_descriptor(0, END_OF_MEMORY, 1600, INDIRECT, 0);
    driver.publish(0);
    assert!(refused(&mut driver).contains("ends"));
    // A table that is no whole number of descriptors.
    let mut driver = TestQueue::new(8);
    driver.write_descriptor(0, 0x20_0000, 17, INDIRECT, 0);
    driver.publish(0);
    assert!(refused(&mut driver).contains("ends"));
    // A table that lies in the ring's own descriptors and loops there: descriptor 1 leads to itself.
    let mut driver = TestQueue::new(8);
    driver.write_descriptor(0, 0x1010, 16 * 2000, INDIRECT, 0);
    driver.write_descriptor(1, 0x20_0000, 4, NEXT, 0);
    driver.publish(0);
    assert!(refused(&mut driver).contains("more descriptors"));
}

#[test]
fn sending_goes_on_where_it_stopped() {
    let mut driver = TestQueue::new(8);
    let big = vec![7; 300_000];
    driver.offer(&[b"abc", &big, b"xyz"], &[]);
    let mut readable = buffers(&mut driver).unwrap().readable;
    let (ours, mut theirs) = UnixStream::pair().unwrap();

    let mut expected = b"PP".to_vec();
    expected.extend_from_slice(b"abc");
    expected.extend_from_slice(&big);
    expected.extend_from_slice(b"xyz");
    let total = expected.len();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; total];
        theirs.read_exact(&mut got).unwrap();
        got
    });

    let mut prefix: &[u8] = b"PP";
    while !(prefix.is_empty() && readable.is_empty()) {
        match readable.send_after(ours.as_fd(), prefix) {
            Ok(sent) => prefix = &prefix[sent.min(prefix.len())..],
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                std::thread::yield_now();
            }
        }
    }
    assert!(reader.join().unwrap() == expected);
}

#[test]
fn a_file_takes_and_gives_a_part() {
    use std::os::unix::fs::FileExt;

    let mut driver = TestQueue::new(8);
    let head = driver.offer(&[b"abc", b"defg", b"hi"], &[2, 3, 4]);
    let ChainBuffers {
        mut readable,
        mut writable,
    } = buffers(&mut driver).unwrap();
    let file = tempfile::tempfile().unwrap();
    let contents = || {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };

    assert_eq!(readable.write_some_at(file.as_fd(), 1, 0, false).unwrap(), 0);
    assert_eq!(readable.write_some_at(file.as_fd(), 1, 5, false).unwrap(), 5);
    assert_eq!(contents(), b"\0abcde");
    // The offset does not count when appending.
    assert_eq!(readable.write_some_at(file.as_fd(), 0, 2, true).unwrap(), 2);
    assert_eq!(contents(), b"\0abcdefg");
    assert_eq!(readable.write_some_at(file.as_fd(), 0, 100, false).unwrap(), 2);
    assert!(readable.is_empty());
    assert_eq!(readable.write_some_at(file.as_fd(), 0, 100, false).unwrap(), 0);
    assert_eq!(contents(), b"hibcdefg");

    let mut front = writable.split_front(3).unwrap();
    assert_eq!(writable.read_some_at(file.as_fd(), 4, 3).unwrap(), 3);
    assert_eq!(writable.read_some_at(file.as_fd(), 7, 100).unwrap(), 1);
    assert_eq!(writable.read_some_at(file.as_fd(), 8, 100).unwrap(), 0);
    assert_eq!(writable.len(), 2);
    assert!(writable.split_front(3).is_none());
    assert_eq!(front.write(b"HEADER"), 3);
    assert_eq!(
        [0, 1, 2].map(|which| driver.buffer(head, 3 + which)).concat(),
        b"HEAdefg\0\0"
    );
}

#[test]
fn a_failed_transfer_takes_nothing() {
    let mut driver = TestQueue::new(8);
    driver.offer(&[b"abc", b"def"], &[2, 3]);
    let ChainBuffers {
        mut readable,
        mut writable,
    } = buffers(&mut driver).unwrap();
    let (nowhere, _other) = UnixStream::pair().unwrap();
    // No file: it has no offsets.
    for count in [4, 100] {
        assert!(readable.write_some_at(nowhere.as_fd(), 0, count, false).is_err());
        assert!(writable.read_some_at(nowhere.as_fd(), 0, count).is_err());
    }
    let file = tempfile::tempfile().unwrap();
    assert!(readable.write_some_at(file.as_fd(), u64::MAX, 1, false).is_err());
    assert!(writable.read_some_at(file.as_fd(), u64::MAX, 1).is_err());
    assert_eq!((readable.len(), writable.len()), (6, 5));
    let mut bytes = [0; 6];
    readable.read(&mut bytes);
    assert_eq!(&bytes, b"abcdef");
}

proptest! {
    /// Any way of cutting a chain up gives the same bytes as cutting one flat buffer.
    #[test]
    fn slicing_matches_a_flat_buffer(
        sizes in prop::collection::vec(0u32..40, 1..10),
        steps in prop::collection::vec((0usize..5, 0usize..60), 0..12),
    ) {
        let mut driver = TestQueue::new(32);
        let total: u32 = sizes.iter().sum();
        let flat: Vec<u8> = (0..total).map(|byte| byte as u8).collect();
        let mut at = 0;
        let pieces: Vec<&[u8]> = sizes
            .iter()
            .map(|size| {
                let piece = &flat[at..at + *size as usize];
                at += *size as usize;
                piece
            })
            .collect();
        let head = driver.offer(&pieces, &sizes);
        let ChainBuffers { mut readable, mut writable } = buffers(&mut driver).unwrap();

        let mut model: &[u8] = &flat;
        let mut written = Vec::new();
        let mut end: Vec<u8> = Vec::new();
        let file = tempfile::tempfile().unwrap();
        for (kind, count) in steps {
            match kind {
                0 => {
                    let mut got = vec![0; count];
                    let length = readable.read(&mut got);
                    prop_assert_eq!(length, count.min(model.len()));
                    prop_assert_eq!(&got[..length], &model[..length]);
                    model = &model[length..];
                    let length = writable.write(&got[..length]);
                    written.extend_from_slice(&got[..length]);
                }
                1 => {
                    readable.skip(count);
                    model = &model[count.min(model.len())..];
                }
                2 => {
                    // Through a file, there and back.
                    let moved = readable.write_some_at(file.as_fd(), 5, count, false).unwrap();
                    prop_assert_eq!(moved, count.min(model.len()));
                    file.set_len(5 + moved as u64).unwrap();
                    let room = writable.len();
                    let back = writable.read_some_at(file.as_fd(), 5, count).unwrap();
                    prop_assert_eq!(back, moved.min(room));
                    written.extend_from_slice(&model[..back]);
                    model = &model[moved..];
                }
                3 => {
                    let room = writable.len();
                    match writable.split_front(count) {
                        None => prop_assert!(count > room),
                        Some(mut front) => {
                            prop_assert_eq!(front.len(), count);
                            let mark = vec![0xdd; count + 1];
                            prop_assert_eq!(front.write(&mark), count);
                            written.extend_from_slice(&mark[..count]);
                        }
                    }
                }
                _ => {
                    let room = writable.len();
                    match writable.split_end(count) {
                        None => prop_assert!(count > room),
                        Some(mut tail) => {
                            prop_assert_eq!(tail.len(), count);
                            let mark = vec![0xee; count];
                            prop_assert_eq!(tail.write(&mark), count);
                            end.extend_from_slice(&mark);
                        }
                    }
                }
            }
            prop_assert_eq!(readable.len(), model.len());
            prop_assert_eq!(readable.slices().map(|slice| slice.len()).sum::<usize>(), model.len());
            prop_assert_eq!(writable.len(), total as usize - written.len() - end.len());
        }
        let all: Vec<u8> = (0..sizes.len())
            .flat_map(|which| driver.buffer(head, sizes.len() + which))
            .collect();
        prop_assert_eq!(&all[..written.len()], &written[..]);
        prop_assert_eq!(&all[all.len() - end.len()..], &end[..]);
    }
}
