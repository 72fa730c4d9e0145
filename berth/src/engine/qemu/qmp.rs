//! QEMU's control channel: JSON lines, one answer to each command, events in between.

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};

use crate::engine::disk_fault::DiskFault;

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
}

#[derive(Debug, Deserialize)]
struct ErrorBody {
    desc: String,
}

/// A connection to a QEMU that has greeted.
#[derive(Debug)]
pub(super) struct Qmp {
    write: OwnedWriteHalf,
    answers: mpsc::Receiver<Result<Value, String>>,
    shutdown: watch::Receiver<Option<String>>,
}

impl Qmp {
    /// Waits for the greeting and leaves negotiation mode. `on_fault` is called with the name of a drive and what failed,
    /// whenever a request of the guest's failed on the host.
    pub(super) async fn open(
        stream: UnixStream,
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
        let (answers_tx, answers) = mpsc::channel(1);
        let (shutdown_tx, shutdown) = watch::channel(None);
        tokio::spawn(listen(read, answers_tx, shutdown_tx, on_fault));
        let mut qmp = Qmp {
            write,
            answers,
            shutdown,
        };
        qmp.execute("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// Executes a command without arguments.
    async fn execute(&mut self, command: &str) -> Result<Value, QmpError> {
        let line = json!({ "execute": command }).to_string() + "\n";
        self.write.write_all(line.as_bytes()).await?;
        match self.answers.recv().await {
            Some(Ok(value)) => Ok(value),
            Some(Err(reason)) => Err(QmpError::Refused {
                command: command.to_owned(),
                reason,
            }),
            None => Err(QmpError::Gone),
        }
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

async fn listen(
    mut read: BufReader<OwnedReadHalf>,
    answers: mpsc::Sender<Result<Value, String>>,
    shutdown: watch::Sender<Option<String>>,
    on_fault: impl Fn(&str, DiskFault),
) {
    loop {
        let message = match next(&mut read).await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "QEMU's control channel ended"
                );
                return;
            }
        };
        if let Some(event) = message.event {
            tracing::debug!(event, data = %message.data, "qemu");
            if event == "SHUTDOWN" {
                let reason = message.data["reason"].as_str().unwrap_or("unknown").to_owned();
                shutdown.send_replace(Some(reason));
            } else if event == "BLOCK_IO_ERROR" {
                on_fault(
                    message.data["device"].as_str().unwrap_or_default(),
                    disk_fault(&message.data),
                );
            }
        } else if let Some(error) = message.error {
            // Whoever asked may have given up.
            let _ = answers.send(Err(error.desc)).await;
        } else {
            let _ = answers.send(Ok(message.result.unwrap_or_default())).await;
        }
    }
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
    use super::*;

    #[tokio::test]
    async fn answers_errors_and_events_are_told_apart() {
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        let play = tokio::spawn(async move {
            qemu.write_all(b"{\"QMP\": {\"version\": {}}}\r\n").await.unwrap();
            let mut buffer = [0; 4096];
            for answer in [
                "{\"return\": {}}\r\n",
                "{\"timestamp\": {}, \"event\": \"STOP\"}\r\n{\"event\": \"BLOCK_IO_ERROR\", \"data\": {\"device\": \"disk1\", \
                 \"operation\": \"write\", \"action\": \"report\", \"reason\": \"No space left on device\"}}\r\n\
                 {\"return\": {\"a\": 1}}\r\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n",
            ] {
                assert!(qemu.read(&mut buffer).await.unwrap() > 0);
                qemu.write_all(answer.as_bytes()).await.unwrap();
            }
            qemu.write_all(b"{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\r\n")
                .await
                .unwrap();
        });
        let (fault, mut faults) = mpsc::unbounded_channel();
        let mut qmp = Qmp::open(ours, move |device, what| {
            fault.send((device.to_owned(), what)).unwrap();
        })
        .await
        .unwrap();
        assert_eq!(qmp.execute("stop").await.unwrap(), json!({ "a": 1 }));
        let error = qmp.execute("x").await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused `x`: no");
        play.await.unwrap();
        qmp.closed().await;
        assert_eq!(qmp.shutdown_reason().as_deref(), Some("guest-reset"));
        assert!(qmp.execute("stop").await.is_err());
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
    async fn nonsense_is_an_error() {
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        qemu.write_all(b"hello\n").await.unwrap();
        assert!(matches!(
            Qmp::open(ours, |_, _| {}).await,
            Err(QmpError::Protocol(_))
        ));
    }
}
