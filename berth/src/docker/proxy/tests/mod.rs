//! The proxy between real sockets: a scripted client on one end, a scripted dockerd on the other.

mod barrier;
mod binds;
mod bodies;
mod ends;
mod heads;
mod raw_streams;

use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::guest::DialError;

/// A proxy, and the listener of a dockerd that the test plays.
struct Setup {
    dockerd: UnixListener,
    socket: PathBuf,
    stop: watch::Sender<bool>,
    serving: JoinHandle<Result<(), ProxyError>>,
    _dir: TempDir,
}

impl Setup {
    fn new() -> Self {
        Self::routed(Router::default())
    }

    /// A proxy with interceptors.
    fn routed(router: Router) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let guest_socket = dir.path().join("guest.sock");
        let dockerd = UnixListener::bind(&guest_socket).unwrap();
        let dial = GuestDial::new(move |port| {
            let guest_socket = guest_socket.clone();
            async move {
                assert_eq!(port, protocol::ports::DOCKER);
                std::os::unix::net::UnixStream::connect(guest_socket).map_err(DialError::Io)
            }
            .boxed()
        });
        Self::with_router(dir, dockerd, dial, router)
    }

    fn with(dir: TempDir, dockerd: UnixListener, dial: GuestDial) -> Self {
        Self::with_router(dir, dockerd, dial, Router::default())
    }

    fn with_router(dir: TempDir, dockerd: UnixListener, dial: GuestDial, router: Router) -> Self {
        let socket = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(serve(listener, dial, router, stopped));
        Setup {
            dockerd,
            socket,
            stop,
            serving,
            _dir: dir,
        }
    }

    async fn client(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// Sends `request` from a new client; dockerd's end of it once it has arrived whole, and the client's.
    async fn request(&self, request: &str) -> (UnixStream, UnixStream) {
        let mut client = self.client().await;
        client.write_all(request.as_bytes()).await.unwrap();
        let (mut dockerd, _) = bounded(self.dockerd.accept()).await.unwrap();
        assert_eq!(read_exactly(&mut dockerd, request.len()).await, request);
        (client, dockerd)
    }
}

/// Reads that many bytes.
async fn read_exactly(stream: &mut UnixStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    bounded(stream.read_exact(&mut bytes)).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Reads until the other end sends no more.
async fn read_to_end(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    bounded(stream.read_to_end(&mut bytes)).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A test that waits for what never comes fails instead of hanging. Nothing measures time by it.
async fn bounded<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .expect("what the test waits for did not happen")
}

async fn send(stream: &mut UnixStream, bytes: &str) {
    bounded(stream.write_all(bytes.as_bytes())).await.unwrap();
}
