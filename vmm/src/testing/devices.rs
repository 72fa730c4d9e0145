//! Each device under attack, and the proof that it works again afterwards.

use std::{
    io::{Read, Write, sink},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use tokio::sync::oneshot::{Receiver, error::TryRecvError};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::{
    input::Input,
    script::{Request, Subject, orderly, torment},
};
use crate::virtio::{
    balloon::{BalloonConfig, balloon},
    block::{Block, BlockConfig},
    console::console,
    net::net,
    rng::Rng,
    vsock::{ConnectError, vsock},
};

const DISK_SIZE: u64 = 1 << 20;
const SERIAL: &str = "fuzzed";

/// A disk of 1 MiB in a file of its own, which goes when the second is dropped.
pub(super) fn disk(read_only: bool) -> (Block, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(DISK_SIZE).unwrap();
    let config = BlockConfig {
        path: file.path().into(),
        read_only,
        serial: SERIAL.into(),
        queues: 2,
    };
    (Block::open(config).unwrap(), file)
}

/// The body of the fuzz target `block`.
pub fn fuzz_block(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (mut device, file) = disk(input.chance(40));
    torment(
        &mut Subject {
            device: &mut device,
            request: &mut |_, input| block_request(input),
            host: &mut |_| {},
            own_threads: true,
        },
        &mut input,
    );
    assert_eq!(file.as_file().metadata().unwrap().len(), DISK_SIZE);
    orderly(&mut device, |_, drivers| {
        for driver in drivers {
            let mut header = [0; 16];
            header[0] = VIRTIO_BLK_T_GET_ID as u8;
            let head = driver.offer(&[&header], &[20, 1]);
            driver.kick();
            assert_eq!(driver.wait_used(), (head, 21));
            assert!(driver.buffer(head, 1).starts_with(SERIAL.as_bytes()));
        }
    });
}

fn block_request(input: &mut Input<'_>) -> Request {
    let kind = match input.byte() {
        0..60 => VIRTIO_BLK_T_IN,
        60..120 => VIRTIO_BLK_T_OUT,
        120..140 => VIRTIO_BLK_T_FLUSH,
        140..160 => VIRTIO_BLK_T_GET_ID,
        160..190 => VIRTIO_BLK_T_DISCARD,
        190..220 => VIRTIO_BLK_T_WRITE_ZEROES,
        _ => input.number(),
    };
    let sector = match input.byte() {
        0..120 => u64::from(input.byte()),
        120..200 => (DISK_SIZE / 512 + 2).saturating_sub(u64::from(input.byte() % 16)),
        200..230 => u64::from(input.short()),
        _ => input.long(),
    };
    let mut header = vec![0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    let mut readable = vec![header];
    let mut writable = Vec::new();
    match kind {
        VIRTIO_BLK_T_OUT => readable.push(vec![input.byte(); usize::from(input.byte() % 9) * 512]),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            let mut ranges = Vec::new();
            for _ in 0..=input.byte() % 4 {
                ranges.extend(u64::from(input.number()).to_le_bytes());
                ranges.extend(input.number().to_le_bytes());
                ranges.extend(u32::from(input.byte() % 3).to_le_bytes());
            }
            readable.push(ranges);
        }
        VIRTIO_BLK_T_IN => writable.push(u32::from(input.byte() % 9) * 512),
        _ => writable.push(u32::from(input.byte())),
    }
    if input.chance(40) {
        let length = usize::from(input.byte() % 40);
        readable.push(input.bytes(length).to_vec());
    }
    if !input.chance(10) {
        writable.push(1);
    }
    (readable, writable)
}

/// The body of the fuzz target `rng`.
pub fn fuzz_rng(bytes: &[u8]) {
    let mut device = Rng::new();
    torment(
        &mut Subject {
            device: &mut device,
            request: &mut |_, input| {
                let count = input.byte() % 8;
                (Vec::new(), (0..count).map(|_| input.length() % 100_000).collect())
            },
            host: &mut |_| {},
            own_threads: false,
        },
        &mut Input::new(bytes),
    );
    orderly(&mut device, |_, drivers| {
        let head = drivers[0].offer(&[], &[8]);
        drivers[0].kick();
        assert_eq!(drivers[0].wait_used(), (head, 8));
    });
}

/// The body of the fuzz target `console`.
pub fn fuzz_console(bytes: &[u8]) {
    let (mut device, keyboard) = console(Box::new(sink())).unwrap();
    torment(
        &mut Subject {
            device: &mut device,
            request: &mut |queue, input| match queue {
                0 => (Vec::new(), vec![input.length() % 5000]),
                _ => (vec![vec![b'x'; input.length() as usize % 100_000]], Vec::new()),
            },
            host: &mut |input| {
                let length = usize::from(input.short() % 5000);
                keyboard.write(input.bytes(length)).unwrap();
            },
            own_threads: false,
        },
        &mut Input::new(bytes),
    );
    orderly(&mut device, |_, drivers| {
        let head = drivers[1].offer(&[b"hello"], &[]);
        drivers[1].kick();
        assert_eq!(drivers[1].wait_used(), (head, 0));
        // The input may be full of what was typed before.
        keyboard.write(b"x").unwrap();
        let head = drivers[0].offer(&[], &[8]);
        drivers[0].kick();
        let (used, length) = drivers[0].wait_used();
        assert_eq!(used, head);
        assert!((1..=8).contains(&length));
    });
}

/// The body of the fuzz target `balloon`.
pub fn fuzz_balloon(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let config = BalloonConfig {
        free_page_reporting: !input.chance(30),
        deflate_on_oom: !input.chance(30),
    };
    let (mut device, control) = balloon(config).unwrap();
    torment(
        &mut Subject {
            device: &mut device,
            request: &mut |_, input| {
                // Page numbers, statistics, or pages.
                let mut words = Vec::new();
                for _ in 0..input.byte() {
                    words.extend(input.number().to_le_bytes());
                }
                match input.byte() {
                    0..200 => (vec![words], Vec::new()),
                    _ => (Vec::new(), vec![input.length() % (1 << 20)]),
                }
            },
            host: &mut |input| {
                control.set_target_pages(input.number()).unwrap();
                control.refresh_stats(std::time::Duration::ZERO).unwrap();
            },
            own_threads: false,
        },
        &mut input,
    );
    orderly(&mut device, |_, drivers| {
        for driver in &mut drivers[..2] {
            let head = driver.offer(&[&1000u32.to_le_bytes()], &[]);
            driver.kick();
            assert_eq!(driver.wait_used(), (head, 0));
        }
    });
}

/// The body of the fuzz target `net`: a hostile guest, and a passt that may say anything too.
pub fn fuzz_net(bytes: &[u8]) {
    const FRAME: [u8; 60] = [7; 60];
    let (mut device, link) = net([2, 0, 0, 0, 0, 1]).unwrap();
    let mut peer: Option<UnixStream> = None;
    let attach = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        link.attach(Some(ours)).unwrap();
        theirs
    };
    torment(
        &mut Subject {
            device: &mut device,
            request: &mut |queue, input| {
                let length = input.length() % 70_000;
                match queue {
                    0 => (Vec::new(), vec![length, input.length() % 5000]),
                    _ => (vec![vec![0; 12], vec![b'x'; length as usize]], Vec::new()),
                }
            },
            host: &mut |input| {
                let open = peer.get_or_insert_with(attach);
                match input.byte() {
                    0..100 => {
                        let length = input.number();
                        let frame = [
                            &length.to_be_bytes()[..],
                            &vec![7; length.min(70_000) as usize][..],
                        ]
                        .concat();
                        let _ = open.write(&frame);
                    }
                    100..140 => drop(open.write(input.bytes(100))),
                    140..200 => drop(open.read(&mut [0; 10_000])),
                    200..220 => peer = None,
                    220..235 => link.attach(None).unwrap(),
                    _ => link.set_up(input.chance(128)).unwrap(),
                }
            },
            own_threads: false,
        },
        &mut Input::new(bytes),
    );
    let mut peer = attach();
    peer.set_nonblocking(false).unwrap();
    orderly(&mut device, |_, drivers| {
        let head = drivers[1].offer(&[&[0; 12], &FRAME], &[]);
        drivers[1].kick();
        assert_eq!(drivers[1].wait_used(), (head, 0));
        let framed = [&60u32.to_be_bytes()[..], &FRAME].concat();
        let mut got = vec![0; framed.len()];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(got, framed);
        let head = drivers[0].offer(&[], &[1000]);
        peer.write_all(&framed).unwrap();
        drivers[0].kick();
        assert_eq!(drivers[0].wait_used(), (head, 72));
    });
}

/// Ports of the host on which something listens, or not.
const PORTS: [u32; 4] = [1024, 1025, 7, u32::MAX];
const GUEST_CID: u64 = 3;
const HOST_CID: u64 = 2;
const OP_REQUEST: u16 = 1;
const OP_RST: u16 = 3;
const VSOCK_HEADER: usize = 44;

/// The body of the fuzz target `vsock`.
pub fn fuzz_vsock(bytes: &[u8]) {
    let (mut device, host) = vsock(GUEST_CID).unwrap();
    let mut listeners = [PORTS[0], PORTS[1]].map(|port| host.listen(port).unwrap());
    let mut streams: Vec<UnixStream> = Vec::new();
    let mut pending: Vec<Receiver<Result<UnixStream, ConnectError>>> = Vec::new();
    torment(
        &mut Subject {
            device: &mut device,
            request: &mut |queue, input| match queue {
                1 => (vsock_packet(input), Vec::new()),
                _ => (Vec::new(), vec![input.length() % 70_000]),
            },
            host: &mut |input| {
                for listener in &mut listeners {
                    streams.extend(listener.try_recv().ok());
                }
                pending.retain_mut(|reply| match reply.try_recv() {
                    Ok(result) => {
                        streams.extend(result.ok());
                        false
                    }
                    Err(error) => error == TryRecvError::Empty,
                });
                for stream in &streams {
                    stream.set_nonblocking(true).unwrap();
                }
                let count = streams.len().max(1);
                let stream = streams.get_mut(usize::from(input.byte()) % count);
                match (input.byte(), stream) {
                    (0..60, _) => pending.push(host.connect(input.pick(&PORTS))),
                    (60..130, Some(stream)) => {
                        let _ = stream.write(&vec![b'y'; input.length() as usize % 100_000]);
                    }
                    (130..190, Some(stream)) => {
                        let _ = stream.read(&mut vec![0; input.length() as usize % 100_000]);
                    }
                    (190..220, Some(stream)) => {
                        let how = input.pick(&[Shutdown::Read, Shutdown::Write, Shutdown::Both]);
                        let _ = stream.shutdown(how);
                    }
                    (220.., Some(_)) => drop(streams.remove(0)),
                    (_, None) => {}
                }
            },
            own_threads: true,
        },
        &mut Input::new(bytes),
    );
    orderly(&mut device, |_, drivers| {
        let answer = drivers[0].offer(&[], &[4096]);
        drivers[0].kick();
        let request = vsock_header(GUEST_CID, HOST_CID, 9, 9, 0, 1, OP_REQUEST, [0; 3]);
        let head = drivers[1].offer(&[&request], &[]);
        drivers[1].kick();
        assert_eq!(drivers[1].wait_used(), (head, 0));
        assert_eq!(drivers[0].wait_used(), (answer, VSOCK_HEADER as u32));
        let packet = drivers[0].buffer(answer, 0);
        assert_eq!(packet[30..32], OP_RST.to_le_bytes(), "{packet:?}");
    });
}

/// A packet, cut into pieces.
fn vsock_packet(input: &mut Input<'_>) -> Vec<Vec<u8>> {
    let payload = vec![b'z'; input.length() as usize % 70_000];
    let source = if input.chance(10) { input.long() } else { GUEST_CID };
    let destination = if input.chance(10) { input.long() } else { HOST_CID };
    let length = if input.chance(15) {
        input.number()
    } else {
        payload.len() as u32
    };
    let socket_type = if input.chance(10) { input.short() } else { 1 };
    let operation = if input.chance(10) {
        input.short()
    } else {
        u16::from(input.byte() % 9)
    };
    // Few of the guest's, so that packets meet a connection.
    let guest_port = u32::from(input.byte() % 4);
    let host_port = if input.chance(60) {
        0x4000_0000 + u32::from(input.byte() % 4)
    } else {
        input.pick(&PORTS)
    };
    let rest = [u32::from(input.byte() % 4), input.number(), input.number()];
    let mut packet = vsock_header(
        source,
        destination,
        guest_port,
        host_port,
        length,
        socket_type,
        operation,
        rest,
    );
    packet.extend(payload);
    let mut pieces = Vec::new();
    for _ in 0..input.byte() % 4 {
        let at = usize::from(input.short()) % packet.len().max(1);
        let rest = packet.split_off(at);
        pieces.push(std::mem::replace(&mut packet, rest));
    }
    pieces.push(packet);
    pieces
}

/// A packet's header (virtio 1.2, 5.10.6); `rest` are flags, buf_alloc and fwd_cnt.
#[allow(clippy::too_many_arguments, reason = "the fields of a header, in their order")]
fn vsock_header(
    source: u64,
    destination: u64,
    source_port: u32,
    destination_port: u32,
    length: u32,
    socket_type: u16,
    operation: u16,
    rest: [u32; 3],
) -> Vec<u8> {
    let mut header = Vec::with_capacity(VSOCK_HEADER);
    header.extend(source.to_le_bytes());
    header.extend(destination.to_le_bytes());
    header.extend(source_port.to_le_bytes());
    header.extend(destination_port.to_le_bytes());
    header.extend(length.to_le_bytes());
    header.extend(socket_type.to_le_bytes());
    header.extend(operation.to_le_bytes());
    header.extend(rest.iter().flat_map(|word| word.to_le_bytes()));
    header
}
