//! The command line's side of the daemon's HTTP interface.

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::SYNC_TIMEOUT;
use super::types::{
    ApiError, ChangeReport, EXEC_UPGRADE, LogsQuery, PortsReport, ProfilesReport, SettingsReport,
    SettingsRequest, ShareQuery, ShareRequest, SharesReport, Status, StopRequest, Synced, Version,
};
use crate::machine::events::Event;
use crate::machine::resources::CHANGE_LIMIT;
use crate::machine::shares::ShareReport;

/// How long the daemon may take to begin an answer. It answers at once or never.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// What it may take beyond the time that it is asked to wait for something else.
const MARGIN: Duration = Duration::from_secs(10);

/// Why the daemon did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on its socket: the machine is not running.
    #[error("the machine is not running")]
    NoDaemon,
    /// Its socket cannot be used.
    #[error("cannot connect to the machine's daemon on {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It has been silent for too long.
    #[error("the machine's daemon does not answer; `berth stop --force` ends it")]
    Silent,
    /// The conversation broke off.
    #[error("the connection to the machine's daemon broke off")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It said no.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Why, as the daemon says it.
        message: String,
    },
    /// It answered something else.
    #[error(
        "the machine's daemon gave an answer this version of berth does not understand; restart the machine with `berth restart`"
    )]
    NotUnderstood(#[source] serde_json::Error),
}

impl ClientError {
    fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken(error.into())
    }
}

/// A machine's daemon, as its clients see it.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The daemon that listens on `socket`, or will.
    pub fn new(socket: &Path) -> Client {
        Client {
            socket: socket.to_owned(),
        }
    }

    /// Its version.
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.get("/v1/version").await
    }

    /// How its machine is.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// Asks it to stop its machine. It answers before that is done; [`Client::events`] tells when.
    pub async fn stop(&self, request: &StopRequest) -> Result<(), ClientError> {
        self.post("/v1/stop", request).await
    }

    /// Stops the machine's virtual CPUs.
    pub async fn pause(&self) -> Result<(), ClientError> {
        self.post("/v1/pause", &()).await
    }

    /// Lets them run again.
    pub async fn resume(&self) -> Result<(), ClientError> {
        self.post("/v1/resume", &()).await
    }

    /// The published ports of the machine's containers.
    pub async fn ports(&self) -> Result<PortsReport, ClientError> {
        self.get("/v1/ports").await
    }

    /// The machine's shares.
    pub async fn shares(&self) -> Result<SharesReport, ClientError> {
        self.get("/v1/shares").await
    }

    /// Shares a directory with the running machine.
    pub async fn add_share(&self, share: &ShareRequest) -> Result<ShareReport, ClientError> {
        let body = serde_json::to_vec(share).map_err(ClientError::broken)?;
        let response = self
            .request(request(Method::POST, "/v1/shares", body.into())?)
            .await?;
        understood(response).await
    }

    /// Takes a share away from the running machine.
    pub async fn remove_share(&self, share: &ShareQuery) -> Result<(), ClientError> {
        let path = share.path.to_string_lossy();
        let path = format!("/v1/shares?path={}&force={}", encoded(&path), share.force);
        self.request(request(Method::DELETE, &path, Bytes::new())?)
            .await?;
        Ok(())
    }

    /// The profiles there are, and the machine's.
    pub async fn profiles(&self) -> Result<ProfilesReport, ClientError> {
        self.get("/v1/profiles").await
    }

    /// Switches the running machine to another profile, or gives it other CPUs and another memory.
    pub async fn change_settings(&self, wanted: &SettingsRequest) -> Result<SettingsReport, ClientError> {
        let body = serde_json::to_vec(wanted).map_err(ClientError::broken)?;
        let request = request(Method::POST, "/v1/settings", body.into())?;
        understood(self.request_within(request, CHANGE_LIMIT + MARGIN).await?).await
    }

    /// Waits until the machine has been told of everything that the host has changed in its shares so far.
    pub async fn sync(&self) -> Result<Synced, ClientError> {
        let request = request(Method::POST, "/v1/sync", Bytes::new())?;
        understood(self.request_within(request, SYNC_TIMEOUT + MARGIN).await?).await
    }

    /// What has happened to the machine since its start began, and what happens from now on.
    pub async fn events(&self) -> Result<Events, ClientError> {
        self.lines("/v1/events").await
    }

    /// What the host changes in the machine's shares from now on.
    pub async fn changes(&self) -> Result<Lines<ChangeReport>, ClientError> {
        self.lines("/v1/changes").await
    }

    async fn lines<T>(&self, path: &str) -> Result<Lines<T>, ClientError> {
        let response = self.request(request(Method::GET, path, Bytes::new())?).await?;
        Ok(Lines {
            body: response.into_body(),
            buffer: Vec::new(),
            of: PhantomData,
        })
    }

    /// One of the machine's logs, as it comes.
    pub async fn logs(&self, query: &LogsQuery) -> Result<Bytestream, ClientError> {
        let source = serde_json::to_value(query.source).map_err(ClientError::broken)?;
        let mut path = format!(
            "/v1/logs?source={}&follow={}",
            source.as_str().unwrap_or_default(),
            query.follow
        );
        if let Some(tail) = query.tail {
            path.push_str(&format!("&tail={tail}"));
        }
        let response = self.request(request(Method::GET, &path, Bytes::new())?).await?;
        Ok(Bytestream(response.into_body()))
    }

    /// A connection to the guest's exec service.
    pub async fn exec(&self) -> Result<TokioIo<Upgraded>, ClientError> {
        let mut request = request(Method::POST, "/v1/exec", Bytes::new())?;
        let headers = request.headers_mut();
        headers.insert(CONNECTION, hyper::header::HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, hyper::header::HeaderValue::from_static(EXEC_UPGRADE));
        let response = self.request(request).await?;
        let upgraded = hyper::upgrade::on(response).await.map_err(ClientError::broken)?;
        Ok(TokioIo::new(upgraded))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        understood(self.request(request(Method::GET, path, Bytes::new())?).await?).await
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        let body = serde_json::to_vec(body).map_err(ClientError::broken)?;
        self.request(request(Method::POST, path, body.into())?).await?;
        Ok(())
    }

    /// Sends a request on a connection of its own and waits for the beginning of the answer.
    async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ClientError> {
        self.request_within(request, ANSWER_TIMEOUT).await
    }

    async fn request_within(
        &self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        let exchange = async {
            let stream = UnixStream::connect(&self.socket)
                .await
                .map_err(|source| match source.kind() {
                    // A socket file that nobody listens on is what a killed daemon leaves.
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoDaemon,
                    _ => ClientError::Connect {
                        path: self.socket.clone(),
                        source,
                    },
                })?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(ClientError::broken)?;
            tokio::spawn(async move {
                // What goes wrong here is seen by whoever waits for the answer.
                let _ = connection.with_upgrades().await;
            });
            sender.send_request(request).await.map_err(ClientError::broken)
        };
        let response = match tokio::time::timeout(timeout, exchange)
            .await
            .map_err(|_| ClientError::Silent)?
        {
            // A daemon that is killed takes connections along, and those that it has not accepted yet.
            Err(ClientError::Broken(_) | ClientError::Connect { .. }) if !listens(&self.socket) => {
                return Err(ClientError::NoDaemon);
            }
            result => result?,
        };
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = body(response).await?;
        let message = match serde_json::from_slice(&body) {
            Ok(ApiError { message }) => message,
            Err(_) => format!("the machine's daemon answered {status}"),
        };
        Err(ClientError::Refused { status, message })
    }
}

/// Whether a process may be listening on the socket of a machine's daemon: false only when it is certain that none does. One
/// that is killed goes on for a moment, and in the kernel perhaps for long, but its sockets go first.
pub fn listens(socket: &Path) -> bool {
    !matches!(
        std::os::unix::net::UnixStream::connect(socket).map_err(|error| error.kind()),
        Err(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset)
    )
}

async fn understood<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, ClientError> {
    serde_json::from_slice(&body(response).await?).map_err(ClientError::NotUnderstood)
}

async fn body(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = response.into_body().collect().await;
    Ok(body.map_err(ClientError::broken)?.to_bytes())
}

/// A value of a query, percent-encoded (RFC 3986, section 2.1).
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn request(method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, ClientError> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "berth")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(ClientError::broken)
}

/// A body as it comes.
#[derive(Debug)]
pub struct Bytestream(Incoming);

impl Bytestream {
    /// The next bytes; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        next_bytes(&mut self.0).await
    }
}

async fn next_bytes(body: &mut Incoming) -> Result<Option<Bytes>, ClientError> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(ClientError::broken)?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// The machine's events as they come.
pub type Events = Lines<Event>;

/// What comes as one JSON object a line.
#[derive(Debug)]
pub struct Lines<T> {
    body: Incoming,
    buffer: Vec<u8>,
    of: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next one; none when the daemon has ended in an orderly way. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(ClientError::NotUnderstood);
            }
            match next_bytes(&mut self.body).await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_a_query_is_read_back_as_it_was() {
        let path = "/home/me/ä b&c=d+e%/#?";
        assert_eq!(encoded(path), "/home/me/%C3%A4%20b%26c%3Dd%2Be%25/%23%3F");
        let uri: hyper::Uri = format!("/v1/shares?path={}&force=true", encoded(path))
            .parse()
            .unwrap();
        let query = axum::extract::Query::<ShareQuery>::try_from_uri(&uri).unwrap();
        assert_eq!((query.path.to_str(), query.force), (Some(path), true));
    }

    fn is_readable(listener: &std::os::unix::net::UnixListener) -> bool {
        let mut listener = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut listener, Some(&rustix::time::Timespec::default())).unwrap() == 1
    }

    #[tokio::test]
    async fn a_daemon_that_dies_with_a_connection_waiting_is_no_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let client = Client::new(&socket);
        let asked = tokio::spawn(async move { client.status().await });
        // The connection is there, and nobody has accepted it.
        while !is_readable(&listener) {
            tokio::task::yield_now().await;
        }

        drop(listener);

        let error = asked.await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::NoDaemon), "{error:?}");
    }

    #[tokio::test]
    async fn a_daemon_that_drops_a_connection_and_goes_on_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let accepts = tokio::spawn(async move {
            drop(listener.accept().await.unwrap());
            listener
        });

        let error = Client::new(&socket).status().await.unwrap_err();

        assert!(matches!(error, ClientError::Broken(_)), "{error:?}");
        drop(accepts.await.unwrap());
    }
}
