//! A stream that comes in pieces, and something to read it on.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};

/// Bytes that are there, a few at a time.
pub(super) struct Pieces<'a> {
    bytes: &'a [u8],
    piece: usize,
    /// How many were read.
    pub(super) taken: usize,
    /// Nothing is there the next time.
    pause: bool,
}

impl<'a> Pieces<'a> {
    /// All of `bytes`, at most `piece` of them at once.
    pub(super) fn new(bytes: &'a [u8], piece: usize) -> Pieces<'a> {
        Pieces {
            bytes,
            piece: piece.max(1),
            taken: 0,
            pause: false,
        }
    }
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.pause = !self.pause;
        if self.pause {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let count = self
            .piece
            .min(self.bytes.len() - self.taken)
            .min(buffer.remaining());
        buffer.put_slice(&self.bytes[self.taken..self.taken + count]);
        self.taken += count;
        Poll::Ready(Ok(()))
    }
}

/// Runs a future that only ever waits for [`Pieces`].
pub(super) fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}
