//! One connection to dockerd, which serves one client connection.

use std::net::Shutdown;
use std::sync::Arc;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::body::RequestBody;
use super::exchange::Exchange;
use super::limits;
use super::socket_io::{SocketIo, Watchers, shut};
use super::tap::Tap;

/// Stops the task that drives a connection.
#[derive(Debug, Clone)]
pub(super) struct UpstreamTask(AbortHandle);

impl UpstreamTask {
    pub(super) fn abort(&self) {
        self.0.abort();
    }
}

/// A connection to dockerd. Dropping it closes the stream.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) sender: SendRequest<RequestBody>,
    pub(super) tap: Arc<Tap>,
    stream: Arc<UnixStream>,
    task: UpstreamTask,
    /// Turns true when the connection is closed.
    closed: watch::Receiver<bool>,
    /// The client's end of sending was passed on: no further request can be sent.
    shut: bool,
}

impl Upstream {
    /// Starts HTTP on `stream`.
    pub(super) async fn open(stream: UnixStream, exchange: Arc<Exchange>) -> hyper::Result<Self> {
        let stream = Arc::new(stream);
        let tap = Arc::new(Tap::default());
        let watchers = Watchers {
            tap: Some(Arc::clone(&tap)),
            exchange: Some(exchange),
        };
        let io = TokioIo::new(SocketIo::new(Arc::clone(&stream), watchers));
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .max_headers(limits::HEADERS)
            .max_buf_size(limits::HEAD_BYTES)
            .handshake(io)
            .await?;
        let (closed_tx, closed) = watch::channel(false);
        let task = tokio::spawn(async move {
            // Dropped with the task, however it ends, and after the connection.
            let _closed = NotifyClosed(closed_tx);
            if let Err(error) = connection.await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the connection to dockerd broke"
                );
            }
        });
        Ok(Upstream {
            sender,
            tap,
            stream,
            task: UpstreamTask(task.abort_handle()),
            closed,
            shut: false,
        })
    }

    /// Whether another request can be sent.
    pub(super) fn usable(&self) -> bool {
        !self.shut && !self.sender.is_closed()
    }

    /// Whether the client's end of sending was passed on.
    pub(super) fn is_shut(&self) -> bool {
        self.shut
    }

    pub(super) fn task(&self) -> UpstreamTask {
        self.task.clone()
    }

    pub(super) fn closed(&self) -> watch::Receiver<bool> {
        self.closed.clone()
    }

    /// Tells dockerd that the client sends no more.
    pub(super) fn shut_sending(&mut self) {
        if !self.shut {
            self.shut = true;
            shut(&self.stream, Shutdown::Write);
        }
    }

    /// Takes the stream out of hyper's hands. What hyper has read of it since the tap was armed is in the tap.
    pub(super) async fn into_stream(mut self) -> Arc<UnixStream> {
        self.task.abort();
        // An error would mean that the sender is gone, which it is when it has said "closed".
        let _ = self.closed.wait_for(|closed| *closed).await;
        Arc::clone(&self.stream)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct NotifyClosed(watch::Sender<bool>);

impl Drop for NotifyClosed {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}
