//! A daemon without a machine: it says over the HTTP interface what it is told to say, also what no daemon should.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What it says.
#[derive(Default)]
struct Words {
    /// The lines of the event stream.
    events: Vec<String>,
    /// The status; none when it does not answer.
    status: Option<Value>,
    profiles: Value,
    connections: Vec<UnixStream>,
}

#[derive(Default)]
struct Shared {
    words: Mutex<Words>,
    changed: Condvar,
    over: AtomicBool,
}

impl Shared {
    fn words(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The daemon. When this is dropped it is gone as one that was killed: its socket stays.
pub struct FakeDaemon {
    shared: Arc<Shared>,
    socket: PathBuf,
}

impl FakeDaemon {
    /// Listens on `socket`, in the place of what may be there.
    ///
    /// # Errors
    /// When it cannot.
    pub fn start(socket: &Path) -> Result<FakeDaemon> {
        let cannot = || format!("cannot listen on {}", socket.display());
        if let Some(dir) = socket.parent() {
            std::fs::create_dir_all(dir).with_context(cannot)?;
        }
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).with_context(cannot)?;
        let shared = Arc::new(Shared::default());
        shared.words().profiles = json!({"current": null, "profiles": []});
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.over.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&serving);
                thread::spawn(move || drop(answer(stream, &shared)));
            }
        });
        Ok(FakeDaemon {
            shared,
            socket: socket.to_owned(),
        })
    }

    /// Says these events next.
    pub fn events(&self, events: impl IntoIterator<Item = Value>) {
        let lines = events.into_iter().map(|event| format!("{event}\n"));
        self.shared.words().events.extend(lines);
        self.shared.changed.notify_all();
    }

    /// Says something in the event stream that may be no event at all.
    pub fn line(&self, line: &str) {
        self.shared.words().events.push(format!("{line}\n"));
        self.shared.changed.notify_all();
    }

    /// Gives this status from now on; none: no answer at all.
    pub fn status(&self, status: Option<Value>) {
        self.shared.words().status = status;
    }

    /// Gives these profiles from now on.
    pub fn profiles(&self, profiles: Value) {
        self.shared.words().profiles = profiles;
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        for connection in self.shared.words().connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
        // So that the listener looks up and goes.
        drop(UnixStream::connect(&self.socket));
    }
}

fn answer(mut stream: UnixStream, shared: &Shared) -> std::io::Result<()> {
    shared.words().connections.push(stream.try_clone()?);
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let body = match path {
        "/v1/events" => return tell_events(stream, shared),
        "/v1/status" => {
            let status = shared.words().status.clone();
            match status {
                Some(status) => status,
                None => return wait_for_end(shared),
            }
        }
        "/v1/profiles" => shared.words().profiles.clone(),
        _ => json!({}),
    };
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn tell_events(mut stream: UnixStream, shared: &Shared) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
    let mut told = 0;
    loop {
        let mut words = shared.words();
        while words.events.len() == told {
            if shared.over.load(Ordering::SeqCst) {
                return Ok(());
            }
            words = shared.changed.wait(words).unwrap_or_else(PoisonError::into_inner);
        }
        let text = words.events[told..].concat();
        told = words.events.len();
        drop(words);
        stream.write_all(text.as_bytes())?;
    }
}

fn wait_for_end(shared: &Shared) -> std::io::Result<()> {
    let mut words = shared.words();
    while !shared.over.load(Ordering::SeqCst) {
        words = shared.changed.wait(words).unwrap_or_else(PoisonError::into_inner);
    }
    Ok(())
}
