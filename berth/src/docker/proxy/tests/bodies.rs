//! Bodies stream, whole and unchanged, at the pace of whoever takes them.

use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite};

use super::*;

/// `length` bytes that do not repeat within any buffer of the way, so that a loss shows.
fn pattern(length: usize) -> Vec<u8> {
    let byte = |index: u64| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (0..length as u64).map(byte).collect()
}

/// What a long stream repeats: a length that no buffer size divides.
const PERIOD: usize = 1_299_709;

pub(super) async fn write_pattern(stream: &mut (impl AsyncWrite + Unpin), mut left: usize) {
    let block = pattern(PERIOD);
    while left > 0 {
        let length = left.min(block.len());
        stream.write_all(&block[..length]).await.unwrap();
        left -= length;
    }
}

pub(super) async fn check_pattern(stream: &mut (impl AsyncRead + Unpin), length: usize) {
    let block = pattern(PERIOD);
    let mut buffer = vec![0; PERIOD];
    let mut done = 0;
    while done < length {
        let want = (length - done).min(block.len());
        stream.read_exact(&mut buffer[..want]).await.unwrap();
        assert!(buffer[..want] == block[..want], "bytes differ after {done}");
        done += want;
    }
}

const HUGE: usize = 256 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_body_each_way_arrives_whole() {
    let setup = Setup::new();
    let head = format!("POST /images/load HTTP/1.1\r\nHost: x\r\nContent-Length: {HUGE}\r\n\r\n");
    let (mut client, mut dockerd) = setup.request(&head).await;
    let up = tokio::spawn(async move {
        write_pattern(&mut client, HUGE).await;
        client
    });
    bounded(check_pattern(&mut dockerd, HUGE)).await;
    let mut client = up.await.unwrap();

    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {HUGE}\r\n\r\n");
    let length = head.len();
    let down = tokio::spawn(async move {
        send(&mut dockerd, &head).await;
        write_pattern(&mut dockerd, HUGE).await;
    });
    read_exactly(&mut client, length).await;
    bounded(check_pattern(&mut client, HUGE)).await;
    down.await.unwrap();
}

/// Writes until nothing more is taken for a while; how much was.
async fn fill(stream: &mut UnixStream) -> usize {
    let chunk = [b'x'; 16 * 1024];
    let mut total = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), stream.write(&chunk)).await {
        total += written.unwrap();
        assert!(total < 64 << 20, "the proxy keeps what nobody reads");
    }
    total
}

#[tokio::test]
async fn a_slow_reader_holds_the_writer_back() {
    let setup = Setup::new();
    let (client, mut dockerd) = setup.request("GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let length: u64 = 1 << 40;
    send(
        &mut dockerd,
        &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"),
    )
    .await;
    fill(&mut dockerd).await;
    drop(client);

    let head = format!("POST /build HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    let (mut client, _dockerd) = setup.request(&head).await;
    fill(&mut client).await;
}

#[tokio::test]
async fn a_long_lived_stream_delivers_each_piece_at_once() {
    let setup = Setup::new();
    let (mut client, mut dockerd) = setup.request("GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    send(&mut dockerd, head).await;
    assert_eq!(read_exactly(&mut client, head.len()).await, head);
    for event in ["{\"a\":1}\n", "{\"b\":22}\n"] {
        let chunk = format!("{:X}\r\n{event}\r\n", event.len());
        send(&mut dockerd, &chunk).await;
        assert_eq!(read_exactly(&mut client, chunk.len()).await, chunk);
    }
}

/// Takes chunked coding off.
async fn read_chunked(stream: &mut UnixStream) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(stream.read_u8().await.unwrap());
        }
        let length = std::str::from_utf8(&line).unwrap().trim();
        let length = usize::from_str_radix(length, 16).unwrap();
        let mut chunk = vec![0; length + 2];
        stream.read_exact(&mut chunk).await.unwrap();
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&chunk[..length]);
    }
}

async fn write_chunked(stream: &mut UnixStream, body: &[u8], sizes: &[usize], pieces: usize) {
    let mut wire = Vec::new();
    let mut rest = body;
    for size in sizes.iter().cycle() {
        let (chunk, after) = rest.split_at((*size).min(rest.len()));
        wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        wire.extend_from_slice(chunk);
        wire.extend_from_slice(b"\r\n");
        if chunk.is_empty() {
            break;
        }
        rest = after;
    }
    for piece in wire.chunks(pieces) {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn chunks_of_any_size_cut_anywhere_make_the_same_body(
        length in 0usize..200_000,
        sizes in proptest::collection::vec(1usize..9000, 1..6),
        pieces in 1usize..5000,
    ) {
        // A byte at a time is for short bodies.
        let length = length.min(pieces * 200);
        let body = pattern(length);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let setup = Setup::new();
            let head = "POST /build HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
            let (mut client, mut dockerd) = setup.request(head).await;
            let (_, got) = bounded(async {
                tokio::join!(write_chunked(&mut client, &body, &sizes, pieces), read_chunked(&mut dockerd))
            }).await;
            assert!(got == body, "request");
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            send(&mut dockerd, head).await;
            read_exactly(&mut client, head.len()).await;
            let (_, got) = bounded(async {
                tokio::join!(write_chunked(&mut dockerd, &body, &sizes, pieces), read_chunked(&mut client))
            }).await;
            assert!(got == body, "response");
        });
    }
}
