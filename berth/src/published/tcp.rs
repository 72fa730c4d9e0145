//! A published TCP port: each connection becomes a stream to the guest.

use std::time::Duration;

use protocol::forward::{CarryEnd, carry};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::JoinSet;

use super::Carrier;
use crate::exit::chain;

/// How long connections may take to end when their port is published no more: what a container said last is on its way.
const LAST_BYTES: Duration = Duration::from_secs(5);
/// How long to wait when a connection cannot be accepted for want of descriptors: others must end first.
const SHORT_OF_DESCRIPTORS: Duration = Duration::from_millis(200);

/// Serves `listener` until `stop` says so, then frees the port and tells `freed`.
pub(super) async fn serve(
    listener: TcpListener,
    carrier: Carrier,
    mut stop: oneshot::Receiver<()>,
    freed: oneshot::Sender<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // The sender's end counts too.
            _ = &mut stop => break,
            accepted = accept(&listener, &carrier) => {
                let Some((permit, client)) = accepted else { continue };
                connections.spawn(connection(client, carrier.clone(), permit));
            }
            Some(ended) = connections.join_next() => if let Err(error) = ended {
                tracing::error!(%error, "a connection to a published port broke");
            }
        }
    }
    drop(listener);
    // Nobody may be waiting.
    let _ = freed.send(());
    let ending = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_BYTES, ending).await.is_err() {
        // The rest is reset: their container is gone, and its kernel's word with it.
        connections.shutdown().await;
    }
}

/// The next connection, once there is room for it. Nothing is lost when the future is dropped before it accepts.
async fn accept(listener: &TcpListener, carrier: &Carrier) -> Option<(OwnedSemaphorePermit, TcpStream)> {
    // Never closed.
    let permit = carrier.streams.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((client, _)) => Some((permit, client)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection to a published port");
            tokio::time::sleep(SHORT_OF_DESCRIPTORS).await;
            None
        }
    }
}

/// A client's connection. Dropped before its orderly end it is reset, so that nobody takes a part for the whole.
struct Client {
    stream: TcpStream,
    orderly: bool,
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.orderly {
            // It is gone, then.
            let _ = self.stream.set_zero_linger();
        }
    }
}

async fn connection(stream: TcpStream, carrier: Carrier, _permit: OwnedSemaphorePermit) {
    let _counted = carrier.count();
    let Ok(address) = stream.peer_addr() else {
        // Gone before it was accepted.
        return;
    };
    // What comes in pieces goes on in pieces.
    let _ = stream.set_nodelay(true);
    let mut client = Client {
        stream,
        orderly: false,
    };
    let guest = match carrier.open(address).await {
        Ok(guest) => guest,
        Err(error) => {
            tracing::warn!("a connection to a published port: {}", chain(&error.into()));
            return;
        }
    };
    match carry(&mut client.stream, guest).await {
        CarryEnd::Orderly => client.orderly = true,
        CarryEnd::LocalBroke(error) => tracing::debug!(%error, "a client of a published port broke off"),
        CarryEnd::RemoteBroke(error) => tracing::debug!(%error, "a container broke a connection off"),
    }
}
