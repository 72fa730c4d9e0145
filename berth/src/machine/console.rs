//! The guest's console: kept in a file of bounded size, its last lines in memory too, so that a failure can be explained
//! even when the host's disk is full.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::ConsoleSink;
use crate::logs::RotatingFile;

/// How much of the console is kept in memory, in bytes.
const KEPT: usize = 64 * 1024;

/// The console of one machine, from one start to its end. Cheap to clone.
#[derive(Clone)]
pub struct Console {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    file: RotatingFile,
    recent: VecDeque<u8>,
}

impl Console {
    /// A console that goes to `file`.
    pub fn new(file: RotatingFile) -> Console {
        Console {
            inner: Arc::new(Mutex::new(Inner {
                file,
                recent: VecDeque::with_capacity(KEPT),
            })),
        }
    }

    /// Where an engine writes to.
    pub fn sink(&self) -> ConsoleSink {
        let console = self.clone();
        ConsoleSink::new(move || Box::new(ConsoleWriter(console.clone())))
    }

    /// The last lines, at most `count`, without escape sequences and other control characters.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = inner.recent.iter().copied().collect();
        drop(inner);
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<String> = text
            .lines()
            .map(|line| printable(line).trim_end().to_owned())
            .filter(|line| !line.is_empty())
            .collect();
        lines[lines.len().saturating_sub(count)..].to_vec()
    }
}

/// What of `line` a terminal can be given: the guest is not to move the cursor or set colours of the host's terminal.
pub fn printable(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' if chars.peek() == Some(&'[') => {
                chars.next();
                // A control sequence ends with a byte from 0x40 to 0x7e.
                for c in chars.by_ref() {
                    if ('\x40'..='\x7e').contains(&c) {
                        break;
                    }
                }
            }
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

struct ConsoleWriter(Console);

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.file.append(bytes);
        inner.recent.extend(bytes);
        let over = inner.recent.len().saturating_sub(KEPT);
        inner.recent.drain(..over);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> (tempfile::TempDir, Console) {
        let dir = tempfile::tempdir().unwrap();
        let file = RotatingFile::open(dir.path().join("console.log")).unwrap();
        (dir, Console::new(file))
    }

    #[test]
    fn the_last_lines_are_kept_without_what_moves_a_cursor() {
        let (dir, console) = console();
        let mut writer = console.sink().writer();
        writer
            .write_all(b"one\r\n\x1b[31mtwo\x1b[0m\x07\r\n\r\nth")
            .unwrap();
        console.sink().writer().write_all(b"ree").unwrap();
        assert_eq!(console.last_lines(2), ["two", "three"]);
        assert_eq!(console.last_lines(9).len(), 3);
        let file = std::fs::read(dir.path().join("console.log")).unwrap();
        assert_eq!(file, b"one\r\n\x1b[31mtwo\x1b[0m\x07\r\n\r\nthree");
    }

    #[test]
    fn memory_is_bounded_whatever_the_guest_writes() {
        let (_dir, console) = console();
        let mut writer = console.sink().writer();
        for _ in 0..100 {
            writer.write_all(&[b'x'; 4096]).unwrap();
        }
        writer.write_all(b"\nend\n").unwrap();
        assert_eq!(console.inner.lock().unwrap().recent.len(), KEPT);
        assert_eq!(console.last_lines(1), ["end"]);
    }
}
