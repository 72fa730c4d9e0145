//! What a running program has printed so far, to be waited for.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The bytes a stream has given so far, filled by a thread of its own.
pub struct Transcript {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Transcript {
    /// Starts to read `stream` to its end. A read error counts as the end: that is how a terminal says that the last
    /// process has closed it.
    pub fn of(mut stream: impl Read + Send + 'static) -> Arc<Transcript> {
        let transcript = Arc::new(Transcript {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let filled = Arc::clone(&transcript);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let read = stream.read(&mut buffer);
                let mut state = filled.lock();
                match read {
                    Ok(length @ 1..) => state.bytes.extend_from_slice(&buffer[..length]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    _ => state.ended = true,
                }
                filled.changed.notify_all();
                if state.ended {
                    return;
                }
            }
        });
        transcript
    }

    /// Waits until `text` stands after the first `from` bytes, and returns where it ends.
    ///
    /// # Errors
    /// When the stream ends without it or the time is up; the message has what did come.
    pub fn wait_for(&self, text: &str, from: usize, limit: Duration) -> Result<usize> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            let rest = state.bytes.get(from..).unwrap_or_default();
            if let Some(at) = find(rest, text.as_bytes()) {
                return Ok(from + at + text.len());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let why = if state.ended {
                    "the output ended"
                } else {
                    "nothing more came in time"
                };
                bail!(
                    "waited for {text:?} and {why}; it was:\n{}",
                    String::from_utf8_lossy(rest)
                );
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until the stream has ended; false when the time is up.
    pub fn wait_for_end(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !state.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// Everything so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// The bytes from one place to another, as far as there are any yet.
    pub fn part(&self, from: usize, to: usize) -> Vec<u8> {
        let state = self.lock();
        let to = to.min(state.bytes.len());
        state.bytes.get(from..to).unwrap_or_default().to_vec()
    }

    /// How many bytes there are so far.
    pub fn len(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Whether nothing has come yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len().max(1))
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use std::io::{Write, pipe};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_text_is_found_when_it_comes_in_pieces_and_only_after_the_given_place() {
        let (reader, mut writer) = pipe().unwrap();
        let transcript = Transcript::of(reader);

        writer.write_all(b"hel").unwrap();
        writer.write_all(b"lo hello").unwrap();

        let end = transcript.wait_for("hello", 0, LONG).unwrap();
        assert_eq!(end, 5);
        assert_eq!(transcript.wait_for("hello", end, LONG).unwrap(), 11);
        assert_eq!(transcript.part(end, 8), b" he");
        assert_eq!(transcript.part(9, 100), b"lo");
        assert_eq!(transcript.part(100, 200), b"");
    }

    #[test]
    fn the_end_of_the_stream_ends_the_wait() {
        let (reader, mut writer) = pipe().unwrap();
        let transcript = Transcript::of(reader);
        writer.write_all(b"something else").unwrap();
        drop(writer);

        let error = transcript.wait_for("hello", 0, LONG).unwrap_err().to_string();

        assert!(
            error.contains("the output ended") && error.contains("something else"),
            "{error}"
        );
    }
}
