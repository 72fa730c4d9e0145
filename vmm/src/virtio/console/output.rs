//! What the guest prints, on its way to the host, with a thread in between that may wait for the reader.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What is kept for a reader that is slow. A boot's worth of kernel messages.
const CAPACITY: usize = 64 << 10;
/// How long the end of the console waits for what is still to be printed.
const PATIENCE: Duration = Duration::from_secs(1);

/// The printing end. Dropping it waits a moment until everything is printed.
pub(super) struct Output {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    /// Bytes that did not fit after `pending`.
    dropped: u64,
    /// The thread is printing what it took from `pending`.
    printing: bool,
    /// No more will come.
    closed: bool,
    /// The other end has gone; what comes is discarded.
    broken: bool,
}

impl Output {
    pub(super) fn spawn(writer: Box<dyn Write + Send>) -> io::Result<Output> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let thread_shared = Arc::clone(&shared);
        // Never joined: a writer that blocks for ever must not keep the machine from ending.
        std::thread::Builder::new()
            .name("console".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || thread_shared.print(writer))?;
        Ok(Output { shared })
    }

    /// Takes bytes to print. Never waits; what does not fit is dropped and counted.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut state = self.shared.state();
        if state.broken {
            return;
        }
        // Once something is missing, what follows waits until the note about it is in place.
        let room = if state.dropped > 0 {
            0
        } else {
            CAPACITY - state.pending.len()
        };
        let (fits, rest) = bytes.split_at(bytes.len().min(room));
        state.pending.extend_from_slice(fits);
        state.dropped += rest.len() as u64;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Takes note of `count` bytes that are not printed.
    pub(super) fn lose(&self, count: u64) {
        if count > 0 {
            self.shared.state().dropped += count;
            self.shared.changed.notify_all();
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        self.shared.changed.notify_all();
        let waiting = |state: &mut State| !state.broken && (state.printing || !state.pending.is_empty());
        // Whether it timed out makes no difference: there is nobody to tell.
        let _ = self.shared.changed.wait_timeout_while(state, PATIENCE, waiting);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single step, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn print(&self, mut writer: Box<dyn Write + Send>) {
        loop {
            let mut state = self.state();
            while state.pending.is_empty() && state.dropped == 0 && !state.closed {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.pending.is_empty() && state.dropped == 0 {
                return;
            }
            let mut bytes = std::mem::take(&mut state.pending);
            let dropped = std::mem::take(&mut state.dropped);
            state.printing = true;
            drop(state);

            if dropped > 0 {
                bytes.extend_from_slice(format!("\r\n[{dropped} bytes of output lost]\r\n").as_bytes());
            }
            let result = writer.write_all(&bytes).and_then(|()| writer.flush());

            let mut state = self.state();
            state.printing = false;
            if let Err(error) = &result {
                state.broken = true;
                state.pending = Vec::new();
                state.dropped = 0;
                tracing::warn!(%error, "the console's output has nowhere to go any more");
            }
            drop(state);
            self.changed.notify_all();
            if result.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream, sync::mpsc};

    use super::*;

    /// Blocks in every write until it is told to go on.
    struct Gate {
        entered: mpsc::Sender<()>,
        go_on: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.entered.send(()).map_err(io::Error::other)?;
            self.go_on.recv().map_err(io::Error::other)?;
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_is_printed_before_the_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let output = Output::spawn(Box::new(ours)).unwrap();
        output.push(b"Kernel panic");
        output.push(b" - not syncing");
        drop(output);
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "Kernel panic - not syncing");
    }

    #[test]
    fn a_reader_that_hangs_loses_bytes_and_hears_how_many() {
        let (entered, entered_rx) = mpsc::channel();
        let (go_on, go_on_rx) = mpsc::channel();
        let written: Arc<Mutex<Vec<u8>>> = Arc::default();
        let gate = Gate {
            entered,
            go_on: go_on_rx,
            written: Arc::clone(&written),
        };
        let output = Output::spawn(Box::new(gate)).unwrap();
        output.push(b"first ");
        entered_rx.recv().unwrap();
        // The thread is stuck; from here on nothing is taken from the buffer.
        output.push(&vec![b'x'; CAPACITY - 10]);
        output.push(&[b'y'; 110]);
        output.push(b"lost too");
        assert_eq!(output.shared.state().pending.len(), CAPACITY);
        go_on.send(()).unwrap();
        entered_rx.recv().unwrap();
        output.push(b"after");
        for _ in 0..2 {
            go_on.send(()).unwrap();
        }
        drop(output);
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(written.starts_with("first xxx"), "{}", &written[..20]);
        let end = &written[written.len() - 60..];
        assert!(
            end.ends_with("yyyyyyyyyy\r\n[108 bytes of output lost]\r\nafter"),
            "{end}"
        );
    }

    #[test]
    fn a_reader_that_has_gone_costs_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let output = Output::spawn(Box::new(ours)).unwrap();
        output.push(b"anybody?");
        let state = output.shared.state();
        let limit = Duration::from_secs(30);
        let (state, timeout) = output
            .shared
            .changed
            .wait_timeout_while(state, limit, |state| !state.broken)
            .unwrap();
        assert!(!timeout.timed_out());
        drop(state);
        output.push(&vec![0; CAPACITY * 2]);
        assert!(output.shared.state().pending.is_empty());
    }
}
