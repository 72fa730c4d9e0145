//! Following a daemon's event stream for as long as there is one.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use tokio::sync::mpsc::UnboundedSender;

use super::client::{self, ClientError, Lines};
use super::types::Event;

/// A daemon that has not begun an answer by then is shown as one that does not answer. It is waited for all the same.
const SILENCE: Duration = Duration::from_secs(10);
/// How long to wait before the stream is asked for again, and how long at most. Only a daemon that ends the stream and
/// lives makes this happen.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Attempts while nobody listens: a socket that was made this moment listens in the next one.
const ATTEMPTS: u32 = 3;

/// What a follower tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// The stream has begun, with all that has happened since the machine's start.
    Began,
    /// Something happened.
    Event(Event),
    /// The daemon does not answer.
    Silent,
    /// There is no daemon any more.
    Gone,
}

/// Follows the daemon on `socket` until it is gone, which is the last thing told.
pub(crate) async fn follow<T: Send + 'static>(
    socket: PathBuf,
    tell: UnboundedSender<T>,
    wrap: impl Fn(Told) -> T + Send,
) {
    let say = |told| drop(tell.send(wrap(told)));
    let mut pause = FIRST_PAUSE;
    let mut refused = 0;
    loop {
        match stream(&socket, &say, &mut pause).await {
            Err(ClientError::NoDaemon) => refused += 1,
            ended => {
                refused = 0;
                if let Err(error) = ended {
                    tracing::info!("{}: {error}", socket.display());
                }
                if !client::listens(&socket).await {
                    break;
                }
            }
        }
        if refused >= ATTEMPTS {
            break;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    say(Told::Gone);
}

async fn stream(
    socket: &std::path::Path,
    say: &impl Fn(Told),
    pause: &mut Duration,
) -> Result<(), ClientError> {
    let begun = client::begin(socket, Method::GET, "/v1/events", Bytes::new());
    tokio::pin!(begun);
    let response = tokio::select! {
        response = &mut begun => response?,
        () = tokio::time::sleep(SILENCE) => {
            say(Told::Silent);
            begun.await?
        }
    };
    say(Told::Began);
    let mut lines = Lines::of(response.into_body());
    while let Some(line) = lines.next().await? {
        *pause = FIRST_PAUSE;
        match serde_json::from_slice(&line) {
            Ok(event) => say(Told::Event(event)),
            Err(error) => tracing::debug!("an event that is not understood: {error}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;

    use super::*;
    use crate::daemon::types::State;

    #[tokio::test]
    async fn events_are_told_until_the_daemon_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let (tell, mut told) = mpsc::unbounded_channel();
        let follower = tokio::spawn(follow(socket, tell, |told| told));
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1000];
        let _ = stream.read(&mut request).await.unwrap();

        let lines = "not JSON\n{\"event\":\"state\",\"state\":\"running\"}\n{\"event\":\"sta";
        let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{lines}");
        stream.write_all(answer.as_bytes()).await.unwrap();
        assert_eq!(told.recv().await, Some(Told::Began));
        let state = State::Running;
        assert_eq!(told.recv().await, Some(Told::Event(Event::State { state })));

        // It is killed in the middle of a line.
        drop(listener);
        drop(stream);
        assert_eq!(told.recv().await, Some(Told::Gone));
        follower.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_does_not_answer_is_told_of_once() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let (tell, mut told) = mpsc::unbounded_channel();
        let follower = tokio::spawn(follow(socket, tell, |told| told));
        assert_eq!(told.recv().await, Some(Told::Silent));
        tokio::time::sleep(SILENCE * 10).await;
        assert!(told.try_recv().is_err());
        drop(listener);
        assert_eq!(told.recv().await, Some(Told::Gone));
        follower.await.unwrap();
    }
}
