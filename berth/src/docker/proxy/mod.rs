//! The Docker socket: an HTTP proxy between the host's clients and dockerd in the guest.
//!
//! A client must not be able to tell it from dockerd's own socket. Heads keep their case and order, bodies stream both ways
//! with the pace of the slower side, and where dockerd ends HTTP on a connection (attach, exec, build sessions) the bytes
//! of its response and all that follow are passed on as they are, with each direction ending by itself.
//!
//! [`route`] takes aside the calls that berth must act on ([`super::binds`]). Everything else passes through.
//!
//! What HTTP leaves open, hyper decides: chunk boundaries, the whitespace around header values, and the place of a header
//! that stands more than once may change. None of it has a meaning in the Docker API. hyper also refuses (400) a query with
//! characters that RFC 3986 wants percent-encoded, such as a bare `"`, which Go's server would let pass.

mod answer;
mod body;
mod connection;
mod exchange;
mod limits;
pub mod route;
mod socket_io;
mod splice;
mod tap;
mod upstream;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use answer::error;
pub use body::{RequestBody, ResponseBody};
pub use connection::{ExchangeError, Session};

use crate::guest::GuestDial;
use connection::Shared;
use route::Router;

/// Why the proxy ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The listening socket failed for good.
    #[error("the Docker socket takes no more connections")]
    Accept(#[source] io::Error),
}

/// How long to wait before accepting again when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves Docker clients on `listener` until `stop` turns true or its sender is gone; then no new connection is taken, the
/// open ones are cut, and it returns. The calls that `router` knows are handled by it.
pub async fn serve(
    listener: UnixListener,
    guest: GuestDial,
    router: Router,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ProxyError> {
    let shared = Arc::new(Shared { guest, router });
    // Dropping the set ends the connections.
    let mut connections = JoinSet::new();
    let mut stopped = std::pin::pin!(async {
        // That the sender is gone means the same.
        let _ = stop.wait_for(|stop| *stop).await;
    });
    loop {
        tokio::select! {
            () = &mut stopped => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the handling of a Docker client's connection failed");
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    connections.spawn(connection::serve(client, Arc::clone(&shared)));
                }
                Err(error) if is_passing(&error) => {
                    tracing::warn!(%error, "could not take a Docker client's connection for now");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(error) => return Err(ProxyError::Accept(error)),
            },
        }
    }
    connections.shutdown().await;
    Ok(())
}

/// Whether a failure to accept concerns one client or this moment only.
fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::CONNABORTED
                | Errno::INTR
                | Errno::AGAIN
        )
    )
}
