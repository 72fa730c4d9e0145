//! Raw bytes both ways between two streams, each direction with an end of its own.
//!
//! Each side sees what it would see if the two were one connection: an end of sending is passed on when everything
//! before it has been, a side that stops listening makes the other's writes fail, and a side that is gone ends both.

use std::io;
use std::net::Shutdown;

use bytes::Bytes;
use tokio::net::UnixStream;

use super::socket_io::{hung_up, shut};
use crate::stream::write_all;

/// How much is read at once, in bytes.
const CHUNK: usize = 64 * 1024;

/// One side: its stream, and what was already read from it.
#[derive(Debug)]
pub(super) struct Side<'a> {
    pub(super) stream: &'a UnixStream,
    pub(super) read_ahead: Bytes,
}

/// Carries bytes both ways until both directions have ended or one side is gone. The caller closes the streams.
pub(super) async fn splice(client: Side<'_>, server: Side<'_>) {
    // A side that has said all it had to say and is gone altogether has no use for what is still coming. When both
    // directions have ended, both sides count as gone, so this also covers the orderly end.
    tokio::select! {
        () = one_way_then_gone(&client, server.stream) => {}
        () = one_way_then_gone(&server, client.stream) => {}
    }
}

async fn one_way_then_gone(from: &Side<'_>, to: &UnixStream) {
    one_way(from, to).await;
    if let Err(error) = hung_up(from.stream).await {
        tracing::debug!(%error, "could not wait for the end of a raw Docker stream");
    }
}

/// Carries bytes from one stream to the other until the first sends no more, or the other takes no more.
async fn one_way(from: &Side<'_>, to: &UnixStream) {
    match copy(from, to).await {
        Ok(()) => shut(to, Shutdown::Write),
        Err(End::Source(error)) => {
            tracing::debug!(%error, "a raw Docker stream broke");
            shut(to, Shutdown::Both);
            shut(from.stream, Shutdown::Both);
        }
        Err(End::Sink(error)) => {
            tracing::debug!(%error, "a raw Docker stream is no longer read");
            shut(from.stream, Shutdown::Read);
        }
    }
}

enum End {
    Source(io::Error),
    Sink(io::Error),
}

async fn copy(from: &Side<'_>, to: &UnixStream) -> Result<(), End> {
    write_all(to, &from.read_ahead).await.map_err(End::Sink)?;
    loop {
        from.stream.readable().await.map_err(End::Source)?;
        // Allocated only while there is something to carry: an idle stream holds no buffer.
        let mut buffer = Vec::with_capacity(CHUNK);
        loop {
            buffer.clear();
            match from.stream.try_read_buf(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => write_all(to, &buffer).await.map_err(End::Sink)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(End::Source(error)),
            }
        }
    }
}
