//! dockerd's log, of which there are two files: read from any number of lines before the end, and followed across
//! rotations without losing or repeating a byte.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use crate::docker::log_file::{Position, older};

const BLOCK: usize = 64 * 1024;

/// A reader of the log. The files are open and stand where reading begins.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    position: watch::Receiver<Position>,
    /// How often the log had been rotated when `current` was the current file.
    rotations: u64,
    before: Option<File>,
    current: File,
}

impl Log {
    /// Opens the log `tail` lines before its end, or at its beginning.
    pub(super) async fn open(
        path: &Path,
        position: watch::Receiver<Position>,
        tail: Option<u64>,
    ) -> io::Result<Log> {
        let path = path.to_owned();
        in_background(move || {
            let (rotations, before, mut current) = open_both(&path, &position)?;
            let mut before = before;
            if let Some(lines) = tail {
                let found = seek_to_tail(&mut current, lines)?;
                match &mut before {
                    Some(file) if found < lines => {
                        seek_to_tail(file, lines - found)?;
                    }
                    _ => before = None,
                }
            }
            Ok(Log {
                path,
                position,
                rotations,
                before,
                current,
            })
        })
        .await
    }

    /// Sends the log, to its present end or as it grows without end.
    pub(super) async fn send(mut self, out: &mut (impl AsyncWrite + Unpin), follow: bool) -> io::Result<()> {
        if let Some(before) = self.before.take() {
            send_rest(&mut tokio::fs::File::from_std(before), out).await?;
        }
        let mut current = tokio::fs::File::from_std(self.current.try_clone()?);
        loop {
            // What was written before this point is seen by the read after it.
            let seen = *self.position.borrow_and_update();
            send_rest(&mut current, out).await?;
            if !follow {
                return Ok(());
            }
            if seen.rotations != self.rotations {
                // The file was left for good before `seen` was published, so it has been read to its very end.
                let next = self.rotations + 1;
                let (path, position) = (self.path.clone(), self.position.clone());
                let (file, rotations) = in_background(move || open_after(&path, &position, next)).await?;
                (current, self.rotations) = (tokio::fs::File::from_std(file), rotations);
                continue;
            }
            out.flush().await?;
            if self.position.changed().await.is_err() {
                // The writer is gone, and with it all that could follow.
                return Ok(());
            }
        }
    }
}

async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// Opens both files as they are between two rotations, and says how many rotations there were.
fn open_both(path: &Path, position: &watch::Receiver<Position>) -> io::Result<(u64, Option<File>, File)> {
    loop {
        let rotations = position.borrow().rotations;
        let before = match File::open(older(path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            opened => Some(opened?),
        };
        let current = File::open(path);
        // Otherwise the names meant other files halfway through.
        if position.borrow().rotations == rotations {
            match current {
                Ok(current) => return Ok((rotations, before, current)),
                // Between a rotation's two steps.
                Err(e) if e.kind() == io::ErrorKind::NotFound => std::thread::yield_now(),
                Err(e) => return Err(e),
            }
        }
    }
}

/// Opens the file that was current after `wanted` rotations, or the oldest there is when that is gone.
fn open_after(path: &Path, position: &watch::Receiver<Position>, wanted: u64) -> io::Result<(File, u64)> {
    let (rotations, before, current) = open_both(path, position)?;
    Ok(match before {
        Some(before) if rotations > wanted => (before, rotations - 1),
        _ => (current, rotations),
    })
}

async fn send_rest(file: &mut tokio::fs::File, out: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK];
    loop {
        match file.read(&mut buffer).await? {
            0 => return Ok(()),
            length => out.write_all(&buffer[..length]).await?,
        }
    }
}

/// Moves to the beginning of the last `lines` lines, or to the very beginning when there are fewer. Returns how many
/// lines follow. A last line without an end counts as one.
fn seek_to_tail(file: &mut (impl Read + Seek), lines: u64) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 || end == 0 {
        return Ok(0);
    }
    let mut found = 0;
    let mut block_end = end;
    let mut buffer = vec![0; BLOCK];
    while block_end > 0 {
        let block_start = block_end.saturating_sub(BLOCK as u64);
        // At most BLOCK.
        let block = &mut buffer[..(block_end - block_start) as usize];
        file.seek(SeekFrom::Start(block_start))?;
        file.read_exact(block)?;
        for (at, byte) in block.iter().enumerate().rev() {
            let at = block_start + at as u64;
            // The end of the last line begins no other line.
            if *byte == b'\n' && at + 1 < end {
                found += 1;
                if found == lines {
                    file.seek(SeekFrom::Start(at + 1))?;
                    return Ok(found);
                }
            }
        }
        block_end = block_start;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(found + 1)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tail(text: &str, lines: u64) -> (String, u64) {
        let mut file = io::Cursor::new(text.as_bytes());
        let found = seek_to_tail(&mut file, lines).unwrap();
        let mut rest = String::new();
        Read::read_to_string(&mut file, &mut rest).unwrap();
        (rest, found)
    }

    #[test]
    fn the_tail_begins_where_a_line_does() {
        assert_eq!(tail("a\nb\nc\n", 2), ("b\nc\n".into(), 2));
        assert_eq!(tail("a\nb\nc", 2), ("b\nc".into(), 2));
        assert_eq!(tail("a\nb\n", 5), ("a\nb\n".into(), 2));
        assert_eq!(tail("a\nb\n", 2), ("a\nb\n".into(), 2));
        assert_eq!(tail("a\n", 0), (String::new(), 0));
        assert_eq!(tail("", 3), (String::new(), 0));
        assert_eq!(tail("\n\n\n", 2), ("\n\n".into(), 2));
    }

    #[test]
    fn the_tail_may_begin_blocks_before_the_end() {
        let text: String = (0..30_000).map(|i| format!("line {i}\n")).collect();
        let (rest, found) = tail(&text, 20_000);
        assert_eq!(found, 20_000);
        assert!(rest.starts_with("line 10000\n"));
    }

    struct Writer {
        directory: tempfile::TempDir,
        sender: watch::Sender<Position>,
    }

    impl Writer {
        fn new() -> Writer {
            let writer = Writer {
                directory: tempfile::tempdir().unwrap(),
                sender: watch::Sender::default(),
            };
            fs::write(writer.path(), "").unwrap();
            writer
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("log")
        }

        fn write(&self, text: &str) {
            let mut whole = fs::read_to_string(self.path()).unwrap();
            // In place, as the true writer appends.
            fs::OpenOptions::new()
                .append(true)
                .open(self.path())
                .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
                .unwrap();
            whole.push_str(text);
            self.sender.send_modify(|p| p.length = whole.len() as u64);
        }

        fn rotate(&self) {
            fs::rename(self.path(), older(&self.path())).unwrap();
            fs::write(self.path(), "").unwrap();
            self.sender.send_modify(|p| {
                *p = Position {
                    rotations: p.rotations + 1,
                    length: 0,
                };
            });
        }

        async fn open(&self, tail: Option<u64>) -> Log {
            Log::open(&self.path(), self.sender.subscribe(), tail)
                .await
                .unwrap()
        }

        async fn read(&self, tail: Option<u64>) -> String {
            let mut out = Vec::new();
            self.open(tail).await.send(&mut out, false).await.unwrap();
            String::from_utf8(out).unwrap()
        }
    }

    #[tokio::test]
    async fn both_files_are_one_log() {
        let writer = Writer::new();
        writer.write("1\n2\n3\n");
        writer.rotate();
        writer.write("4\n5\n");
        assert_eq!(writer.read(None).await, "1\n2\n3\n4\n5\n");
        assert_eq!(writer.read(Some(3)).await, "3\n4\n5\n");
        assert_eq!(writer.read(Some(2)).await, "4\n5\n");
        assert_eq!(writer.read(Some(0)).await, "");
        assert_eq!(writer.read(Some(99)).await, "1\n2\n3\n4\n5\n");
    }

    #[tokio::test]
    async fn following_crosses_rotations_without_loss() {
        let writer = Writer::new();
        writer.write("1\n");
        let log = writer.open(None).await;
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let sending = tokio::spawn(async move {
            let mut far = far;
            log.send(&mut far, true).await.unwrap();
        });
        let mut expect = async |text: &str| {
            let mut bytes = vec![0; text.len()];
            near.read_exact(&mut bytes).await.unwrap();
            assert_eq!(String::from_utf8(bytes).unwrap(), text);
        };
        expect("1\n").await;
        writer.write("2\n");
        expect("2\n").await;
        // Written and rotated away before the follower looks, twice.
        writer.write("3\n");
        writer.rotate();
        writer.write("4\n");
        writer.rotate();
        writer.write("5\n");
        expect("3\n4\n5\n").await;
        drop(writer.sender);
        sending.await.unwrap();
    }
}
