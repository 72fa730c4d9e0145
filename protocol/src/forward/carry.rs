//! A connection carried over a stream of pieces, each direction with an end of its own.

use std::io;
use std::pin::pin;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};

use super::piece::{Piece, PieceBuffer, PieceReader, write_end};

/// Bytes of a new connection's buffer: most carry a few requests.
const FIRST_BUFFER: usize = 8 * 1024;

/// How a connection came to its end.
#[derive(Debug)]
pub enum CarryEnd {
    /// Both sides have said all they had to say.
    Orderly,
    /// The connection on this side broke. Dropping the stream tells the other side.
    LocalBroke(io::Error),
    /// The connection on the other side broke, or the other side is gone: this one is to be reset, not closed.
    RemoteBroke(io::Error),
}

enum Broke {
    Local(io::Error),
    Remote(io::Error),
}

/// Carries the bytes of `local`, a connection, over `remote`, a stream of pieces, until both directions have ended or
/// either breaks. The caller closes both: `local` with a reset when the other side broke, and `remote` in any case, which
/// the other side takes for an end only if it was orderly.
pub async fn carry(
    local: impl AsyncRead + AsyncWrite + Unpin,
    remote: impl AsyncRead + AsyncWrite + Unpin,
) -> CarryEnd {
    let (from_local, to_local) = split(local);
    let (from_remote, to_remote) = split(remote);
    let mut out = pin!(send(from_local, to_remote));
    let mut back = pin!(receive(PieceReader::new(from_remote), to_local));
    let (mut sending, mut receiving) = (true, true);
    while sending || receiving {
        let ended = tokio::select! {
            ended = &mut out, if sending => { sending = false; ended }
            ended = &mut back, if receiving => { receiving = false; ended }
        };
        match ended {
            Ok(()) => {}
            Err(Broke::Local(error)) => return CarryEnd::LocalBroke(error),
            Err(Broke::Remote(error)) => return CarryEnd::RemoteBroke(error),
        }
    }
    CarryEnd::Orderly
}

async fn send(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> Result<(), Broke> {
    let mut buffer = PieceBuffer::new(FIRST_BUFFER);
    loop {
        let length = from.read(buffer.room()).await.map_err(Broke::Local)?;
        if length == 0 {
            return write_end(&mut to).await.map_err(Broke::Remote);
        }
        buffer.send(&mut to, length).await.map_err(Broke::Remote)?;
        if length == buffer.room().len() {
            buffer.grow();
        }
    }
}

async fn receive(
    mut from: PieceReader<impl AsyncRead + Unpin>,
    mut to: impl AsyncWrite + Unpin,
) -> Result<(), Broke> {
    loop {
        match from.next().await.map_err(Broke::Remote)? {
            Piece::Data(data) => to.write_all(data).await.map_err(Broke::Local)?,
            Piece::End => return to.shutdown().await.map_err(Broke::Local),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;

    /// A connection over two carriers: its two ends, and the carriers.
    fn line() -> (
        DuplexStream,
        DuplexStream,
        JoinHandle<CarryEnd>,
        JoinHandle<CarryEnd>,
    ) {
        let (near, near_end) = duplex(4096);
        let (far, far_end) = duplex(4096);
        let (a, b) = duplex(10_000);
        (
            near,
            far,
            tokio::spawn(carry(near_end, a)),
            tokio::spawn(carry(far_end, b)),
        )
    }

    fn noise(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * i / 7 % 251) as u8).collect()
    }

    #[tokio::test]
    async fn megabytes_pass_both_ways_at_once_and_each_way_ends_by_itself() {
        let (near, far, a, b) = line();
        let exchange = |stream: DuplexStream, send: Vec<u8>| {
            tokio::spawn(async move {
                let (mut read, mut write) = split(stream);
                let sending = tokio::spawn(async move {
                    write.write_all(&send).await.unwrap();
                    write.shutdown().await.unwrap();
                });
                let mut got = Vec::new();
                read.read_to_end(&mut got).await.unwrap();
                sending.await.unwrap();
                got
            })
        };
        let (up, down) = (noise(3_000_001), noise(1_000_003));
        let at_near = exchange(near, up.clone());
        let at_far = exchange(far, down.clone());
        assert!(at_far.await.unwrap() == up);
        assert!(at_near.await.unwrap() == down);
        assert!(matches!(a.await.unwrap(), CarryEnd::Orderly));
        assert!(matches!(b.await.unwrap(), CarryEnd::Orderly));
    }

    #[tokio::test]
    async fn a_half_close_is_passed_on_and_the_answer_still_comes() {
        let (mut near, mut far, a, _b) = line();
        near.write_all(b"request").await.unwrap();
        near.shutdown().await.unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"request");
        far.write_all(b"answer").await.unwrap();
        drop(far);
        got.clear();
        near.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer");
        assert!(matches!(a.await.unwrap(), CarryEnd::Orderly));
    }

    #[tokio::test]
    async fn a_stream_that_is_cut_is_no_end() {
        let (mut near, near_end) = duplex(4096);
        let (a, mut b) = duplex(4096);
        let carrying = tokio::spawn(carry(near_end, a));
        b.write_all(&[3, 0, 0, 0, b'a', b'b', b'c']).await.unwrap();
        let mut got = [0; 3];
        near.read_exact(&mut got).await.unwrap();
        drop(b);
        assert!(matches!(carrying.await.unwrap(), CarryEnd::RemoteBroke(_)));
    }

    #[tokio::test]
    async fn a_peer_that_takes_no_more_breaks_the_connection() {
        let (near, near_end) = duplex(64);
        let (a, mut b) = duplex(4096);
        drop(near);
        // The near side has ended, and its end is sent; what comes now has no taker.
        let carrying = tokio::spawn(carry(near_end, a));
        b.write_all(&[1, 0, 0, 0, b'x']).await.unwrap();
        assert!(matches!(carrying.await.unwrap(), CarryEnd::LocalBroke(_)));
    }
}
