//! Containers with the host's network (`--network host`): their network is the guest's, so what listens in the guest is
//! published under the same port.
//!
//! The kernel tells nobody that a program has begun to listen, so its list is looked at, and only while there are such
//! containers.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use protocol::forward::{Published, PublishedBy};
use tokio::sync::watch;

use super::Ports;
use super::listening::{self, Listening};
use crate::console::warning;

/// How often the list is looked at. Docker's own event of a container's start is about as far from its first connection.
const EVERY: Duration = Duration::from_millis(100);

/// What became of a port that somebody listens on.
enum Fate {
    Published(u64),
    /// Told once.
    Refused,
}

/// Publishes what listens in the guest, while `used` says so.
pub(super) async fn follow(ports: Arc<Ports>, mut used: watch::Receiver<bool>) {
    let mut known: HashMap<Listening, Fate> = HashMap::new();
    loop {
        let wanted = if *used.borrow_and_update() {
            match listening::now() {
                Ok(listening) => on_host(&ports, listening),
                Err(error) => {
                    warning!("cannot see what listens in the guest: {error}");
                    BTreeSet::new()
                }
            }
        } else {
            BTreeSet::new()
        };
        update(&ports, &mut known, wanted).await;
        let idle = !*used.borrow() && known.is_empty();
        let changed = if idle {
            used.changed().await
        } else {
            tokio::time::timeout(EVERY, used.changed())
                .await
                .unwrap_or(Ok(()))
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn update(ports: &Ports, known: &mut HashMap<Listening, Fate>, wanted: BTreeSet<Listening>) {
    let gone: Vec<_> = known
        .keys()
        .filter(|port| !wanted.contains(port))
        .copied()
        .collect();
    for port in gone {
        if let Some(Fate::Published(id)) = known.remove(&port) {
            ports.close(id).await;
        }
    }
    for port in wanted {
        if known.contains_key(&port) {
            continue;
        }
        let published = ports.publish(Published {
            transport: port.transport,
            host: port.address,
            target: SocketAddr::new(target(port.address.ip()), port.address.port()),
            by: PublishedBy::HostNetwork,
        });
        let fate = match published.await {
            Ok(id) => Fate::Published(id),
            Err(refused) => {
                ports.warn(format!(
                    "a port of a container with the host's network is not reachable on the host: {refused}"
                ));
                Fate::Refused
            }
        };
        known.insert(port, fate);
    }
}

/// What of `listening` the host is to listen on. A socket on `::` takes IPv4 as well unless it was told not to, which the
/// kernel's list does not say.
fn on_host(ports: &Ports, listening: BTreeSet<Listening>) -> BTreeSet<Listening> {
    let mut wanted: BTreeSet<_> = listening
        .into_iter()
        .filter(|port| !ports.has_listener(port.transport, port.address))
        .collect();
    let both: Vec<_> = wanted
        .iter()
        .filter(|port| port.address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED))
        .map(|port| Listening {
            address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, port.address.port())),
            ..*port
        })
        .collect();
    wanted.extend(both);
    wanted
}

/// Where in the guest `ip` is reached.
fn target(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}
