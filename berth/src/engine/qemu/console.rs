//! What QEMU prints: the guest's console on its standard output, its own complaints on its standard error.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{ChildStderr, ChildStdout};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// How many of QEMU's last lines are kept for the reason why it ended.
const LINES: usize = 8;

/// QEMU's last words.
#[derive(Debug, Clone, Default)]
pub(super) struct LastWords(Arc<Mutex<VecDeque<String>>>);

impl LastWords {
    fn add(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The last lines, in one.
    pub(super) fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    }
}

/// Copies the guest's console to `to` until QEMU ends.
pub(super) fn copy_console(mut from: ChildStdout, mut to: Box<dyn Write + Send>) -> io::Result<()> {
    thread::Builder::new()
        .name("qemu-console".into())
        .spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                // The sink drops what it cannot keep; QEMU must never wait for it.
                let _ = to.write_all(&buffer[..length]);
            }
        })?;
    Ok(())
}

/// Puts QEMU's complaints in the daemon's log. The thread ends when QEMU has.
pub(super) fn log_complaints(from: ChildStderr, last: LastWords) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("qemu-log".into()).spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            tracing::warn!("qemu: {line}");
            last.add(line);
        }
    })
}
