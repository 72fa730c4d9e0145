//! Opening connections to the guest's vsock ports, whatever carries them.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::net::UnixStream;

type Connect = dyn Fn(u32) -> BoxFuture<'static, Result<StdUnixStream, DialError>> + Send + Sync;

/// Why a guest service could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nothing listens there, or the guest refused.
    #[error("the guest refused the connection to its port {0}")]
    Refused(u32),
    /// There is no guest to talk to (not booted, or gone).
    #[error("the guest is not there to answer on port {0}")]
    NoGuest(u32),
    /// The host could not make its end of the connection.
    #[error("the host's end of a connection to the guest could not be made")]
    Io(#[from] std::io::Error),
}

/// Connects to services in the guest. Cheap to clone.
#[derive(Clone)]
pub struct GuestDial(Arc<Connect>);

impl GuestDial {
    /// A dialler that connects with `connect`, which is given a vsock port.
    pub fn new<F>(connect: F) -> Self
    where
        F: Fn(u32) -> BoxFuture<'static, Result<StdUnixStream, DialError>> + Send + Sync + 'static,
    {
        GuestDial(Arc::new(connect))
    }

    /// Opens a stream to `port` of the guest (see [`protocol::ports`]). Half-close works both ways, as on any stream
    /// socket.
    pub async fn connect(&self, port: u32) -> Result<UnixStream, DialError> {
        let stream = (self.0)(port).await?;
        stream.set_nonblocking(true)?;
        Ok(UnixStream::from_std(stream)?)
    }
}

impl std::fmt::Debug for GuestDial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GuestDial")
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_dialled_stream_carries_bytes_and_a_half_close() {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let ours = std::sync::Mutex::new(Some(ours));
        let dial = GuestDial::new(move |port| {
            let stream = ours.lock().unwrap().take();
            async move { stream.ok_or(DialError::Refused(port)) }.boxed()
        });
        let mut host = dial.connect(7).await.unwrap();
        host.write_all(b"hello").await.unwrap();
        host.shutdown().await.unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut guest = UnixStream::from_std(theirs).unwrap();
        let mut got = Vec::new();
        guest.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"hello");
        assert!(matches!(dial.connect(7).await, Err(DialError::Refused(7))));
    }
}
