//! A small name server, for the tests of names: it knows what a file says, which it reads for every question.
//!
//! It has to listen on port 53 of an address of its own, in the namespaces of the machine under test, so it is a process: this
//! program, started with an argument of its own.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};

use crate::program::{Program, Running};

/// The argument that makes a program of this crate a name server ([`serve`]); its address and the file follow.
pub const ARGUMENT: &str = "--serve-names";

/// What fits a datagram (RFC 1035, section 2.3.4).
const DATAGRAM: usize = 512;
const NO_SUCH_NAME: u8 = 3;

/// A name server that runs; it ends when this is dropped.
pub struct NameServer {
    file: PathBuf,
    _process: Running,
}

impl NameServer {
    /// Starts one behind `prefix`, on port 53 of `address`, and waits until it listens. `file` is where its names are kept.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(prefix: &[OsString], address: &str, file: PathBuf, names: &str) -> Result<NameServer> {
        fs::write(&file, names).context("cannot write the names")?;
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let process = Program::behind(prefix, program)
            .args([ARGUMENT, address])
            .arg(&file)
            .spawn()?;
        process
            .prints("ready")
            .with_context(|| format!("there is no name server at {address}"))?;
        Ok(NameServer {
            file,
            _process: process,
        })
    }

    /// From now on it knows these names instead: `NAME TYPE DATA` lines, of the types A, AAAA and TXT. The data of a TXT is
    /// the number of bytes it has.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn knows(&self, names: &str) -> Result<()> {
        fs::write(&self.file, names).context("cannot write the names")
    }
}

/// Is a name server until it is killed.
///
/// # Errors
/// When it cannot listen.
pub fn serve(address: IpAddr, file: &Path) -> Result<()> {
    let socket = UdpSocket::bind((address, 53)).context("cannot listen for datagrams")?;
    let listener = TcpListener::bind((address, 53)).context("cannot listen for connections")?;
    println!("ready");
    let names = file.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // An asker that goes away in the middle is not the server's failure.
            let _ = converse(stream, &names);
        }
    });
    let mut buffer = [0; 4096];
    loop {
        let (length, asker) = socket.recv_from(&mut buffer).context("cannot receive")?;
        let Some(mut answer) = answer(&buffer[..length], file) else {
            continue;
        };
        if answer.len() > DATAGRAM {
            answer.truncate(question_end(&answer).unwrap_or(0));
            answer[2] |= 2;
            answer[6..12].fill(0);
        }
        let _ = socket.send_to(&answer, asker);
    }
}

fn converse(mut stream: TcpStream, file: &Path) -> io::Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut question)?;
        let Some(answer) = answer(&question, file) else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(&answer)?;
    }
}

fn answer(question: &[u8], file: &Path) -> Option<Vec<u8>> {
    let end = question_end(question)?;
    let (name, kind) = (
        name(question)?,
        u16::from_be_bytes([question[end - 4], question[end - 3]]),
    );
    let names = fs::read_to_string(file).ok()?;
    let mut known = false;
    let mut records = Vec::new();
    for line in names.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [of, its_kind, data] = words[..] else { continue };
        if !of.eq_ignore_ascii_case(&name) {
            continue;
        }
        known = true;
        let (its_kind, data) = record(its_kind, data)?;
        if its_kind == kind {
            records.push(data);
        }
    }
    let mut out = question[..end].to_vec();
    out[2] = 0x81;
    out[3] = 0x80 | if known { 0 } else { NO_SUCH_NAME };
    out[6..12].fill(0);
    out[7] = u8::try_from(records.len()).ok()?;
    for data in records {
        out.extend_from_slice(&[0xc0, 12]);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1, 0, 0, 0, 0]);
        out.extend_from_slice(&u16::try_from(data.len()).ok()?.to_be_bytes());
        out.extend_from_slice(&data);
    }
    Some(out)
}

/// The number of a type, and a record of it on the wire.
fn record(kind: &str, data: &str) -> Option<(u16, Vec<u8>)> {
    Some(match (kind, data.parse::<IpAddr>()) {
        ("A", Ok(IpAddr::V4(address))) => (1, address.octets().to_vec()),
        ("AAAA", Ok(IpAddr::V6(address))) => (28, address.octets().to_vec()),
        ("TXT", _) => {
            let bytes = vec![b'x'; data.parse().ok()?];
            let strings = bytes.chunks(255).flat_map(|part| {
                // At most 255.
                std::iter::once(part.len() as u8).chain(part.iter().copied())
            });
            (16, strings.collect())
        }
        _ => return None,
    })
}

/// Where the only question ends.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut place = 12;
    while *message.get(place)? != 0 {
        place += 1 + usize::from(message[place]);
    }
    (message.len() >= place + 5).then_some(place + 5)
}

fn name(message: &[u8]) -> Option<String> {
    let mut place = 12;
    let mut labels = Vec::new();
    while *message.get(place)? != 0 {
        let end = place + 1 + usize::from(message[place]);
        labels.push(String::from_utf8_lossy(message.get(place + 1..end)?).into_owned());
        place = end;
    }
    Some(labels.join("."))
}
