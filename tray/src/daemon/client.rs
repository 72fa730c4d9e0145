//! HTTP on a Unix socket: the daemon's, and Docker's.
//!
//! Everything here has a limit on its time and on what it reads, because whatever waits for it is shown to somebody.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// The most that an answer may have, in bytes.
const ANSWER_SIZE: usize = 16 << 20;
/// How long an answer to a question may take.
pub(crate) const ANSWER_TIME: Duration = Duration::from_secs(20);
/// How long a machine may take to be switched: it may have much memory to give back.
pub(crate) const CHANGE_TIME: Duration = Duration::from_secs(150);
/// How long Docker may take to stop a container, which gets ten seconds to end unless it was made otherwise.
pub(crate) const STOP_TIME: Duration = Duration::from_secs(120);

/// Why what was asked was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens.
    #[error("the machine is not running")]
    NoDaemon,
    /// The socket cannot be used.
    #[error("cannot connect to {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has been silent for too long.
    #[error("the machine's daemon does not answer; `berth stop --force` ends it")]
    Silent,
    /// The conversation broke off.
    #[error("the connection to the machine's daemon broke off: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
    /// It said no.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Why, in its words.
        message: String,
    },
    /// It answered something else.
    #[error("the machine's daemon gave an answer that this version does not understand: {0}")]
    NotUnderstood(#[from] serde_json::Error),
}

impl ClientError {
    fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken(error.into())
    }
}

/// `GET PATH`.
pub(crate) async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ClientError> {
    let body = within(ANSWER_TIME, exchange(socket, Method::GET, path, Bytes::new())).await?;
    Ok(serde_json::from_slice(&body)?)
}

/// `POST PATH` with a JSON body; what it answers.
pub(crate) async fn post(
    socket: &Path,
    path: &str,
    body: &serde_json::Value,
    limit: Duration,
) -> Result<Bytes, ClientError> {
    let body = body.to_string().into();
    within(limit, exchange(socket, Method::POST, path, body)).await
}

/// Whether a process may be listening: false only when it is certain that none does.
pub(crate) async fn listens(socket: &Path) -> bool {
    !matches!(
        UnixStream::connect(socket).await.map_err(|error| error.kind()),
        Err(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
    )
}

async fn within<T>(
    limit: Duration,
    exchange: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::time::timeout(limit, exchange)
        .await
        .unwrap_or(Err(ClientError::Silent))
}

async fn exchange(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
    let response = begin(socket, method, path, body).await?;
    whole(response.into_body()).await
}

/// Sends a request on a connection of its own and waits, without limit, for the beginning of an answer that says yes.
pub(crate) async fn begin(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Response<Incoming>, ClientError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| match source.kind() {
            // A socket file that nobody listens on is what a killed daemon leaves.
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoDaemon,
            _ => ClientError::Connect {
                path: socket.to_owned(),
                source,
            },
        })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(ClientError::broken)?;
    // What goes wrong here is seen by whoever waits for the answer.
    tokio::spawn(async move { drop(connection.await) });
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "berth")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(ClientError::broken)?;
    let response = sender.send_request(request).await.map_err(ClientError::broken)?;
    let status = response.status();
    if status.is_success() || status == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    let body = whole(response.into_body()).await?;
    let message = match serde_json::from_slice(&body) {
        Ok(Refusal { message }) => message,
        Err(_) => format!("the answer was {status}"),
    };
    Err(ClientError::Refused { status, message })
}

async fn whole(body: Incoming) -> Result<Bytes, ClientError> {
    let body = Limited::new(body, ANSWER_SIZE).collect().await;
    Ok(body.map_err(ClientError::broken)?.to_bytes())
}

/// What comes line by line.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// The lines of a body.
    pub(crate) fn of(body: Incoming) -> Lines {
        Lines {
            body,
            buffer: Vec::new(),
        }
    }

    /// The next one; none at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.buffer.drain(..=end).collect()));
            }
            if self.buffer.len() > ANSWER_SIZE {
                return Err(ClientError::broken("a line without end"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(ClientError::broken)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    async fn answered_with(answer: &'static str) -> Result<serde_json::Value, ClientError> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1000];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let got = get(&socket, "/v1/status").await;
        server.await.unwrap();
        got
    }

    #[tokio::test]
    async fn answers_and_refusals_are_told_apart() {
        let answer = answered_with("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}").await;
        assert_eq!(answer.unwrap()["a"], 1);
        let refusal =
            answered_with("HTTP/1.1 409 Conflict\r\ncontent-length: 16\r\n\r\n{\"message\":\"no\"}").await;
        assert_eq!(refusal.unwrap_err().to_string(), "no");
        let nonsense = answered_with("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
        assert!(matches!(nonsense, Err(ClientError::NotUnderstood(_))));
        assert!(matches!(
            answered_with("ssh-2.0\r\n").await,
            Err(ClientError::Broken(_))
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_does_not_answer_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        let got = get::<serde_json::Value>(&socket, "/v1/status").await;
        assert!(matches!(got, Err(ClientError::Silent)), "{got:?}");
    }

    #[tokio::test]
    async fn without_a_listener_there_is_no_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        assert!(!listens(&socket).await);
        drop(UnixListener::bind(&socket).unwrap());
        assert!(!listens(&socket).await);
        let got = get::<serde_json::Value>(&socket, "/v1/status").await;
        assert!(matches!(got, Err(ClientError::NoDaemon)), "{got:?}");
    }
}
