//! Learning that dockerd answers.
//!
//! dockerd opens its socket long before it is ready and answers requests only afterwards. So nothing is polled: inotify
//! tells that the socket is there, and one request for the version is then simply answered late.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::async_fd;

/// The longest answer read; the version is two kilobytes.
const MAX_ANSWER: u64 = 1 << 20;

/// How long to wait before asking again after dockerd took a request and closed without an answer.
const RETRY: Duration = Duration::from_millis(500);

/// How long one answer may take. The answer also asks containerd and runc, any of which may hang without dockerd
/// noticing; a request that is stuck must not keep the next one from being answered.
const ANSWER: Duration = Duration::from_secs(30);

/// How long to wait for a socket that is there to be listened on.
const NOT_YET: Duration = Duration::from_millis(20);

/// HTTP/1.0, so that the answer ends with the stream and is not chunked.
const REQUEST: &[u8] = b"GET /version HTTP/1.0\r\nHost: docker\r\n\r\n";

/// Waits until dockerd answers on `socket` and returns its version. Waits for ever when it never does; errors are those
/// of setting the watch up.
pub(super) async fn wait(socket: &Path) -> io::Result<String> {
    let directory = socket.parent().unwrap_or(Path::new("/"));
    // Before the first try, so that a socket made in between is not missed.
    let watch = Watch::new(directory)?;
    loop {
        let answer = timeout(ANSWER, ask(socket)).await;
        match answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(version) => return Ok(version),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                watch.created(socket.file_name().unwrap_or_default()).await?;
            }
            // Made and not yet listened on, which no event tells; or left behind, and about to be replaced.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => tokio::time::sleep(NOT_YET).await,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// Waits until somebody listens on `socket`, whose directory exists. Errors are those of setting the watch up.
pub(super) async fn wait_for_listener(socket: &Path) -> io::Result<()> {
    let watch = Watch::new(socket.parent().unwrap_or(Path::new("/")))?;
    loop {
        match UnixStream::connect(socket).await {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                watch.created(socket.file_name().unwrap_or_default()).await?;
            }
            // As in `wait`: made and not yet listened on, or left behind.
            Err(_) => tokio::time::sleep(NOT_YET).await,
        }
    }
}

async fn ask(socket: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(REQUEST).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    version_in(&answer)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "dockerd did not say its version"))
}

/// The version in the answer to [`REQUEST`].
fn version_in(answer: &[u8]) -> Option<String> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = answer.split_at(end + 4);
    let status = head.split(|&b| b == b' ').nth(1)?;
    if status != b"200" {
        return None;
    }
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    body.get("Version")?.as_str().map(str::to_owned)
}

/// Tells when something appears in a directory.
#[derive(Debug)]
struct Watch {
    fd: AsyncFd<OwnedFd>,
}

impl Watch {
    fn new(directory: &Path) -> io::Result<Watch> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&fd, directory, WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
        Ok(Watch {
            fd: async_fd::register(fd, Interest::READABLE)?,
        })
    }

    /// Waits until `name` was made; lost events count as if it had been.
    async fn created(&self, name: &OsStr) -> io::Result<()> {
        loop {
            let mut guard = self.fd.readable().await?;
            let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(self.fd.get_ref(), &mut buffer);
            loop {
                match events.next() {
                    Ok(event) => {
                        let ours = event
                            .file_name()
                            .is_some_and(|found| found.to_bytes() == name.as_encoded_bytes());
                        if ours || event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                            return Ok(());
                        }
                    }
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            guard.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const VERSION: &[u8] =
        b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"Version\":\"26.1.5\",\"Os\":\"linux\"}\n";

    #[test]
    fn the_version_is_read_from_the_answer() {
        assert_eq!(version_in(VERSION).as_deref(), Some("26.1.5"));
        assert_eq!(version_in(b""), None);
        assert_eq!(version_in(b"HTTP/1.0 200 OK\r\n\r\n{}"), None);
        assert_eq!(version_in(b"HTTP/1.0 503 Busy\r\n\r\n{\"Version\":\"1\"}"), None);
    }

    async fn serve_once(listener: &UnixListener, answer: &[u8]) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; REQUEST.len()];
        stream.read_exact(&mut request).await.unwrap();
        assert_eq!(request, REQUEST);
        stream.write_all(answer).await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_comes_later_and_answers_later_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { wait(&path).await.unwrap() }
        });
        // Whether the waiter has looked by now or not, it must find the socket.
        tokio::task::yield_now().await;
        std::fs::write(directory.path().join("other"), "").unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        serve_once(&listener, VERSION).await;
        assert_eq!(waiting.await.unwrap(), "26.1.5");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_cut_off_is_asked_for_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let waiting = tokio::spawn(async move { wait(&path).await.unwrap() });
        serve_once(&listener, b"HTTP/1.0 2").await;
        serve_once(&listener, VERSION).await;
        assert_eq!(waiting.await.unwrap(), "26.1.5");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_hangs_is_followed_by_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let waiting = tokio::spawn(async move { wait(&path).await.unwrap() });
        let (_never_answered, _) = listener.accept().await.unwrap();
        serve_once(&listener, VERSION).await;
        assert_eq!(waiting.await.unwrap(), "26.1.5");
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_is_made_before_it_is_listened_on_is_not_given_up() {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let bound = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&bound, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { wait(&path).await.unwrap() }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        listen(&bound, 8).unwrap();
        let listener = std::os::unix::net::UnixListener::from(bound);
        listener.set_nonblocking(true).unwrap();
        serve_once(&UnixListener::from_std(listener).unwrap(), VERSION).await;
        assert_eq!(waiting.await.unwrap(), "26.1.5");
    }

    #[tokio::test]
    async fn a_listener_that_comes_later_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("containerd.sock");
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { wait_for_listener(&path).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let _listener = UnixListener::bind(&path).unwrap();
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_stale_socket_is_not_taken_for_dockerd() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        drop(UnixListener::bind(&path).unwrap());
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { wait(&path).await.unwrap() }
        });
        tokio::task::yield_now().await;
        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        serve_once(&listener, VERSION).await;
        assert_eq!(waiting.await.unwrap(), "26.1.5");
    }
}
