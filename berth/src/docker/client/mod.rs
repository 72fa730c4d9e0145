//! A Docker client for what berth itself asks dockerd, and the search for the user's docker client.

mod cli;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

pub use cli::{DockerCli, find_cli, own_plugins};

/// The most that an answer may have, in bytes.
const ANSWER_LIMIT: usize = 16 << 20;

/// Why dockerd could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("cannot connect to {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke, or what came was not HTTP.
    #[error("the conversation with dockerd broke")]
    Http(#[from] hyper::Error),
    /// The answer was cut or too long.
    #[error("dockerd's answer could not be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// dockerd answered with an error.
    #[error("dockerd answered {status}: {message}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// What it said.
        message: String,
    },
}

/// Whether dockerd answers (`GET /_ping`).
pub async fn ping(socket: &Path) -> Result<(), ClientError> {
    get(socket, "/_ping").await.map(drop)
}

/// The names of running containers that have a mount of `dir`, a path of the guest, or of something in it.
pub async fn containers_with(socket: &Path, dir: &Path) -> Result<Vec<String>, ClientError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    #[derive(Default)]
    struct Container {
        id: String,
        names: Vec<String>,
        mounts: Vec<Mount>,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "PascalCase", default)]
    struct Mount {
        source: PathBuf,
    }
    let body = get(socket, "/containers/json").await?;
    let containers: Vec<Container> =
        serde_json::from_slice(&body).map_err(|error| ClientError::Body(error.into()))?;
    let named = |container: Container| match container.names.into_iter().next() {
        Some(name) => name.trim_start_matches('/').to_owned(),
        None => container.id,
    };
    Ok(containers
        .into_iter()
        .filter(|container| container.mounts.iter().any(|mount| mount.source.starts_with(dir)))
        .map(named)
        .collect())
}

/// The body of a successful answer.
pub(super) async fn get(socket: &Path, uri: &'static str) -> Result<Bytes, ClientError> {
    let body = &mut open(socket, uri).await?.body;
    let body = Limited::new(body, ANSWER_LIMIT).collect().await;
    Ok(body.map_err(ClientError::Body)?.to_bytes())
}

/// A successful answer whose body is still to come.
#[derive(Debug)]
pub(super) struct Answer {
    body: Incoming,
    connection: AbortHandle,
}

impl Answer {
    /// What is still to come.
    pub(super) fn body(&mut self) -> &mut Incoming {
        &mut self.body
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Asks for `uri` on a connection of its own.
pub(super) async fn open(socket: &Path, uri: &'static str) -> Result<Answer, ClientError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| ClientError::Connect {
            path: socket.to_owned(),
            source,
        })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = hyper::Uri::from_static(uri);
    request
        .headers_mut()
        .insert(HOST, hyper::header::HeaderValue::from_static("docker"));
    // The connection's own end comes to light in the exchange.
    let connection = tokio::spawn(connection).abort_handle();
    let response = sender.send_request(request).await;
    let response = response.inspect_err(|_| connection.abort())?;
    let status = response.status();
    let mut answer = Answer {
        body: response.into_body(),
        connection,
    };
    if status.is_success() {
        return Ok(answer);
    }
    let body = Limited::new(&mut answer.body, ANSWER_LIMIT).collect().await;
    Err(ClientError::Refused {
        status,
        message: message(&body.map_err(ClientError::Body)?.to_bytes()),
    })
}

/// The `message` of an error answer, or else the answer.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct ErrorAnswer {
        message: String,
    }
    serde_json::from_slice::<ErrorAnswer>(body).map_or_else(
        |_| String::from_utf8_lossy(body).trim().to_owned(),
        |answer| answer.message,
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    async fn answered<T>(answer: &'static str, ask: impl AsyncFnOnce(&Path) -> T) -> T {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let dockerd = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let result = ask(&path).await;
        dockerd.await.unwrap();
        result
    }

    #[tokio::test]
    async fn answers_are_understood() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK";
        answered(answer, async |path| ping(path).await).await.unwrap();
    }

    #[tokio::test]
    async fn containers_are_found_by_what_they_have_mounted() {
        let answer = concat!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n",
            r#"[{"Id":"1","Names":["/web"],"Mounts":[{"Type":"bind","Source":"/data/www"}]},"#,
            r#"{"Id":"2","Names":["/db"],"Mounts":[{"Type":"volume","Source":"/var/lib/docker/x"},{"Source":"/data"}]},"#,
            r#"{"Id":"3","Names":["/other"],"Mounts":[{"Source":"/database"}]},{"Id":"4"}]"#,
        );
        let found = answered(answer, async |path| {
            containers_with(path, Path::new("/data")).await
        })
        .await;
        assert_eq!(found.unwrap(), ["web", "db"]);
    }

    #[tokio::test]
    async fn an_error_says_what_dockerd_said() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 16\r\n\r\n{\"message\":\"no\"}";
        let error = answered(answer, async |path| ping(path).await).await.unwrap_err();
        assert_eq!(error.to_string(), "dockerd answered 503 Service Unavailable: no");
        assert!(answered("", async |path| ping(path).await).await.is_err());
    }

    #[tokio::test]
    async fn no_socket_is_named() {
        let error = ping(Path::new("/nonexistent/s")).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot connect to /nonexistent/s");
    }
}
