//! What the guest serves to the host over vsock (`docs/seams.md`, "vsock"): one listener per port, one task per
//! connection.

pub(crate) mod control;
pub(crate) mod docker;
pub(crate) mod exec;
pub(crate) mod forward;
mod hang_up;
pub(crate) mod logs;
pub(crate) mod publish;
pub(crate) mod replay;

use std::fmt::Display;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use protocol::ports::HOST_CID;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

use crate::console::warning;

/// A connection: a vsock stream, or in tests one end of a pair of Unix sockets.
pub(crate) trait Stream: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static> Stream for T {}

/// Connections of the host that wait to be taken. Linux refuses more, and the host opens one for each connection to a
/// published port, which may come by the hundred.
const BACKLOG: i32 = 4096;

/// Begins to listen; connections queue from now on.
pub(crate) fn listen(port: u32) -> io::Result<VsockListener> {
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?;
    // It listens by now, for 128 of them. Listening once more changes that number and nothing else.
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Serves every connection from the host in a task of its own, for ever. A connection's end is nobody else's business:
/// its error, or its panic, goes to the console and the others go on.
pub(crate) async fn accept<F, E>(
    name: &'static str,
    listener: VsockListener,
    serve: impl Fn(VsockStream) -> F + Send,
) where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Display,
{
    loop {
        match listener.accept().await {
            // Only the host may command the guest. A process of the guest could reach us over vsock's loopback.
            Ok((_, peer)) if peer.cid() != HOST_CID => {
                warning!("a connection to {name} from vsock address {peer} was refused: it is not the host");
            }
            Ok((stream, _)) => {
                let serving = serve(stream);
                tokio::spawn(async move {
                    if let Err(e) = serving.await {
                        warning!("a connection to {name} failed: {e:#}");
                    }
                });
            }
            Err(e) => {
                warning!("cannot take a connection to {name}: {e}");
                // Out of descriptors or memory, most likely: others must end first.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}
