//! A Unix stream that hyper drives while others may look at it: wait for its end, shut one direction, take it over.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use super::exchange::Exchange;
use super::tap::Tap;

/// What the proxy wants to know of what hyper does with a stream.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    /// Gets a copy of what is read.
    pub(super) tap: Option<Arc<Tap>>,
    /// Is told of writes and flushes.
    pub(super) exchange: Option<Arc<Exchange>>,
}

/// hyper's handle on a stream.
#[derive(Debug)]
pub(super) struct SocketIo {
    stream: Arc<UnixStream>,
    watchers: Watchers,
    unflushed: Arc<AtomicBool>,
    /// The other end reads no more. What is written is dropped from then on, and what it still has to say can be read.
    deaf: bool,
}

impl SocketIo {
    pub(super) fn new(stream: Arc<UnixStream>, watchers: Watchers) -> Self {
        SocketIo {
            stream,
            watchers,
            unflushed: Arc::default(),
            deaf: false,
        }
    }

    /// True while hyper holds bytes that it wanted to write and could not yet.
    pub(super) fn unflushed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.unflushed)
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        length: usize,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.unflushed.store(true, Ordering::Release);
        if let Some(exchange) = &self.watchers.exchange {
            exchange.writing();
        }
        if self.deaf {
            return Poll::Ready(Ok(length));
        }
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A server may answer and close before it has read all of a request (an upload it refuses). Its answer is
                // still there to be read; an error here would make hyper throw it away.
                Err(error) if self.watchers.exchange.is_some() && is_hangup(&error) => {
                    self.deaf = true;
                    return Poll::Ready(Ok(length));
                }
                result => return Poll::Ready(result),
            }
        }
    }
}

/// Whether a write failed because the other end reads no more.
fn is_hangup(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

impl AsyncRead for SocketIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            ready!(this.stream.poll_read_ready(cx))?;
            let before = buffer.filled().len();
            match this
                .stream
                .try_io(Interest::READABLE, || read_into(&this.stream, buffer))
            {
                Ok(()) => {
                    if let Some(tap) = &this.watchers.tap {
                        tap.record(&buffer.filled()[before..]);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// Reads once into the unfilled part of `buffer` without clearing it first, which for streams of gigabytes is half the work.
fn read_into(stream: &UnixStream, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
    // SAFETY: the slice is only ever written to, by the kernel, so nothing initialised becomes uninitialised.
    let unfilled = unsafe { buffer.unfilled_mut() };
    let (read, _) = rustix::io::read(stream, unfilled)?;
    let length = read.len();
    // SAFETY: `read` is the initialised beginning of that very slice, as rustix promises.
    unsafe { buffer.assume_init(length) };
    buffer.advance(length);
    Ok(())
}

impl AsyncWrite for SocketIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_write_with(cx, data.len(), |stream| stream.try_write(data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        self.get_mut()
            .poll_write_with(cx, length, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper flushes when it has written all it holds: that is what the watchers want to know.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unflushed.store(false, Ordering::Release);
        if let Some(exchange) = &self.watchers.exchange {
            exchange.flushed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        shut(&self.stream, Shutdown::Write);
        Poll::Ready(Ok(()))
    }
}

/// Shuts directions of a stream. That it may be shut or gone already is no news.
pub(super) fn shut(stream: &UnixStream, how: Shutdown) {
    let how = match how {
        Shutdown::Read => rustix::net::Shutdown::Read,
        Shutdown::Write => rustix::net::Shutdown::Write,
        Shutdown::Both => rustix::net::Shutdown::Both,
    };
    if let Err(error) = rustix::net::shutdown(stream, how)
        && error != rustix::io::Errno::NOTCONN
    {
        tracing::debug!(%error, "shutdown of a stream failed");
    }
}

/// Waits until the other end of `stream` will send no more: it shut its sending side, or is gone. What it sent before may
/// still be unread. Any number of tasks may wait, whoever reads.
pub(super) async fn sender_gone(stream: &UnixStream) -> io::Result<()> {
    // "Priority" data does not exist on Unix stream sockets; this interest stands for "read side closed" alone, which
    // unlike readability is not over when there is unread data.
    stream.ready(Interest::PRIORITY).await.map(|_| ())
}

/// Waits until the other end of `stream` is gone altogether, or both of its directions are shut.
pub(super) async fn hung_up(stream: &UnixStream) -> io::Result<()> {
    sender_gone(stream).await?;
    if has_hung_up(stream)? {
        return Ok(());
    }
    // Only half of it is shut. tokio has no interest that means the other half alone, but a registration of its own that
    // asks for nothing else than priority data is told of a hang-up and of nothing besides.
    let copy: OwnedFd = rustix::io::fcntl_dupfd_cloexec(stream, 0)?;
    // SAFETY: an owned descriptor always names the same open file, and closes it only when it is dropped.
    let watch = unsafe { AsyncFd::register_with_interest(copy, Interest::PRIORITY) }?;
    watch.ready(Interest::PRIORITY).await.map(|_| ())
}

fn has_hung_up(stream: &UnixStream) -> io::Result<bool> {
    let mut fds = [rustix::event::PollFd::new(
        stream,
        rustix::event::PollFlags::empty(),
    )];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&now)))?;
    Ok(fds[0]
        .revents()
        .intersects(rustix::event::PollFlags::HUP | rustix::event::PollFlags::ERR))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Whether `future` is still waiting after every other task had its turn.
    async fn waits(future: impl Future<Output = io::Result<()>>) -> bool {
        tokio::time::timeout(Duration::from_millis(50), future)
            .await
            .is_err()
    }

    #[tokio::test]
    async fn unread_data_does_not_look_like_the_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"data").await.unwrap();
        ours.readable().await.unwrap();
        assert!(waits(sender_gone(&ours)).await);
        theirs.shutdown().await.unwrap();
        sender_gone(&ours).await.unwrap();
        assert!(waits(hung_up(&ours)).await, "only one half is shut");
        drop(theirs);
        hung_up(&ours).await.unwrap();
    }

    #[tokio::test]
    async fn both_halves_shut_one_after_the_other_is_a_hang_up() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        shut(&theirs, Shutdown::Write);
        shut(&ours, Shutdown::Write);
        hung_up(&ours).await.unwrap();
        drop(theirs);
    }

    #[tokio::test]
    async fn an_answer_can_be_read_though_the_other_end_no_longer_listens() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"answer").await.unwrap();
        drop(theirs);
        let watchers = Watchers {
            tap: None,
            exchange: Some(Arc::default()),
        };
        let mut io = SocketIo::new(Arc::new(ours), watchers);
        io.write_all(&[0; 100_000]).await.unwrap();
        let mut answer = String::new();
        io.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    }
}
