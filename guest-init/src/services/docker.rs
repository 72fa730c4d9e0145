//! The DOCKER service: a connection of the host becomes a connection to dockerd's API socket, byte for byte, each half
//! closed when the other end closes it.
//!
//! Before dockerd has its socket a connection ends at once without a byte.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::UnixStream;

use super::Stream;
use super::hang_up::HangUp;

/// Bytes of a new connection's buffers: most carry a few requests.
const FIRST_BUFFER: usize = 8 * 1024;
/// Bytes they grow to when filled: images pass here.
const LARGEST_BUFFER: usize = 128 * 1024;

/// How often, and after how long each time, a connection is tried again while dockerd's queue is full.
const QUEUE_FULL: (u32, Duration) = (200, Duration::from_millis(10));

/// Serves one connection to its end.
pub(crate) async fn serve(host: impl Stream, socket: &Path) -> io::Result<()> {
    let docker = match connect(socket).await {
        Ok(docker) => docker,
        // Normal before dockerd runs and while it restarts. Dropping `host` says so to the host.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    relay(host, docker).await
}

async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (tries, pause) = QUEUE_FULL;
    for _ in 0..tries {
        match UnixStream::connect(socket).await {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(pause).await,
            result => return result,
        }
    }
    UnixStream::connect(socket).await
}

/// Copies both ways until both are done.
async fn relay(host: impl Stream, docker: impl Stream) -> io::Result<()> {
    let host_gone = HangUp::watch(&host)?;
    let docker_gone = HangUp::watch(&docker)?;
    let (mut from_host, mut to_host) = split(host);
    let (mut from_docker, mut to_docker) = split(docker);
    let mut requests = pin!(copy(&mut from_host, &mut to_docker));
    let mut answers = pin!(copy(&mut from_docker, &mut to_host));
    let (mut requesting, mut answering) = (true, true);
    while requesting || answering {
        let ended = tokio::select! {
            ended = &mut requests, if requesting => { requesting = false; ended }
            ended = &mut answers, if answering => { answering = false; ended }
            // Whoever is gone takes nothing more; what it sent before is still delivered.
            () = host_gone.wait(), if answering => { answering = false; CopyEnd::Done }
            () = docker_gone.wait(), if requesting => { requesting = false; CopyEnd::Done }
        };
        match ended {
            // dockerd may refuse the rest of a request and still answer, so the other way goes on.
            CopyEnd::Done | CopyEnd::NotTaken => {}
            // The sender is gone without an end: the receiver must not take what came so far for all.
            CopyEnd::SourceFailed => return Ok(()),
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum CopyEnd {
    /// The source ended, and so does the sink.
    Done,
    /// The source failed.
    SourceFailed,
    /// The sink takes no more.
    NotTaken,
}

/// Copies until the source ends, then ends the sink.
async fn copy(source: &mut (impl AsyncRead + Unpin), sink: &mut (impl AsyncWrite + Unpin)) -> CopyEnd {
    let mut buffer = vec![0; FIRST_BUFFER];
    loop {
        let length = match source.read(&mut buffer).await {
            Ok(0) => break,
            Ok(length) => length,
            Err(_) => return CopyEnd::SourceFailed,
        };
        if sink.write_all(&buffer[..length]).await.is_err() {
            return CopyEnd::NotTaken;
        }
        if length == buffer.len() && length < LARGEST_BUFFER {
            buffer.resize(length * 4, 0);
        }
    }
    match sink.shutdown().await {
        Ok(()) => CopyEnd::Done,
        Err(_) => CopyEnd::NotTaken,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;
    use tokio::task::JoinHandle;

    use super::*;

    struct Fixture {
        _directory: tempfile::TempDir,
        listener: UnixListener,
        path: std::path::PathBuf,
    }

    fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        Fixture {
            listener: UnixListener::bind(&path).unwrap(),
            path,
            _directory: directory,
        }
    }

    impl Fixture {
        async fn connection(&self) -> (UnixStream, UnixStream, JoinHandle<io::Result<()>>) {
            let (host, guest) = UnixStream::pair().unwrap();
            let path = self.path.clone();
            let serving = tokio::spawn(async move { serve(guest, &path).await });
            let (docker, _) = self.listener.accept().await.unwrap();
            (host, docker, serving)
        }
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    #[tokio::test]
    async fn megabytes_pass_both_ways_at_once_unchanged() {
        let fixture = fixture();
        let (host, docker, serving) = fixture.connection().await;
        let (up, down) = (noise(5_000_001), noise(3_000_007));
        let exchange = |stream: UnixStream, send: Vec<u8>| {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let sending = tokio::spawn(async move {
                    write.write_all(&send).await.unwrap();
                    write.shutdown().await.unwrap();
                });
                let mut received = Vec::new();
                read.read_to_end(&mut received).await.unwrap();
                sending.await.unwrap();
                received
            })
        };
        let at_host = exchange(host, up.clone());
        let at_docker = exchange(docker, down.clone());
        assert!(at_docker.await.unwrap() == up);
        assert!(at_host.await.unwrap() == down);
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_host_ends_its_half_and_still_gets_the_answer() {
        let fixture = fixture();
        let (mut host, mut docker, serving) = fixture.connection().await;
        host.write_all(b"stdin").await.unwrap();
        host.shutdown().await.unwrap();
        let mut request = Vec::new();
        docker.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, b"stdin");
        docker.write_all(b"output").await.unwrap();
        drop(docker);
        let mut answer = Vec::new();
        host.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"output");
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn dockerd_ends_its_half_and_still_gets_the_rest() {
        let fixture = fixture();
        let (mut host, mut docker, serving) = fixture.connection().await;
        docker.shutdown().await.unwrap();
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
        host.write_all(b"late").await.unwrap();
        drop(host);
        let mut rest = Vec::new();
        docker.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"late");
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn dockerd_learns_that_the_host_left_while_nothing_was_said() {
        let fixture = fixture();
        let (host, mut docker, serving) = fixture.connection().await;
        drop(host);
        assert_eq!(docker.read(&mut [0]).await.unwrap(), 0);
        // dockerd says nothing and closes nothing, as while following a silent log.
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_answer_in_the_middle_of_a_request_arrives() {
        let fixture = fixture();
        let (host, mut docker, serving) = fixture.connection().await;
        docker.write_all(b"too large").await.unwrap();
        drop(docker);
        let (mut read, mut write) = host.into_split();
        let mut answer = Vec::new();
        read.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"too large");
        serving.await.unwrap().unwrap();
        assert!(write.write_all(&noise(1 << 20)).await.is_err());
    }

    #[tokio::test]
    async fn without_dockerd_a_connection_ends_at_once() {
        let fixture = fixture();
        drop(fixture.listener);
        for path in [fixture.path.as_path(), Path::new("/does/not/exist")] {
            let (mut host, guest) = UnixStream::pair().unwrap();
            serve(guest, path).await.unwrap();
            assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn hundreds_of_connections_at_once() {
        let fixture = fixture();
        let mut hosts = Vec::new();
        for number in 0..300_u32 {
            let (mut host, mut docker, _) = fixture.connection().await;
            host.write_all(&number.to_le_bytes()).await.unwrap();
            hosts.push(host);
            tokio::spawn(async move {
                let mut bytes = [0; 4];
                docker.read_exact(&mut bytes).await.unwrap();
                docker.write_all(&bytes).await.unwrap();
            });
        }
        for (number, host) in hosts.iter_mut().enumerate() {
            let mut bytes = Vec::new();
            host.read_to_end(&mut bytes).await.unwrap();
            assert_eq!(bytes, u32::try_from(number).unwrap().to_le_bytes());
        }
    }
}
