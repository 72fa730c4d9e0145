//! Learning that the other side of a stream is gone altogether, also while there is nothing to read or write.
//!
//! A read's end only says that the other side has ended its half. A follower of a silent log would stay for ever if
//! nothing told it that nobody listens any more; the kernel does, with EPOLLHUP.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

use crate::async_fd;

/// A watch on one stream.
#[derive(Debug)]
pub(super) struct HangUp(AsyncFd<OwnedFd>);

impl HangUp {
    /// Begins to watch. The watch holds the stream open; drop it with the stream.
    pub(super) fn watch(stream: &impl AsFd) -> io::Result<HangUp> {
        // A duplicate, because a descriptor can be registered only once. Of the interests, priority data never comes on
        // these streams, so that nothing wakes this watch but the hang-up, which is always reported.
        let fd = stream.as_fd().try_clone_to_owned()?;
        async_fd::register(fd, Interest::PRIORITY).map(HangUp)
    }

    /// Waits until both halves of the stream are closed. Errors of the watch count as that.
    pub(super) async fn wait(&self) {
        while let Ok(mut guard) = self.0.ready(Interest::PRIORITY).await {
            if guard.ready().is_read_closed() {
                return;
            }
            guard.clear_ready_matching(Ready::PRIORITY);
        }
    }
}

/// What became of sending, where it is no failure that the other side went away in the middle.
pub(super) fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_half_close_is_no_hang_up_and_a_close_is() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let watch = HangUp::watch(&near).unwrap();
        far.write_all(b"data").await.unwrap();
        far.shutdown().await.unwrap();
        assert!(timeout(Duration::from_millis(20), watch.wait()).await.is_err());
        drop(far);
        watch.wait().await;
    }
}
