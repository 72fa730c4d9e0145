//! dockerd's log: what dockerd prints, kept on the data disk across boots, bounded in size, and readable while it grows.
//!
//! dockerd writes into a pipe and a thread of guest-init writes the file: only so can the file be rotated without losing
//! lines. It is a thread of its own because a write to a disk may take long, and nothing else may wait for it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use crate::console::{error, warning};

/// Where the log is; the older half has `.1` added.
pub(crate) const PATH: &str = "/var/log/dockerd.log";

/// Bytes in a file at which the next is begun. Two files are kept.
const MAX_SIZE: u64 = 10 << 20;

/// The path of the file before the current one.
pub(crate) fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// The place up to which a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    /// How often the log was rotated since boot.
    pub(crate) rotations: u64,
    /// Bytes in the current file.
    pub(crate) length: u64,
}

/// A log that rotates.
#[derive(Debug)]
pub(super) struct RotatingLog {
    path: PathBuf,
    max_size: u64,
    file: File,
    at_line_start: bool,
    position: watch::Sender<Position>,
}

impl RotatingLog {
    /// Opens the log at `path`, going on where the last boot ended.
    pub(super) fn open(path: &Path, max_size: u64) -> io::Result<RotatingLog> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(RotatingLog {
            path: path.to_owned(),
            max_size,
            file,
            at_line_start: true,
            position: watch::Sender::new(Position { rotations: 0, length }),
        })
    }

    /// Tells how far the log is written.
    pub(super) fn position(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// Appends bytes; a new file is begun only where a line ends.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let length = self.position.borrow().length;
            if length >= self.max_size && self.at_line_start {
                self.rotate()?;
                continue;
            }
            // Over the limit, only the rest of the line still belongs here.
            let line_end = bytes.iter().position(|&b| b == b'\n').map(|at| at + 1);
            let take = match line_end {
                Some(end) if length + bytes.len() as u64 > self.max_size => end,
                _ => bytes.len(),
            };
            let (now, rest) = bytes.split_at(take);
            self.file.write_all(now)?;
            self.at_line_start = now.last() == Some(&b'\n');
            self.position.send_modify(|p| p.length += now.len() as u64);
            bytes = rest;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(&self.path, older(&self.path))?;
        self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.position.send_modify(|p| {
            *p = Position {
                rotations: p.rotations + 1,
                length: 0,
            };
        });
        Ok(())
    }
}

/// Starts the thread that writes what comes out of `pipe` to the log at [`PATH`]. It ends with the pipe.
pub(super) fn start(pipe: PipeReader) -> io::Result<watch::Receiver<Position>> {
    let log = RotatingLog::open(Path::new(PATH), MAX_SIZE)?;
    let position = log.position();
    std::thread::Builder::new()
        .name("dockerd-log".into())
        .stack_size(128 * 1024)
        .spawn(move || copy(pipe, log))?;
    Ok(position)
}

/// Copies until the pipe ends. Whatever fails, the pipe is read on: a dockerd whose output nobody takes stands still.
fn copy(mut pipe: PipeReader, mut log: RotatingLog) {
    let mut buffer = vec![0; 16 * 1024];
    let mut failing = false;
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                let written = log.append(&buffer[..length]);
                if let Err(e) = &written
                    && !failing
                {
                    warning!("cannot write dockerd's log {PATH}, lines are lost: {e}");
                }
                failing = written.is_err();
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                error!("cannot read dockerd's output: {e}");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

/// The last line with text in it, for messages; at most the last 4 KiB are looked at.
pub(super) fn last_line(path: &Path) -> Option<String> {
    use std::os::unix::fs::FileExt;

    let file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let mut bytes = vec![0; usize::try_from(length.min(4096)).ok()?];
    let start = length - bytes.len() as u64;
    file.read_exact_at(&mut bytes, start).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_full_file_moves_away_between_two_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = RotatingLog::open(&path, 10).unwrap();
        let position = log.position();
        log.append(b"one\ntwo\nthree\nfour").unwrap();
        assert_eq!(
            (read(&older(&path)).as_str(), read(&path).as_str()),
            ("one\ntwo\nthree\n", "four")
        );
        log.append(b" still four, and long\n").unwrap();
        assert_eq!(read(&path), "four still four, and long\n");
        log.append(b"five\n").unwrap();
        assert_eq!(
            (read(&older(&path)).as_str(), read(&path).as_str()),
            ("four still four, and long\n", "five\n")
        );
        assert_eq!(
            *position.borrow(),
            Position {
                rotations: 2,
                length: 5
            }
        );
    }

    #[test]
    fn the_log_of_the_last_boot_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "before\n").unwrap();
        let mut log = RotatingLog::open(&path, 1000).unwrap();
        assert_eq!(log.position().borrow().length, 7);
        log.append(b"after\n").unwrap();
        assert_eq!(read(&path), "before\nafter\n");
    }

    #[test]
    fn no_byte_is_lost_however_the_output_is_cut() {
        let text: String = (0..200).map(|i| format!("line {i}\n")).collect();
        for chunk in [1, 3, 7, 64, 5000] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("log");
            // Half of the text, so that it is rotated once.
            let mut log = RotatingLog::open(&path, text.len() as u64 / 2).unwrap();
            for piece in text.as_bytes().chunks(chunk) {
                log.append(piece).unwrap();
            }
            assert_eq!(read(&older(&path)) + &read(&path), text, "chunks of {chunk}");
        }
    }

    #[test]
    fn the_last_line_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        assert_eq!(last_line(&path), None);
        fs::write(&path, format!("{}\nfailed to start\n\n", "x".repeat(9000))).unwrap();
        assert_eq!(last_line(&path).as_deref(), Some("failed to start"));
    }

    #[test]
    fn what_comes_through_the_pipe_lands_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = RotatingLog::open(&path, 1000).unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let thread = std::thread::spawn(move || copy(reader, log));
        writer.write_all(b"hello\n").unwrap();
        drop(writer);
        thread.join().unwrap();
        assert_eq!(read(&path), "hello\n");
    }
}
