//! What the proxies that dockerd starts ask for, each on a connection of its own that it holds for as long as its port is
//! wanted.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::forward::Published;
use protocol::frame::{self, FrameError};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::Ports;
use crate::console::warning;

/// Where guest-init listens for them. Only the guest's root gets there.
pub(crate) const SOCKET: &str = "/run/berth/publish.sock";
/// What a proxy says when its port is not wanted any more, and what it is answered when the port is free.
pub(super) const CLOSE: u8 = b'c';

/// The answer to a proxy's [`Published`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Why the port cannot be had; none when it can.
    pub(super) refused: Option<String>,
}

/// Begins to listen on `socket` and serves every connection in a task of its own, for ever.
pub(crate) fn start(socket: &Path, ports: Arc<Ports>) -> io::Result<()> {
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let listener = UnixListener::bind(socket)?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let ports = ports.clone();
                    tokio::spawn(async move {
                        if let Err(error) = serve(stream, &ports).await {
                            warning!("a proxy of dockerd's cannot be served: {error}");
                        }
                    });
                }
                Err(error) => {
                    warning!("cannot take the call of a proxy of dockerd's: {error}");
                    // Out of descriptors or memory, most likely: others must end first.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    });
    Ok(())
}

async fn serve(mut stream: UnixStream, ports: &Ports) -> Result<(), FrameError> {
    let port: Published = frame::read_async(&mut stream).await?;
    match ports.publish(port).await {
        Ok(id) => {
            let held = hold(&mut stream).await;
            ports.close(id).await;
            if held.is_ok() {
                // A proxy that was killed does not wait for this.
                let _ = stream.write_all(&[CLOSE]).await;
            }
            held
        }
        Err(refused) => {
            let refused = Some(refused);
            frame::write_async(&mut stream, &Answer { refused }).await
        }
    }
}

/// Tells that the port is there and returns when it is not wanted any more.
async fn hold(stream: &mut UnixStream) -> Result<(), FrameError> {
    frame::write_async(stream, &Answer { refused: None }).await?;
    // The end of a proxy that was killed counts as well.
    let _ = stream.read_u8().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use protocol::forward::{PublishedBy, ToGuest, ToHost, Transport};

    use super::*;
    use crate::host_link::HostLink;

    fn port() -> Published {
        Published {
            transport: Transport::Udp,
            host: "0.0.0.0:80".parse().unwrap(),
            target: "172.17.0.2:80".parse().unwrap(),
            by: PublishedBy::Docker,
        }
    }

    #[tokio::test]
    async fn a_port_is_wanted_for_as_long_as_its_proxy_lives() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/publish.sock");
        let ports = Ports::new(HostLink::new().0);
        start(&socket, ports.clone()).unwrap();
        let mut host = ports.take_over();
        for orderly in [true, false] {
            let mut proxy = UnixStream::connect(&socket).await.unwrap();
            frame::write_async(&mut proxy, &port()).await.unwrap();
            let Some(ToHost::Listen { id, .. }) = host.messages.recv().await else {
                panic!("no port was asked for");
            };
            ports.hear(ToGuest::Answer { id, refused: None });
            let answer: Answer = frame::read_async(&mut proxy).await.unwrap();
            assert_eq!(answer.refused, None);
            if orderly {
                proxy.write_all(&[CLOSE]).await.unwrap();
                assert_eq!(host.messages.recv().await, Some(ToHost::Close { id }));
                ports.hear(ToGuest::Answer { id, refused: None });
                assert_eq!(proxy.read_u8().await.unwrap(), CLOSE);
            } else {
                drop(proxy);
                assert_eq!(host.messages.recv().await, Some(ToHost::Close { id }));
            }
        }
    }
}
