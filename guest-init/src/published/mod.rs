//! Published ports: what containers want to be reached by on the host, told to the host, and its connections.
//!
//! dockerd starts a program for each published port, its userland proxy. Ours ([`proxy`]) asks guest-init instead of
//! listening by itself, and guest-init asks the host. So a port comes and goes exactly with its container, also one that
//! starts by its restart policy, and one that is taken on the host fails `docker run` with the words it fails with natively.

pub(crate) mod client_address;
mod host_network;
mod listening;
mod local;
pub(crate) mod proxy;
pub(crate) mod requests;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::boot::GuestEvent;
use protocol::forward::{Published, PublishedBy, ToGuest, ToHost};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::host_link::Events;
use crate::lock::lock;

/// How long the host may take to answer. dockerd gives its proxy 16 seconds.
const ANSWER: Duration = Duration::from_secs(14);
/// How long a container may take to accept. Its address answers at once, with a reset when nobody listens.
const CONNECT: Duration = Duration::from_secs(10);
/// The same for a connection in a client's name, which a container may be unable to answer.
const IN_NAME: Duration = Duration::from_secs(2);
/// How long the host may take to give a port up before its container is let go without that.
const CLOSE: Duration = Duration::from_secs(5);

/// All published ports of the guest.
#[derive(Debug)]
pub(crate) struct Ports {
    state: Mutex<State>,
    events: Events,
    /// Whether containers with the host's network are running, as the host says.
    host_network: watch::Sender<bool>,
    /// Whether connections can be made in a client's name.
    keeps_clients: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    ports: BTreeMap<u64, Entry>,
    /// Who waits for the host to give a port up.
    closing: HashMap<u64, oneshot::Sender<()>>,
    /// The way to the host, while it listens.
    host: Option<mpsc::UnboundedSender<ToHost>>,
}

#[derive(Debug)]
struct Entry {
    port: Published,
    /// Who waits for the host's answer.
    asking: Option<oneshot::Sender<Option<String>>>,
    /// The guest's own listener on the same address.
    local: Option<AbortHandle>,
    /// The container's answers to clients did not come back: its connections come from its network's gateway.
    loses_clients: bool,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(local) = &self.local {
            local.abort();
        }
    }
}

/// The time in which a connection of the host is the one.
pub(crate) struct HostTurn {
    /// What to tell the host.
    pub(crate) messages: mpsc::UnboundedReceiver<ToHost>,
}

impl Ports {
    /// No ports, and no host yet.
    pub(crate) fn new(events: Events) -> Arc<Ports> {
        let ports = Arc::new(Ports {
            state: Mutex::default(),
            events,
            host_network: watch::Sender::new(false),
            keeps_clients: AtomicBool::new(false),
        });
        tokio::spawn(host_network::follow(
            ports.clone(),
            ports.host_network.subscribe(),
        ));
        ports
    }

    /// Has the host listen on a port. What it is known by from then on, or why not, in the words of a native Docker.
    pub(crate) async fn publish(&self, port: Published) -> Result<u64, String> {
        let local = local::listen(&port)?;
        let (asking, answer) = oneshot::channel();
        let id = {
            let mut state = lock(&self.state);
            state.last_id += 1;
            let id = state.last_id;
            let listen = ToHost::Listen {
                id,
                port: port.clone(),
            };
            state.ports.insert(
                id,
                Entry {
                    port: port.clone(),
                    asking: Some(asking),
                    local,
                    loses_clients: false,
                },
            );
            // Without a host it is told when one calls.
            if let Some(host) = &state.host {
                let _ = host.send(listen);
            }
            id
        };
        let refused = match timeout(ANSWER, answer).await {
            Ok(Ok(None)) => return Ok(id),
            Ok(Ok(Some(refused))) => refused,
            Ok(Err(_)) | Err(_) => {
                let Published { transport, host, .. } = port;
                format!("listen {transport} {host}: the host did not answer; see `berth logs`")
            }
        };
        self.forget(id);
        Err(refused)
    }

    /// Has the host listen no more, and returns when the port is free.
    pub(crate) async fn close(&self, id: u64) {
        if let Some(closed) = self.forget(id) {
            // Without an answer the host has gone, and its ports with it, or is in trouble that it tells itself.
            let _ = timeout(CLOSE, closed).await;
        }
        lock(&self.state).closing.remove(&id);
    }

    fn forget(&self, id: u64) -> Option<oneshot::Receiver<()>> {
        let mut state = lock(&self.state);
        state.ports.remove(&id)?;
        let host = state.host.as_ref()?;
        host.send(ToHost::Close { id }).ok()?;
        let (closing, closed) = oneshot::channel();
        state.closing.insert(id, closing);
        Some(closed)
    }

    /// The port with this id.
    pub(crate) fn get(&self, id: u64) -> Option<Published> {
        lock(&self.state).ports.get(&id).map(|entry| entry.port.clone())
    }

    /// From now on containers see the addresses of clients, where that is possible.
    pub(crate) fn keep_clients(&self) {
        self.keeps_clients.store(true, Ordering::Relaxed);
    }

    /// Connects to the container of a TCP port, for a client.
    pub(crate) async fn connect(&self, id: u64, client: SocketAddr) -> io::Result<TcpStream> {
        let (target, loses_clients) = lock(&self.state)
            .ports
            .get(&id)
            .map(|entry| (entry.port.target, entry.loses_clients))
            .ok_or(io::ErrorKind::NotConnected)?;
        let kept = (self.keeps_clients.load(Ordering::Relaxed) && !loses_clients)
            .then(|| client_address::keepable(client, target))
            .flatten();
        if let Some((client, target)) = kept {
            match timeout(IN_NAME, client_address::connect(client, target)).await {
                Ok(Ok(stream)) => return Ok(stream),
                // That is the container's word.
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(error),
                // A container of several networks may answer by way of another than this one. From now on its connections come
                // from where it must answer.
                failed => {
                    crate::console::notice!(
                        "{target} does not see the addresses of clients of its published port: {}",
                        failed.map_or_else(
                            |_| "its answers do not come back".to_owned(),
                            |result| { result.err().map(|error| error.to_string()).unwrap_or_default() }
                        )
                    );
                    if let Some(entry) = lock(&self.state).ports.get_mut(&id) {
                        entry.loses_clients = true;
                    }
                }
            }
        }
        timeout(CONNECT, TcpStream::connect(target)).await?
    }

    /// Whether Docker publishes a port that the guest itself listens on at this address.
    fn has_listener(&self, transport: protocol::forward::Transport, address: SocketAddr) -> bool {
        lock(&self.state).ports.values().any(|entry| {
            entry.port.by == PublishedBy::Docker
                && entry.port.transport == transport
                && entry.port.host.port() == address.port()
                && entry.local.is_some()
        })
    }

    /// The host has called: it is told of all ports, and the connection before loses its turn.
    pub(crate) fn take_over(&self) -> HostTurn {
        let (host, messages) = mpsc::unbounded_channel();
        let mut state = lock(&self.state);
        for (&id, entry) in &state.ports {
            let port = entry.port.clone();
            // The receiver is in our hands.
            let _ = host.send(ToHost::Listen { id, port });
        }
        // The host of before has given all up.
        state.closing.clear();
        state.host = Some(host);
        HostTurn { messages }
    }

    /// What the host says.
    pub(crate) fn hear(&self, message: ToGuest) {
        match message {
            ToGuest::Answer { id, refused } => self.answered(id, refused),
            ToGuest::HostNetwork { used } => {
                self.host_network.send_replace(used);
            }
        }
    }

    fn answered(&self, id: u64, refused: Option<String>) {
        let mut state = lock(&self.state);
        if let Some(closing) = state.closing.remove(&id) {
            let _ = closing.send(());
            return;
        }
        let Some(entry) = state.ports.get_mut(&id) else {
            return;
        };
        let asking = entry.asking.take();
        drop(state);
        match (asking, refused) {
            (Some(asking), refused) => {
                let _ = asking.send(refused);
            }
            // It was there before and the host has called anew.
            (None, Some(refused)) => self.warn(format!(
                "a published port is not reachable any more: {refused}. Restart its container when the port is free"
            )),
            (None, None) => {}
        }
    }

    fn warn(&self, message: String) {
        crate::console::warning!("{message}");
        self.events.send(GuestEvent::Warning { message });
    }
}

#[cfg(test)]
mod tests {
    use protocol::forward::Transport;

    use super::*;
    use crate::host_link::HostLink;

    fn port(number: u16) -> Published {
        Published {
            transport: Transport::Udp,
            host: SocketAddr::from(([0, 0, 0, 0], number)),
            target: SocketAddr::from(([172, 17, 0, 2], 80)),
            by: PublishedBy::Docker,
        }
    }

    fn ports() -> Arc<Ports> {
        let (events, _link) = HostLink::new();
        Ports::new(events)
    }

    fn id_of(message: Option<ToHost>) -> u64 {
        match message {
            Some(ToHost::Listen { id, .. } | ToHost::Close { id }) => id,
            None => panic!("the host was told nothing"),
        }
    }

    #[tokio::test]
    async fn a_port_waits_for_the_host_and_takes_its_answer() {
        let ports = ports();
        let publishing = tokio::spawn({
            let ports = ports.clone();
            async move { ports.publish(port(80)).await }
        });
        tokio::task::yield_now().await;
        let mut host = ports.take_over();
        let id = id_of(host.messages.recv().await);
        ports.hear(ToGuest::Answer { id, refused: None });
        assert_eq!(publishing.await.unwrap(), Ok(id));
        assert_eq!(ports.get(id), Some(port(80)));

        let closing = tokio::spawn({
            let ports = ports.clone();
            async move { ports.close(id).await }
        });
        assert_eq!(host.messages.recv().await, Some(ToHost::Close { id }));
        assert!(!closing.is_finished());
        ports.hear(ToGuest::Answer { id, refused: None });
        closing.await.unwrap();
        assert_eq!(ports.get(id), None);
    }

    #[tokio::test]
    async fn a_refusal_is_passed_on_and_nothing_stays() {
        let ports = ports();
        let mut host = ports.take_over();
        let publishing = tokio::spawn({
            let ports = ports.clone();
            async move { ports.publish(port(80)).await }
        });
        let id = id_of(host.messages.recv().await);
        let refused = Some("listen udp4 0.0.0.0:80: bind: permission denied".to_owned());
        ports.hear(ToGuest::Answer {
            id,
            refused: refused.clone(),
        });
        assert_eq!(publishing.await.unwrap().err(), refused);
        assert_eq!(ports.get(id), None);
    }

    #[tokio::test]
    async fn a_host_that_calls_anew_is_told_everything_and_nobody_waits_for_the_one_before() {
        let ports = ports();
        let mut host = ports.take_over();
        let publishing = tokio::spawn({
            let ports = ports.clone();
            async move { ports.publish(port(80)).await }
        });
        let id = id_of(host.messages.recv().await);
        ports.hear(ToGuest::Answer { id, refused: None });
        publishing.await.unwrap().unwrap();
        let mut next = ports.take_over();
        assert_eq!(id_of(next.messages.recv().await), id);
        assert_eq!(host.messages.recv().await, None, "its turn is over");

        let closing = tokio::spawn({
            let ports = ports.clone();
            async move { ports.close(id).await }
        });
        assert_eq!(next.messages.recv().await, Some(ToHost::Close { id }));
        let _last = ports.take_over();
        closing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_host_publishing_fails_in_time() {
        let error = ports().publish(port(80)).await.unwrap_err();
        assert!(error.contains("the host did not answer"), "{error}");
    }
}
