//! The LOGS service: one request, then bytes.

mod dockerd;
mod kernel;

use std::io;
use std::path::Path;
use std::pin::pin;

use protocol::frame;
use protocol::logs::{LogReply, LogRequest, LogSource};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, split};

use super::Stream;
use super::hang_up::{HangUp, unless_gone};
use crate::docker::{Docker, log_file};

/// Serves one connection.
pub(crate) async fn serve(mut stream: impl Stream, docker: &Docker) -> anyhow::Result<()> {
    let request: LogRequest = frame::read_async(&mut stream).await?;
    let opened = match request.source {
        LogSource::Dockerd => match docker.log() {
            Some(position) => dockerd::Log::open(Path::new(log_file::PATH), position, request.tail)
                .await
                .map(Source::Dockerd),
            None => Err(io::Error::other(
                "dockerd has no log yet, the data disk is not mounted",
            )),
        },
        LogSource::Kernel => kernel::Ring::open().map(Source::Kernel),
    };
    let source = match opened {
        Ok(source) => source,
        Err(e) => {
            let message = format!("cannot read the log: {e}");
            return Ok(frame::write_async(&mut stream, &LogReply::Error { message }).await?);
        }
    };
    frame::write_async(&mut stream, &LogReply::Streaming).await?;

    let gone = HangUp::watch(&stream)?;
    let (mut from_host, mut to_host) = split(stream);
    let sending = async {
        match source {
            Source::Dockerd(log) => log.send(&mut to_host, request.follow).await?,
            Source::Kernel(ring) => ring.send(&mut to_host, request.tail, request.follow).await?,
        }
        to_host.shutdown().await
    };
    let mut sending = pin!(sending);
    let result = tokio::select! {
        sent = &mut sending => sent,
        // A host that closes, or only ends its half, wants no more of an endless stream; what is there now it gets.
        () = ended(&mut from_host), if request.follow => Ok(()),
        () = gone.wait() => Ok(()),
    };
    Ok(unless_gone(result)?)
}

enum Source {
    Dockerd(dockerd::Log),
    Kernel(kernel::Ring),
}

/// Waits for the end of a stream on which nothing more is said.
async fn ended(stream: &mut (impl AsyncRead + Unpin)) {
    let mut ignored = [0; 64];
    while let Ok(1..) = stream.read(&mut ignored).await {}
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn before_the_data_disk_is_there_dockerds_log_is_an_error_in_words() {
        let (mut host, guest) = UnixStream::pair().unwrap();
        tokio::spawn(async move { serve(guest, &Docker::new()).await });
        let request = LogRequest {
            source: LogSource::Dockerd,
            tail: None,
            follow: true,
        };
        frame::write_async(&mut host, &request).await.unwrap();
        let LogReply::Error { message } = frame::read_async(&mut host).await.unwrap() else {
            panic!("a log where there is none")
        };
        assert!(message.contains("not mounted"), "{message}");
    }

    #[tokio::test]
    async fn a_host_that_leaves_ends_the_service() {
        if std::fs::File::open("/dev/kmsg").is_err() {
            // A container without access to the kernel's log.
            return;
        }
        let (mut host, guest) = UnixStream::pair().unwrap();
        let serving = tokio::spawn(async move { serve(guest, &Docker::new()).await });
        let request = LogRequest {
            source: LogSource::Kernel,
            tail: Some(0),
            follow: true,
        };
        frame::write_async(&mut host, &request).await.unwrap();
        assert_eq!(
            frame::read_async::<LogReply>(&mut host).await.unwrap(),
            LogReply::Streaming
        );
        drop(host);
        serving.await.unwrap().unwrap();
    }
}
