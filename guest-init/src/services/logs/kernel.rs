//! The kernel's ring buffer, from `/dev/kmsg` (kernel documentation, ABI/testing/dev-kmsg), as dmesg prints it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWrite, AsyncWriteExt, Interest};

use crate::async_fd;

/// The longest record, in bytes, with its escapes and dictionary (`CONSOLE_EXT_LOG_MAX`).
const MAX_RECORD: usize = 8192;

/// A reader of the ring, at its oldest record.
#[derive(Debug)]
pub(super) struct Ring(AsyncFd<OwnedFd>);

impl Ring {
    /// Opens it.
    pub(super) fn open() -> io::Result<Ring> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = open(c"/dev/kmsg", flags, Mode::empty())?;
        async_fd::register(fd, Interest::READABLE).map(Ring)
    }

    /// Sends the last `tail` lines, or all, and then what comes when `follow` says so.
    pub(super) async fn send(
        self,
        out: &mut (impl AsyncWrite + Unpin),
        tail: Option<u64>,
        follow: bool,
    ) -> io::Result<()> {
        let tail = tail.map_or(usize::MAX, |lines| usize::try_from(lines).unwrap_or(usize::MAX));
        let mut lines = VecDeque::new();
        // The ring is bounded, so what is there now fits in memory.
        while let Some(record) = self.next()? {
            lines.push_back(record);
            if lines.len() > tail {
                lines.pop_front();
            }
        }
        for line in lines {
            out.write_all(line.as_bytes()).await?;
        }
        out.flush().await?;
        if !follow {
            return Ok(());
        }
        loop {
            let mut guard = self.0.readable().await?;
            match self.next()? {
                Some(line) => {
                    out.write_all(line.as_bytes()).await?;
                    out.flush().await?;
                }
                None => guard.clear_ready(),
            }
        }
    }

    /// The next record, or nothing when all that is there was read.
    fn next(&self) -> io::Result<Option<String>> {
        let mut buffer = [0; MAX_RECORD];
        loop {
            match rustix::io::read(self.0.get_ref(), &mut buffer) {
                Ok(length) => {
                    if let Some(line) = format_record(&buffer[..length]) {
                        return Ok(Some(line));
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                // Records were overwritten before they were read; the next read goes on after them.
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// One record as dmesg prints it: `[    1.234567] text`. A record is `priority,sequence,microseconds,flags;text`, then
/// lines of a dictionary, which begin with a space.
fn format_record(record: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(record);
    let (head, rest) = text.split_once(';')?;
    let microseconds: u64 = head.split(',').nth(2)?.parse().ok()?;
    let message = rest.lines().next().unwrap_or_default();
    Some(format!(
        "[{:5}.{:06}] {}\n",
        microseconds / 1_000_000,
        microseconds % 1_000_000,
        unescape(message)
    ))
}

/// Undoes `\xNN`, by which the kernel writes what is not printable ASCII. Line ends and other control characters stay
/// escaped: a message of the guest must not command the terminal of who reads it.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match rest {
            [b'\\', b'x', high, low, ..] => hex(*high).zip(hex(*low)).map(|(h, l)| h << 4 | l),
            _ => None,
        };
        match escaped {
            Some(byte) if byte >= 0x80 || byte == b'\\' || byte == b'\t' => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    // A digit is below 16.
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_looks_as_dmesg_prints_it() {
        let record = b"6,339,5140900,-;NET: Registered protocol family 10\n SUBSYSTEM=net\n DEVICE=+lo\n";
        assert_eq!(
            format_record(record).unwrap(),
            "[    5.140900] NET: Registered protocol family 10\n"
        );
        assert_eq!(
            format_record(b"4,1,12345678000001,c;").unwrap(),
            "[12345678.000001] \n"
        );
        assert_eq!(format_record(b"nonsense"), None);
        assert_eq!(format_record(b"1,2;x"), None);
    }

    #[test]
    fn text_is_unescaped_and_control_characters_are_not() {
        assert_eq!(unescape(r"caf\xc3\xa9"), "café");
        assert_eq!(unescape(r"a\x5cb"), r"a\b");
        assert_eq!(unescape(r"\x1b[2Jgone\x0a"), r"\x1b[2Jgone\x0a");
        assert_eq!(unescape(r"end\x4"), r"end\x4");
        assert_eq!(unescape(r"\xzz"), r"\xzz");
    }
}
