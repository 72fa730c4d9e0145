//! Processes in the guest, on [`crate::ports::EXEC`]: one connection runs one process.
//!
//! The host sends an [`ExecRequest`] frame ([`crate::frame`]), the guest answers an [`ExecReply`] frame. After
//! [`ExecReply::Started`] both sides send packets: a kind byte, a little-endian `u32` length, that many bytes
//! ([`Packet`]). The guest sends [`Packet::Exit`] last, after every byte of output, and closes. When the host closes
//! instead, the process gets SIGHUP.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest payload of one packet, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Start a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The program and its arguments. A program without a slash is looked up in `PATH`. Empty: root's login shell.
    pub argv: Vec<String>,
    /// Added to the guest's default environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The working directory; root's home when none.
    pub cwd: Option<String>,
    /// A pseudo-terminal of this size; none for three pipes.
    pub tty: Option<TerminalSize>,
}

/// The size of a terminal, in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// The answer to an [`ExecRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum ExecReply {
    /// It runs; packets follow.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// It could not be started.
    Error {
        /// Why.
        kind: ExecErrorKind,
        /// The same in words.
        message: String,
    },
}

/// Why a process could not be started, as shells tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecErrorKind {
    /// There is no such program (a shell's 127).
    NotFound,
    /// It is there and cannot be executed (a shell's 126).
    NotExecutable,
    /// Anything else.
    Other,
}

/// One packet of an exec stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Host to guest: bytes for standard input.
    Stdin(Vec<u8>),
    /// Host to guest: standard input has ended.
    StdinEof,
    /// Guest to host: bytes of standard output (of both, with a terminal).
    Stdout(Vec<u8>),
    /// Guest to host: bytes of standard error.
    Stderr(Vec<u8>),
    /// Host to guest: the terminal has a new size.
    Resize(TerminalSize),
    /// Host to guest: send this signal to the process group.
    Signal(i32),
    /// Guest to host: the process has ended with this code, 128 + N for signal N. The last packet.
    Exit(i32),
}

const STDIN: u8 = 0;
const STDIN_EOF: u8 = 1;
const STDOUT: u8 = 2;
const STDERR: u8 = 3;
const RESIZE: u8 = 4;
const SIGNAL: u8 = 5;
const EXIT: u8 = 6;

impl Packet {
    /// The bytes of this packet on the wire. A payload over [`MAX_PAYLOAD`] is an error.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let (kind, payload): (u8, &[u8]) = match self {
            Packet::Stdin(bytes) => (STDIN, bytes),
            Packet::StdinEof => (STDIN_EOF, &[]),
            Packet::Stdout(bytes) => (STDOUT, bytes),
            Packet::Stderr(bytes) => (STDERR, bytes),
            Packet::Resize(size) => {
                let [r0, r1] = size.rows.to_le_bytes();
                let [c0, c1] = size.cols.to_le_bytes();
                return Ok(vec![RESIZE, 4, 0, 0, 0, r0, r1, c0, c1]);
            }
            Packet::Signal(number) => return Ok(number_packet(SIGNAL, *number)),
            Packet::Exit(code) => return Ok(number_packet(EXIT, *code)),
        };
        if payload.len() > MAX_PAYLOAD {
            return Err(invalid(format!(
                "a packet of {} bytes is over {MAX_PAYLOAD}",
                payload.len()
            )));
        }
        let mut out = Vec::with_capacity(5 + payload.len());
        out.push(kind);
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(payload);
        Ok(out)
    }

    /// Makes a packet of a kind byte and its payload.
    pub fn decode(kind: u8, payload: Vec<u8>) -> io::Result<Packet> {
        let number = |payload: &[u8]| {
            let bytes = payload
                .try_into()
                .map_err(|_| invalid("a packet's number is not four bytes".into()))?;
            Ok::<i32, io::Error>(i32::from_le_bytes(bytes))
        };
        match kind {
            STDIN => Ok(Packet::Stdin(payload)),
            STDIN_EOF if payload.is_empty() => Ok(Packet::StdinEof),
            STDOUT => Ok(Packet::Stdout(payload)),
            STDERR => Ok(Packet::Stderr(payload)),
            RESIZE => match payload[..] {
                [r0, r1, c0, c1] => Ok(Packet::Resize(TerminalSize {
                    rows: u16::from_le_bytes([r0, r1]),
                    cols: u16::from_le_bytes([c0, c1]),
                })),
                _ => Err(invalid("a terminal size is not four bytes".into())),
            },
            SIGNAL => Ok(Packet::Signal(number(&payload)?)),
            EXIT => Ok(Packet::Exit(number(&payload)?)),
            _ => Err(invalid(format!("unknown packet kind {kind}"))),
        }
    }

    /// Reads one packet; none at a clean end of the stream. Not cancellation-safe.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Packet>> {
        let mut header = [0; 5];
        if stream.read(&mut header[..1]).await? == 0 {
            return Ok(None);
        }
        stream.read_exact(&mut header[1..]).await?;
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > MAX_PAYLOAD {
            return Err(invalid(format!(
                "a packet of {length} bytes is over {MAX_PAYLOAD}"
            )));
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        Packet::decode(header[0], payload).map(Some)
    }

    /// Writes one packet and flushes it.
    pub async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        stream.write_all(&self.encode()?).await?;
        stream.flush().await
    }
}

fn number_packet(kind: u8, number: i32) -> Vec<u8> {
    let mut out = vec![kind, 4, 0, 0, 0];
    out.extend_from_slice(&number.to_le_bytes());
    out
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Option<Packet>> {
        let mut bytes = bytes;
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(Packet::read(&mut bytes))
    }

    fn any_packet() -> impl Strategy<Value = Packet> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            bytes().prop_map(Packet::Stdin),
            Just(Packet::StdinEof),
            bytes().prop_map(Packet::Stdout),
            bytes().prop_map(Packet::Stderr),
            any::<(u16, u16)>().prop_map(|(rows, cols)| Packet::Resize(TerminalSize { rows, cols })),
            any::<i32>().prop_map(Packet::Signal),
            any::<i32>().prop_map(Packet::Exit),
        ]
    }

    #[test]
    fn an_oversized_packet_is_refused_on_both_sides() {
        assert!(Packet::Stdin(vec![0; MAX_PAYLOAD + 1]).encode().is_err());
        let mut wire = vec![STDIN];
        wire.extend_from_slice(&(MAX_PAYLOAD as u32 + 1).to_le_bytes());
        assert!(read(&wire).is_err());
    }

    #[test]
    fn an_empty_stream_is_a_clean_end_and_a_cut_one_is_not() {
        assert_eq!(read(&[]).unwrap(), None);
        assert!(read(&[STDIN, 1, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn every_packet_survives_the_wire(packet in any_packet()) {
            prop_assert_eq!(read(&packet.encode().unwrap()).unwrap(), Some(packet));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&bytes);
        }
    }
}
