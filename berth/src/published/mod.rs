//! Published ports of containers, on the host: listened on, and each connection carried to the guest.
//!
//! The guest says which ports it wants ([`protocol::forward`]), when dockerd publishes them for a container or when a program
//! in a container with the host's network begins to listen. The answer goes back to dockerd before the container starts, so
//! a port that is taken fails `docker run` as it does natively.

mod keeper;
mod listen;
mod tcp;
mod udp;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::forward::{Published, StreamHello};
use protocol::frame::{self, FrameError};
use protocol::ports;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, oneshot, watch};

pub use keeper::{PortsKeeper, keep};

use crate::guest::{DialError, GuestDial};
use listen::Listener;

/// Connections and peers that are carried at once. The guest's vsock device has 4096 connections, and everything else needs
/// some of them too; more wait to be accepted.
const MAX_STREAMS: usize = 3000;
/// Ports that a guest may have. A range of all ports is 65535 listeners, which is more than most hosts give a process.
const MAX_PORTS: usize = 16 * 1024;

/// The published ports of one machine.
#[derive(Debug)]
pub struct PublishedPorts {
    ports: Mutex<BTreeMap<u64, Port>>,
    streams: Arc<Semaphore>,
    /// Whether containers with the host's network are running.
    host_network: watch::Sender<bool>,
    /// Counts changes.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Port {
    published: Published,
    connections: Arc<Connections>,
    /// None where the host has no such addresses, which is no error for the unspecified one.
    listener: Option<RunningListener>,
}

/// Dropping it makes it stop listening; its connections get a moment to end.
#[derive(Debug)]
struct RunningListener {
    stop: oneshot::Sender<()>,
    /// Tells when the port is free.
    free: oneshot::Receiver<()>,
}

/// How many connections there are and were.
#[derive(Debug, Default)]
struct Connections {
    open: AtomicU64,
    total: AtomicU64,
}

/// A published port, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// `tcp` or `udp`, the address on the host, where it leads in the guest, and why.
    #[serde(flatten)]
    pub published: Published,
    /// Whether the host listens. Where it has no IPv6 it does not listen on `::`, and nobody misses it.
    pub listening: bool,
    /// Connections, or peers that sent datagrams lately.
    pub open: u64,
    /// The same since the port was published.
    pub total: u64,
}

impl Default for PublishedPorts {
    fn default() -> Self {
        PublishedPorts {
            ports: Mutex::default(),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            host_network: watch::Sender::new(false),
            changes: watch::Sender::new(0),
        }
    }
}

impl PublishedPorts {
    /// All of them, in the order of protocol and address.
    pub fn list(&self) -> Vec<PortReport> {
        let mut list: Vec<_> = self
            .ports()
            .values()
            .map(|port| PortReport {
                published: port.published.clone(),
                listening: port.listener.is_some(),
                open: port.connections.open.load(Ordering::Relaxed),
                total: port.connections.total.load(Ordering::Relaxed),
            })
            .collect();
        list.sort_by_key(|report| {
            (
                report.published.host.port(),
                report.published.transport,
                report.published.host.ip(),
            )
        });
        list
    }

    /// A number that is another whenever the ports are others.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Says whether containers with the host's network are running: what they listen on is published then.
    pub fn set_host_network(&self, used: bool) {
        self.host_network
            .send_if_modified(|before| std::mem::replace(before, used) != used);
    }

    fn ports(&self) -> MutexGuard<'_, BTreeMap<u64, Port>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens on a port. Why not, in words for the user of `docker run`.
    fn listen(&self, id: u64, published: Published, dial: &GuestDial) -> Result<(), String> {
        {
            let ports = self.ports();
            if ports.contains_key(&id) {
                return Err(format!("the guest has given {id} to two published ports"));
            }
            if ports.len() >= MAX_PORTS {
                return Err(format!("berth publishes {MAX_PORTS} ports at most"));
            }
        }
        let connections = Arc::new(Connections::default());
        let carrier = Carrier {
            id,
            dial: dial.clone(),
            streams: Arc::clone(&self.streams),
            connections: Arc::clone(&connections),
        };
        let listener = listen::bind(published.transport, published.host)?.map(|listener| {
            let (stop, stopped) = oneshot::channel();
            let (freed, free) = oneshot::channel();
            match listener {
                Listener::Tcp(listener) => tokio::spawn(tcp::serve(listener, carrier, stopped, freed)),
                Listener::Udp(socket) => tokio::spawn(udp::serve(socket, carrier, stopped, freed)),
            };
            RunningListener { stop, free }
        });
        tracing::info!(transport = %published.transport, host = %published.host, target = %published.target,
            listening = listener.is_some(), "published a port");
        self.ports().insert(
            id,
            Port {
                published,
                connections,
                listener,
            },
        );
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Stops listening and returns when the port is free.
    async fn close(&self, id: u64) {
        let Some(port) = self.ports().remove(&id) else {
            return;
        };
        tracing::info!(transport = %port.published.transport, host = %port.published.host, "a port is not published any more");
        self.changes.send_modify(|count| *count += 1);
        if let Some(RunningListener { stop, free }) = port.listener {
            drop(stop);
            // An error means that the listener is gone, and so the port is free.
            let _ = free.await;
        }
    }

    async fn close_all(&self) {
        let ids: Vec<u64> = self.ports().keys().copied().collect();
        for id in ids {
            self.close(id).await;
        }
    }
}

/// Why a connection cannot be carried to the guest.
#[derive(Debug, thiserror::Error)]
enum CarryError {
    #[error("the guest cannot be reached")]
    Dial(#[from] DialError),
    #[error("the guest did not take a connection")]
    Hello(#[from] FrameError),
}

/// Opens streams to the guest for one published port.
#[derive(Debug, Clone)]
struct Carrier {
    id: u64,
    dial: GuestDial,
    streams: Arc<Semaphore>,
    connections: Arc<Connections>,
}

impl Carrier {
    /// A stream for `client`, on which pieces follow.
    async fn open(&self, client: SocketAddr) -> Result<UnixStream, CarryError> {
        let mut stream = self.dial.connect(ports::FORWARD).await?;
        let hello = StreamHello { id: self.id, client };
        frame::write_async(&mut stream, &hello).await?;
        Ok(stream)
    }

    /// Counts a connection for as long as what is returned lives.
    fn count(&self) -> Counted {
        self.connections.open.fetch_add(1, Ordering::Relaxed);
        self.connections.total.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(&self.connections))
    }
}

#[derive(Debug)]
struct Counted(Arc<Connections>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
