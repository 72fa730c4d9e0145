//! Between the machine's network device and passt.
//!
//! The device connects here once and keeps its connection; passt's end is changed behind it. What the guest sends while
//! there is no passt is dropped, as on a cable that leads nowhere. Only whole frames are passed on, so that a passt that
//! dies within one leaves no trace in the stream.

use std::io;
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::frames::{BadFrame, Frames};
use crate::stream::write_all;

/// passt's end at the moment.
pub(super) type Uplink = watch::Sender<Option<Arc<UnixStream>>>;

/// Serves one network device after the other (a machine has one) until dropped or the listener fails.
pub(super) async fn serve(listener: UnixListener, uplink: Arc<Uplink>) -> io::Error {
    loop {
        let device = match listener.accept().await {
            Ok((device, _)) => device,
            Err(error) => return error,
        };
        let ended = tokio::select! {
            ended = from_device(&device, &uplink) => ended,
            ended = to_device(&device, &uplink) => ended,
        };
        match ended {
            Ok(()) => tracing::debug!("the machine's network device disconnected"),
            Err(error) => tracing::warn!(%error, "the connection of the machine's network device broke"),
        }
    }
}

async fn from_device(device: &UnixStream, uplink: &Uplink) -> io::Result<()> {
    let mut frames = Frames::new();
    loop {
        if read(device, &mut frames).await? == 0 {
            return Ok(());
        }
        let whole = frames.whole().map_err(bad_frame)?;
        let length = whole.len();
        let passt = uplink.borrow().clone();
        if let Some(passt) = passt
            && let Err(error) = write_all(&passt, whole).await
        {
            tracing::debug!(%error, "passt takes no more frames");
            detach(uplink, &passt);
        }
        frames.consume(length);
    }
}

async fn to_device(device: &UnixStream, uplink: &Uplink) -> io::Result<()> {
    let mut changes = uplink.subscribe();
    loop {
        // The sender is borrowed, so it lives.
        let passt = match changes.wait_for(Option::is_some).await {
            Ok(passt) => passt.clone(),
            Err(_) => return Ok(()),
        };
        let Some(passt) = passt else { continue };
        let mut frames = Frames::new();
        loop {
            tokio::select! {
                result = read(&passt, &mut frames) => match result {
                    Ok(length) if length > 0 => {}
                    _ => {
                        detach(uplink, &passt);
                        break;
                    }
                },
                _ = changes.changed() => break,
            }
            match frames.whole() {
                Ok(whole) => {
                    let length = whole.len();
                    write_all(device, whole).await?;
                    frames.consume(length);
                }
                Err(error) => {
                    tracing::warn!(%error, "passt does not speak the protocol of stream network devices");
                    detach(uplink, &passt);
                    break;
                }
            }
        }
    }
}

/// Takes this passt away, unless there is another one already.
fn detach(uplink: &Uplink, passt: &Arc<UnixStream>) {
    uplink.send_if_modified(|current| {
        let same = current
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, passt));
        if same {
            *current = None;
        }
        same
    });
}

fn bad_frame(error: BadFrame) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

async fn read(from: &UnixStream, frames: &mut Frames) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match from.try_read(frames.space()) {
            Ok(length) => {
                frames.add(length);
                return Ok(length);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn frame(text: &str) -> Vec<u8> {
        let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    async fn expect(stream: &mut UnixStream, text: &str) {
        let mut bytes = vec![0; text.len() + 4];
        tokio::time::timeout(Duration::from_secs(30), stream.read_exact(&mut bytes))
            .await
            .expect("a frame should have come")
            .unwrap();
        assert_eq!(bytes, frame(text));
    }

    #[tokio::test]
    async fn passt_may_come_late_die_within_a_frame_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net");
        let listener = UnixListener::bind(&path).unwrap();
        let uplink = Arc::new(Uplink::new(None));
        let serving = tokio::spawn(serve(listener, Arc::clone(&uplink)));
        let mut device = UnixStream::connect(&path).await.unwrap();
        let attach = || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            uplink.send_replace(Some(Arc::new(ours)));
            theirs
        };

        let mut passt = attach();
        device.write_all(&frame("one")).await.unwrap();
        expect(&mut passt, "one").await;
        passt.write_all(&frame("two")).await.unwrap();
        expect(&mut device, "two").await;

        passt.write_all(&frame("cut short")[..7]).await.unwrap();
        drop(passt);
        uplink.subscribe().wait_for(Option::is_none).await.unwrap();
        device.write_all(&frame("into the void")).await.unwrap();
        // Half of a frame is with the relay when the new passt comes.
        let three = frame("three");
        device.write_all(&three[..5]).await.unwrap();
        // Both were taken in order, so the frame before the half one is gone when a frame is next seen.
        while !is_drained(&device) {
            tokio::task::yield_now().await;
        }
        let mut passt = attach();
        device.write_all(&three[5..]).await.unwrap();
        expect(&mut passt, "three").await;
        passt.write_all(&frame("four")).await.unwrap();
        expect(&mut device, "four").await;
        serving.abort();
    }

    /// Whether the other end has read everything that was written to `stream`.
    fn is_drained(stream: &UnixStream) -> bool {
        use std::os::fd::AsRawFd;
        let mut queued: libc::c_int = 0;
        // SAFETY: TIOCOUTQ writes one int to the address it is given.
        let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &mut queued) };
        result == 0 && queued == 0
    }

    #[tokio::test]
    async fn nonsense_from_the_device_ends_its_connection_and_not_the_relay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net");
        let listener = UnixListener::bind(&path).unwrap();
        let uplink = Arc::new(Uplink::new(None));
        let serving = tokio::spawn(serve(listener, uplink));
        let mut device = UnixStream::connect(&path).await.unwrap();
        device.write_all(&[0xff; 8]).await.unwrap();
        assert_eq!(device.read(&mut [0]).await.unwrap(), 0);
        UnixStream::connect(&path).await.unwrap();
        assert!(!serving.is_finished());
        serving.abort();
    }
}
