//! The PUBLISH service: the guest's published ports are told to the host, which answers. Who called last is the host.

use std::sync::Arc;

use protocol::forward::ToGuest;
use protocol::frame::{self, FrameError};
use tokio::io::split;

use super::Stream;
use crate::console::notice;
use crate::published::Ports;

/// Serves one connection until the host closes it or opens another.
pub(crate) async fn serve(stream: impl Stream, ports: Arc<Ports>) -> anyhow::Result<()> {
    let mut turn = ports.take_over();
    let (mut from_host, mut to_host) = split(stream);
    let telling = async {
        while let Some(message) = turn.messages.recv().await {
            frame::write_async(&mut to_host, &message).await?;
        }
        notice!("the host has a new connection for published ports");
        Ok::<(), FrameError>(())
    };
    let hearing = async {
        loop {
            match frame::read_async::<ToGuest>(&mut from_host).await {
                Ok(message) => ports.hear(message),
                Err(FrameError::Closed) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    };
    tokio::select! {
        told = telling => told?,
        heard = hearing => heard?,
    }
    Ok(())
}
