//! The running containers, known without asking again and again: Docker's own events say when to look.

use std::path::PathBuf;
use std::time::Duration;

use http_body_util::BodyExt;
use protocol::forward::Published;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::client::{self, ClientError};

/// The events that change the list. Anything more would wake the daemon at every health check.
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22start%22%2C%22die%22%2C\
                      %22pause%22%2C%22unpause%22%2C%22rename%22%5D%7D";
const LIST: &str = "/containers/json";
/// How long to wait before dockerd is asked again when it does not answer, and how long at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its image, as it was named.
    pub image: String,
    /// `running` or `paused`.
    pub state: String,
    /// Its published ports.
    pub ports: Vec<ContainerPort>,
    /// Whether it has the network of the guest (`--network host`).
    pub host_network: bool,
    /// Its compose project, if it is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

/// A published port of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    /// `tcp` or `udp`.
    pub transport: String,
    /// The address on the host.
    pub address: String,
    /// The port on the host.
    pub port: u16,
    /// The container's.
    pub container_port: u16,
}

impl Container {
    /// Whether Docker publishes this port for it.
    pub fn has(&self, published: &Published) -> bool {
        self.ports.iter().any(|port| {
            port.port == published.host.port()
                && port.transport == published.transport.name()
                && port.address.parse() == Ok(published.host.ip())
        })
    }
}

/// Keeps a list of running containers. Dropping it ends that.
#[derive(Debug)]
pub struct ContainersKeeper(JoinHandle<()>);

impl Drop for ContainersKeeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps `list` at what runs on the dockerd behind `socket`.
pub fn keep(socket: PathBuf, list: watch::Sender<Vec<Container>>) -> ContainersKeeper {
    ContainersKeeper(tokio::spawn(async move {
        let mut pause = FIRST_PAUSE;
        loop {
            let mut heard = false;
            if let Err(error) = follow(&socket, &list, &mut heard).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "the list of containers");
            }
            // dockerd has gone, and most containers with it.
            replace(&list, Vec::new());
            if heard {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }))
}

fn replace(list: &watch::Sender<Vec<Container>>, now: Vec<Container>) {
    list.send_if_modified(|before| {
        let differs = *before != now;
        *before = now;
        differs
    });
}

/// Until dockerd ends the stream of events.
async fn follow(
    socket: &std::path::Path,
    list: &watch::Sender<Vec<Container>>,
    heard: &mut bool,
) -> Result<(), ClientError> {
    // Listened to before the first look, so that nothing is missed in between.
    let mut events = client::open(socket, EVENTS).await?;
    loop {
        replace(list, running(socket).await?);
        *heard = true;
        match events.body().frame().await {
            // What an event says is in the list as well. Those that have come meanwhile need no look of their own, but it
            // costs less than to find out.
            Some(frame) => drop(frame?),
            None => return Ok(()),
        }
    }
}

/// What runs now. Asks dockerd, so it is never behind what Docker has answered before, as the list that is kept may be for a moment.
///
/// # Errors
/// When nobody answers on `socket`, or not in Docker's words.
pub async fn running(socket: &std::path::Path) -> Result<Vec<Container>, ClientError> {
    let body = client::get(socket, LIST).await?;
    let listed: Vec<Listed> =
        serde_json::from_slice(&body).map_err(|error| ClientError::Body(error.into()))?;
    Ok(listed.into_iter().map(Container::from).collect())
}

/// A container in Docker's list (Engine API, `ContainerSummary`).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Listed {
    id: String,
    names: Vec<String>,
    image: String,
    state: String,
    ports: Vec<ListedPort>,
    host_config: HostConfig,
    labels: std::collections::HashMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    network_mode: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ListedPort {
    #[serde(rename = "IP")]
    ip: String,
    private_port: u16,
    public_port: u16,
    r#type: String,
}

impl From<Listed> for Container {
    fn from(mut listed: Listed) -> Container {
        let name = listed.names.into_iter().next();
        Container {
            name: name.map_or_else(
                || listed.id.clone(),
                |name| name.trim_start_matches('/').to_owned(),
            ),
            project: listed.labels.remove("com.docker.compose.project"),
            id: listed.id,
            image: listed.image,
            state: listed.state,
            host_network: listed.host_config.network_mode == "host",
            ports: listed
                .ports
                .into_iter()
                // What is only exposed has none.
                .filter(|port| port.public_port != 0)
                .map(|port| ContainerPort {
                    transport: port.r#type,
                    address: port.ip,
                    port: port.public_port,
                    container_port: port.private_port,
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream};

    use super::*;

    /// Answers a request, and says which it was.
    async fn answer(listener: &UnixListener, body: &str, more: bool) -> (String, UnixStream) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        let request = String::from_utf8_lossy(&request[..length]);
        let line = request.lines().next().unwrap().to_owned();
        let head = if more {
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()
        } else {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())
        };
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        (line, stream)
    }

    #[tokio::test]
    async fn the_list_follows_dockers_events_and_empties_when_dockerd_goes() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, mut list) = watch::channel(Vec::new());
        let _keeper = keep(socket, sender);
        let (line, mut events) = answer(&listener, "", true).await;
        assert!(line.starts_with("GET /events?filters="), "{line}");
        let web = r#"[{"Id":"1f","Names":["/web"],"Image":"nginx","State":"running","Labels":{"com.docker.compose.project":"shop"},
            "Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},{"PrivatePort":443,"Type":"tcp"}],
            "HostConfig":{"NetworkMode":"host"}}]"#;
        answer(&listener, web, false).await;
        list.changed().await.unwrap();
        {
            let list = list.borrow_and_update();
            let [container] = &list[..] else {
                panic!("{list:?}")
            };
            assert_eq!((container.name.as_str(), container.host_network), ("web", true));
            assert_eq!(container.project.as_deref(), Some("shop"));
            let [port] = &container.ports[..] else {
                panic!("{container:?}")
            };
            assert_eq!(
                (port.port, port.container_port, port.address.as_str()),
                (8080, 80, "0.0.0.0")
            );
        }
        events.write_all(b"2\r\n{}\r\n").await.unwrap();
        answer(&listener, "[]", false).await;
        list.changed().await.unwrap();
        assert!(list.borrow_and_update().is_empty());
        events.write_all(b"2\r\n{}\r\n").await.unwrap();
        answer(&listener, web, false).await;
        list.changed().await.unwrap();
        assert_eq!(list.borrow_and_update().len(), 1);
        drop(events);
        list.changed().await.unwrap();
        assert!(list.borrow_and_update().is_empty());
        // It asks again.
        answer(&listener, "", true).await;
    }
}
