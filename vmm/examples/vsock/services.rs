//! Stream services that both ends of the vsock examples run and use: echo, sink, source. Every byte has a value that
//! follows from its place in the stream, so a byte lost, doubled or moved is noticed.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// Sends back what it receives, and closes when the peer has closed.
pub(crate) const ECHO: u32 = 7;
/// Checks what it receives up to the end, and answers with the number of good bytes.
pub(crate) const SINK: u32 = 9;
/// Receives a number and sends as many bytes.
pub(crate) const SOURCE: u32 = 19;
/// On the host: where the guest reports that its services listen.
pub(crate) const READY: u32 = 1024;
/// On the guest: runs the measures from the guest's side and answers with their report.
pub(crate) const CLIENT: u32 = 20;

const CHUNK: usize = 256 * 1024;

/// The bytes of a stream from `offset`, a multiple of 8.
fn pattern(offset: u64, bytes: &mut [u8]) {
    for (index, chunk) in bytes.chunks_mut(8).enumerate() {
        let mut word = (offset / 8 + index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word ^= word >> 29;
        word = word.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word ^= word >> 32;
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

/// Sends `total` bytes.
fn send_pattern(stream: &mut UnixStream, total: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut sent = 0;
    while sent < total {
        let length = (total - sent).min(CHUNK as u64) as usize;
        pattern(sent, &mut chunk[..length]);
        stream.write_all(&chunk[..length])?;
        sent += length as u64;
    }
    Ok(())
}

/// Receives up to the end: how many bytes came before the first bad one, and how many in all.
fn receive_pattern(stream: &mut UnixStream) -> io::Result<(u64, u64)> {
    let (mut received, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut good, mut total) = (0, 0);
    let mut filled = 0;
    loop {
        let read = stream.read(&mut received[filled..])?;
        filled += read;
        if filled < CHUNK && read > 0 {
            continue;
        }
        pattern(total, &mut expected[..filled]);
        if good == total {
            let same = received[..filled]
                .iter()
                .zip(&expected)
                .take_while(|(left, right)| left == right)
                .count();
            good += same as u64;
        }
        total += filled as u64;
        filled = 0;
        if read == 0 {
            return Ok((good, total));
        }
    }
}

/// Serves one connection to `port`.
pub(crate) fn serve(port: u32, mut stream: UnixStream) -> io::Result<()> {
    match port {
        ECHO => {
            let mut chunk = vec![0; CHUNK];
            loop {
                let read = stream.read(&mut chunk)?;
                if read == 0 {
                    return stream.shutdown(Shutdown::Write);
                }
                stream.write_all(&chunk[..read])?;
            }
        }
        SINK => {
            let (good, _) = receive_pattern(&mut stream)?;
            stream.write_all(&good.to_le_bytes())
        }
        SOURCE => {
            let mut total = [0; 8];
            stream.read_exact(&mut total)?;
            send_pattern(&mut stream, u64::from_le_bytes(total))
        }
        _ => Ok(()),
    }
}

/// Runs all measures against the services behind `connect`, and reports them one per line.
pub(crate) fn measure(
    connect: &(dyn Fn(u32) -> io::Result<UnixStream> + Sync),
    bulk: u64,
    connections: usize,
    round_trips: u32,
) -> io::Result<String> {
    let mut report = String::new();
    let mut line = |what: &str, value: String| report += &format!("{what}: {value}\n");

    let start = Instant::now();
    let mut stream = connect(SINK)?;
    send_pattern(&mut stream, bulk)?;
    stream.shutdown(Shutdown::Write)?;
    let mut good = [0; 8];
    stream.read_exact(&mut good)?;
    check("sink", u64::from_le_bytes(good), bulk)?;
    line("send", rate(bulk, start.elapsed()));

    let start = Instant::now();
    let mut stream = connect(SOURCE)?;
    stream.write_all(&bulk.to_le_bytes())?;
    let (good, total) = receive_pattern(&mut stream)?;
    check("source", good, bulk)?;
    check("source, all", total, bulk)?;
    line("receive", rate(bulk, start.elapsed()));

    let start = Instant::now();
    echo(connect, bulk / 4)?;
    line("echo, both ways at once", rate(bulk / 4, start.elapsed()));

    let mut stream = connect(ECHO)?;
    let mut times = Vec::new();
    let mut byte = [0];
    for _ in 0..round_trips {
        let start = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        times.push(start.elapsed());
    }
    times.sort();
    line(
        "round trip",
        format!(
            "median {:?}, 99% {:?}",
            times[times.len() / 2],
            times[times.len() * 99 / 100]
        ),
    );

    let start = Instant::now();
    for _ in 0..round_trips / 10 {
        echo(connect, 1)?;
    }
    line(
        "connect, echo of one byte, close",
        format!("{:?}", start.elapsed() / (round_trips / 10).max(1)),
    );

    let start = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..connections)
            .map(|index| scope.spawn(move || echo(connect, 100_000 + 4099 * (index as u64 % 97))))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| io::Error::other("a worker panicked"))?)
    })?;
    line(
        "echo on connections at once",
        format!("{connections} in {:?}", start.elapsed()),
    );
    Ok(report)
}

/// Sends `total` bytes, closes that direction, and expects all of them back and then the end.
fn echo(connect: &(dyn Fn(u32) -> io::Result<UnixStream> + Sync), total: u64) -> io::Result<()> {
    let mut stream = connect(ECHO)?;
    let mut writer = stream.try_clone()?;
    let sender = std::thread::spawn(move || {
        send_pattern(&mut writer, total)?;
        writer.shutdown(Shutdown::Write)
    });
    let (good, all) = receive_pattern(&mut stream)?;
    sender
        .join()
        .map_err(|_| io::Error::other("the sender panicked"))??;
    check("echo", good, total)?;
    check("echo, all", all, total)
}

fn check(what: &str, got: u64, expected: u64) -> io::Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{what}: {got} good bytes instead of {expected}"
    )))
}

fn rate(bytes: u64, time: Duration) -> String {
    format!(
        "{:.1} MiB/s ({} MiB, every byte checked)",
        bytes as f64 / f64::from(1 << 20) / time.as_secs_f64(),
        bytes >> 20
    )
}
