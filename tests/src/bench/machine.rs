//! A whole machine: its start until Docker answers, the daemon's memory, and what the streams to the guest carry.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bench::memory::{Resident, resident};
use crate::machine::{Machine, START_LIMIT};

/// A start of a machine that has been started before.
#[derive(Debug, Clone)]
pub struct Start {
    /// `berth start` until Docker answered.
    pub to_docker: Duration,
    /// The guest's kernel until guest-init called the host.
    pub to_init: Duration,
    /// The engine, its accelerator and program, as `berth status` has them.
    pub engine: String,
    /// The memory of the process that runs the virtual CPUs.
    pub resident: Resident,
}

/// Starts a stopped machine.
///
/// # Errors
/// When it does not start.
pub fn start(machine: &Machine, engine: &str, memory_mib: u64) -> Result<Start> {
    let memory = format!("{memory_mib}MiB");
    let begin = Instant::now();
    machine
        .berth(["start", "--engine", engine, "--cpus", "1", "--memory", &memory])
        .limit(START_LIMIT)
        .ok()?;
    let to_docker = begin.elapsed();
    let status = machine.status()?;
    let text = |pointer: &str| {
        status
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("-")
            .to_owned()
    };
    let boot_ms = status
        .pointer("/guest/boot_ms")
        .and_then(Value::as_u64)
        .context("status tells no boot time")?;
    let runner = match engine {
        "qemu" => machine
            .processes()?
            .into_iter()
            .find(|process| process.name.starts_with("qemu-system"))
            .context("QEMU does not run")?,
        _ => machine.daemon()?,
    };
    Ok(Start {
        to_docker,
        to_init: Duration::from_millis(boot_ms),
        engine: format!("{} on {}", text("/engine/engine"), text("/engine/accelerator")),
        resident: resident(runner.pid, memory_mib << 20)?,
    })
}

/// Bytes a second out of the guest.
///
/// # Errors
/// When the stream breaks.
pub fn throughput_out(machine: &Machine, mib: u32) -> Result<f64> {
    let begin = Instant::now();
    let finished = machine
        // Busybox's head does not know every letter for a size.
        .in_guest(&format!("head -c {} /dev/zero", u64::from(mib) << 20))
        .output_file(machine.dir().join("out"))
        .run()?;
    let elapsed = begin.elapsed();
    ensure!(finished.code() == Some(0), "{}", finished.describe());
    let size = std::fs::metadata(machine.dir().join("out"))
        .context("the output is a file")?
        .len();
    ensure!(size == u64::from(mib) << 20, "{size} bytes of {mib} MiB arrived");
    Ok(f64::from(mib) * 1_048_576.0 / elapsed.as_secs_f64())
}

/// Bytes a second into the guest.
///
/// # Errors
/// When the stream breaks.
pub fn throughput_in(machine: &Machine, mib: u32) -> Result<f64> {
    let input = machine.dir().join("in");
    std::fs::write(&input, vec![0; (mib as usize) << 20]).context("cannot write the input")?;
    let begin = Instant::now();
    let counted = machine.in_guest("wc -c").input_file(&input).ok()?;
    let elapsed = begin.elapsed();
    ensure!(
        counted == (u64::from(mib) << 20).to_string(),
        "{counted} bytes of {mib} MiB arrived"
    );
    Ok(f64::from(mib) * 1_048_576.0 / elapsed.as_secs_f64())
}

/// Round trips of one byte through a process in the guest.
///
/// # Errors
/// When the stream breaks.
pub fn echo_round_trips(machine: &Machine, count: usize) -> Result<Vec<Duration>> {
    let mut cat = machine.in_guest("cat").piped().spawn()?;
    let mut times = Vec::with_capacity(count);
    for sent in 0..=count {
        let begin = Instant::now();
        cat.write(b".")?;
        cat.stdout.wait_for(".", sent, Duration::from_secs(60))?;
        // The first one waits for the process to start.
        if sent > 0 {
            times.push(begin.elapsed());
        }
    }
    Ok(times)
}

/// Round trips of the smallest request to Docker, over one connection.
///
/// # Errors
/// When Docker does not answer.
pub fn docker_round_trips(machine: &Machine, count: usize) -> Result<Vec<Duration>> {
    let path = machine.docker_socket();
    let mut stream =
        UnixStream::connect(&path).with_context(|| format!("cannot connect to {}", path.display()))?;
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .context("cannot limit the wait for Docker")?;
    let mut reader = BufReader::new(stream.try_clone().context("cannot duplicate a socket")?);
    let mut times = Vec::with_capacity(count);
    for sent in 0..=count {
        let begin = Instant::now();
        stream
            .write_all(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
            .context("cannot ask Docker")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).context("Docker did not answer")?;
            ensure!(!line.is_empty(), "Docker closed the connection");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().context("a length is a number")?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).context("Docker did not answer")?;
        ensure!(
            body == b"OK",
            "Docker answered a ping with {:?}",
            String::from_utf8_lossy(&body)
        );
        if sent > 0 {
            times.push(begin.elapsed());
        }
    }
    Ok(times)
}
