//! QEMU's control channel: JSON lines, one answer to each command, events in between.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};

use crate::engine::balloon;
use crate::engine::disk_fault::DiskFault;
use crate::size::Size;

/// The longest line taken, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    #[error("QEMU is gone")]
    Gone,
    #[error("the control channel to QEMU broke")]
    Io(#[from] std::io::Error),
    #[error("QEMU said something that is not its protocol: {0}")]
    Protocol(String),
    #[error("QEMU refused `{command}`: {reason}")]
    Refused { command: String, reason: String },
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<ErrorBody>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    id: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct ErrorBody {
    desc: String,
}

type Answer = Result<Value, String>;
type Waiting = HashMap<u64, oneshot::Sender<Answer>>;

/// Commands that have no answer yet, by their ids; none once QEMU has closed the channel.
#[derive(Debug, Clone)]
struct Pending(Arc<Mutex<Option<Waiting>>>);

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Option<Waiting>> {
        // Every change is one call, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to a QEMU that has greeted.
#[derive(Debug)]
pub(super) struct Qmp {
    write: tokio::sync::Mutex<OwnedWriteHalf>,
    next_id: AtomicU64,
    pending: Pending,
    memory: Size,
    ballooned: watch::Receiver<u32>,
    shutdown: watch::Receiver<Option<String>>,
}

impl Qmp {
    /// Waits for the greeting and leaves negotiation mode. The machine has `memory`. `on_fault` is called with the name of a
    /// drive and what failed, whenever a request of the guest's failed on the host.
    pub(super) async fn open(
        stream: UnixStream,
        memory: Size,
        on_fault: impl Fn(&str, DiskFault) + Send + 'static,
    ) -> Result<Self, QmpError> {
        let (read, write) = stream.into_split();
        let mut read = BufReader::new(read);
        if next(&mut read)
            .await?
            .and_then(|message| message.greeting)
            .is_none()
        {
            return Err(QmpError::Protocol("no greeting".into()));
        }
        let pending = Pending(Arc::new(Mutex::new(Some(Waiting::new()))));
        let (ballooned_tx, ballooned) = watch::channel(0);
        let (shutdown_tx, shutdown) = watch::channel(None);
        let events = Events {
            memory,
            ballooned: ballooned_tx,
            shutdown: shutdown_tx,
            on_fault,
        };
        tokio::spawn(listen(read, pending.clone(), events));
        let qmp = Qmp {
            write: write.into(),
            next_id: AtomicU64::new(0),
            pending,
            memory,
            ballooned,
            shutdown,
        };
        qmp.execute("qmp_capabilities", &json!({})).await?;
        Ok(qmp)
    }

    /// Executes a command.
    async fn execute(&self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        match self.pending.lock().as_mut() {
            Some(pending) => pending.insert(id, sender),
            None => return Err(QmpError::Gone),
        };
        let line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string() + "\n";
        self.write.lock().await.write_all(line.as_bytes()).await?;
        match answer.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(reason)) => Err(QmpError::Refused {
                command: command.to_owned(),
                reason,
            }),
            Err(_) => Err(QmpError::Gone),
        }
    }

    /// Asks the guest for this many pages of its memory.
    pub(super) async fn set_ballooned(&self, pages: u32) -> Result<(), QmpError> {
        // QEMU counts what is left.
        let left = self.memory.bytes().saturating_sub(balloon::size(pages).bytes());
        self.execute("balloon", &json!({ "value": left })).await.map(drop)
    }

    /// How many pages the guest says that it has handed over.
    pub(super) fn ballooned(&self) -> watch::Receiver<u32> {
        self.ballooned.clone()
    }

    /// Why QEMU shuts down, once it has said so ("guest-reset", "host-signal").
    pub(super) fn shutdown_reason(&self) -> Option<String> {
        self.shutdown.borrow().clone()
    }

    /// Waits until QEMU has closed the channel: what it had to say has been heard then.
    pub(super) async fn closed(&self) {
        let mut shutdown = self.shutdown.clone();
        while shutdown.changed().await.is_ok() {}
    }
}

/// Where events go.
struct Events<F> {
    memory: Size,
    ballooned: watch::Sender<u32>,
    shutdown: watch::Sender<Option<String>>,
    on_fault: F,
}

impl<F: Fn(&str, DiskFault)> Events<F> {
    fn hear(&self, event: &str, data: &Value) {
        match event {
            "SHUTDOWN" => {
                let reason = data["reason"].as_str().unwrap_or("unknown").to_owned();
                self.shutdown.send_replace(Some(reason));
            }
            "BLOCK_IO_ERROR" => {
                (self.on_fault)(data["device"].as_str().unwrap_or_default(), disk_fault(data));
            }
            "BALLOON_CHANGE" => {
                // A guest that claims to have handed over more than it has makes QEMU count below zero.
                let left = data["actual"].as_u64().unwrap_or(0);
                let handed_over = self.memory.bytes().saturating_sub(left);
                let pages = balloon::pages(Size::from_bytes(handed_over));
                self.ballooned.send_if_modified(|known| {
                    let is_news = *known != pages;
                    *known = pages;
                    is_news
                });
            }
            _ => {}
        }
    }
}

async fn listen(
    mut read: BufReader<OwnedReadHalf>,
    pending: Pending,
    events: Events<impl Fn(&str, DiskFault)>,
) {
    loop {
        let message = match next(&mut read).await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "QEMU's control channel ended"
                );
                break;
            }
        };
        if let Some(event) = message.event {
            tracing::debug!(event, data = %message.data, "qemu");
            events.hear(&event, &message.data);
            continue;
        }
        let waiting = message
            .id
            .and_then(|id| pending.lock().as_mut().and_then(|pending| pending.remove(&id)));
        let answer = match message.error {
            Some(error) => Err(error.desc),
            None => Ok(message.result.unwrap_or_default()),
        };
        if let Some(waiting) = waiting {
            // Whoever asked may have given up.
            let _ = waiting.send(answer);
        }
    }
    // Nobody waits for what does not come.
    pending.lock().take();
}

/// What a BLOCK_IO_ERROR means. QEMU leaves out `nospace` where it would not stop the machine for a full disk, and then
/// only the system's own words tell.
fn disk_fault(data: &Value) -> DiskFault {
    let reason = data["reason"].as_str().unwrap_or_default();
    let full = data["nospace"].as_bool().unwrap_or(false)
        || [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT]
            .iter()
            .any(|error| std::io::Error::from(*error).to_string().starts_with(reason) && !reason.is_empty());
    if full { DiskFault::NoSpace } else { DiskFault::Io }
}

async fn next(read: &mut BufReader<OwnedReadHalf>) -> Result<Option<Message>, QmpError> {
    let mut line = Vec::new();
    let length = (&mut *read).take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if length == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|error| QmpError::Protocol(error.to_string()))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn answers_errors_and_events_are_told_apart() {
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        let play = tokio::spawn(async move {
            qemu.write_all(b"{\"QMP\": {\"version\": {}}}\r\n").await.unwrap();
            let mut buffer = [0; 4096];
            for answer in [
                "{\"return\": {}, \"id\": 0}\r\n",
                "{\"timestamp\": {}, \"event\": \"STOP\"}\r\n{\"event\": \"BLOCK_IO_ERROR\", \"data\": {\"device\": \"disk1\", \
                 \"operation\": \"write\", \"action\": \"report\", \"reason\": \"No space left on device\"}}\r\n\
                 {\"return\": {\"a\": 1}, \"id\": 1}\r\n",
                "{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n",
            ] {
                assert!(qemu.read(&mut buffer).await.unwrap() > 0);
                qemu.write_all(answer.as_bytes()).await.unwrap();
            }
            qemu.write_all(b"{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\r\n")
                .await
                .unwrap();
        });
        let (fault, mut faults) = mpsc::unbounded_channel();
        let qmp = Qmp::open(ours, Size::from_mib(64), move |device, what| {
            fault.send((device.to_owned(), what)).unwrap();
        })
        .await
        .unwrap();
        assert_eq!(qmp.execute("stop", &json!({})).await.unwrap(), json!({ "a": 1 }));
        let error = qmp.execute("x", &json!({})).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused `x`: no");
        play.await.unwrap();
        qmp.closed().await;
        assert_eq!(qmp.shutdown_reason().as_deref(), Some("guest-reset"));
        assert!(qmp.execute("stop", &json!({})).await.is_err());
        assert_eq!(faults.recv().await, Some(("disk1".into(), DiskFault::NoSpace)));
        assert_eq!(faults.recv().await, None);
    }

    #[test]
    fn a_full_host_disk_is_told_from_a_broken_one() {
        for (data, fault) in [
            (json!({ "nospace": true }), DiskFault::NoSpace),
            (json!({ "nospace": false, "reason": "x" }), DiskFault::Io),
            (json!({ "reason": "No space left on device" }), DiskFault::NoSpace),
            (json!({ "reason": "Disk quota exceeded" }), DiskFault::NoSpace),
            (json!({ "reason": "Input/output error" }), DiskFault::Io),
            (json!({}), DiskFault::Io),
        ] {
            assert_eq!(disk_fault(&data), fault, "{data}");
        }
    }

    #[tokio::test]
    async fn the_balloon_is_told_what_is_left_and_heard_in_pages() {
        let (ours, qemu) = UnixStream::pair().unwrap();
        let (read, mut write) = qemu.into_split();
        let mut lines = BufReader::new(read).lines();
        write.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        let play = tokio::spawn(async move {
            lines.next_line().await.unwrap();
            write.write_all(b"{\"return\": {}, \"id\": 0}\n").await.unwrap();
            let asked: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
            assert_eq!(asked["execute"], "balloon");
            assert_eq!(asked["arguments"]["value"], 48 << 20);
            write
                .write_all(
                    b"{\"event\": \"BALLOON_CHANGE\", \"data\": {\"actual\": 58720256}}\n{\"return\": {}, \"id\": 1}\n",
                )
                .await
                .unwrap();
            (lines, write)
        });
        let qmp = Qmp::open(ours, Size::from_mib(64), |_, _| {}).await.unwrap();
        let mut ballooned = qmp.ballooned();
        qmp.set_ballooned(4096).await.unwrap();
        assert_eq!(*ballooned.borrow_and_update(), 2048);

        // What no guest can have handed over counts as everything, and nothing as nothing.
        let (_lines, mut write) = play.await.unwrap();
        for (left, pages) in [("-4096", 16384), ("99999999999", 0)] {
            let event = format!("{{\"event\": \"BALLOON_CHANGE\", \"data\": {{\"actual\": {left}}}}}\n");
            write.write_all(event.as_bytes()).await.unwrap();
            ballooned.changed().await.unwrap();
            assert_eq!(*ballooned.borrow_and_update(), pages);
        }
    }

    #[tokio::test]
    async fn a_command_that_qemu_does_not_live_to_answer_ends() {
        let (ours, qemu) = UnixStream::pair().unwrap();
        let (read, mut write) = qemu.into_split();
        let mut lines = BufReader::new(read).lines();
        let play = tokio::spawn(async move {
            write.write_all(b"{\"QMP\": {}}\n").await.unwrap();
            lines.next_line().await.unwrap();
            write.write_all(b"{\"return\": {}, \"id\": 0}\n").await.unwrap();
            lines.next_line().await.unwrap();
        });
        let qmp = Qmp::open(ours, Size::from_mib(64), |_, _| {}).await.unwrap();
        assert!(matches!(qmp.set_ballooned(1).await, Err(QmpError::Gone)));
        play.await.unwrap();
    }

    #[tokio::test]
    async fn nonsense_is_an_error() {
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        qemu.write_all(b"hello\n").await.unwrap();
        assert!(matches!(
            Qmp::open(ours, Size::from_mib(64), |_, _| {}).await,
            Err(QmpError::Protocol(_))
        ));
    }
}
