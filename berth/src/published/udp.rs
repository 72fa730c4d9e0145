//! A published UDP port: each peer becomes a stream to the guest, where it has a socket of its own, so that answers find
//! their way back.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use protocol::forward::{Piece, PieceReader, write_piece};
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Carrier;
use crate::exit::chain;

/// How long a peer may be silent, and be told nothing, before it is forgotten: what Docker's own proxy gives it.
const IDLE: Duration = Duration::from_secs(90);
/// Peers of one port at once. The one that has been silent longest goes when another comes.
const MAX_PEERS: usize = 1024;
/// Datagrams of one peer that wait for the guest. What comes while they do is lost, as it is in any full queue.
const WAITING: usize = 256;
/// The largest datagram there is.
const DATAGRAM: usize = 64 * 1024;

struct Peer {
    datagrams: mpsc::Sender<Vec<u8>>,
    last: Instant,
    /// Tells this from an earlier one with the same address.
    number: u64,
}

/// Serves `socket` until `stop` says so, then frees the port and tells `freed`.
pub(super) async fn serve(
    socket: UdpSocket,
    carrier: Carrier,
    mut stop: oneshot::Receiver<()>,
    freed: oneshot::Sender<()>,
) {
    let socket = Arc::new(socket);
    let mut peers: HashMap<SocketAddr, Peer> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    let mut last_number = 0;
    loop {
        tokio::select! {
            // The sender's end counts too.
            _ = &mut stop => break,
            received = socket.recv_from(&mut buffer) => match received {
                Ok((length, address)) => {
                    let datagram = buffer[..length].to_vec();
                    let now = Instant::now();
                    if let Some(peer) = peers.get_mut(&address) {
                        peer.last = now;
                        // Full: the datagram is lost. Ended: it is lost as well, and the next one finds a new peer.
                        let _ = peer.datagrams.try_send(datagram);
                        continue;
                    }
                    // The guest has no room for more.
                    let Ok(permit) = carrier.streams.clone().try_acquire_owned() else { continue };
                    if peers.len() >= MAX_PEERS {
                        forget_oldest(&mut peers);
                    }
                    let (datagrams, waiting) = mpsc::channel(WAITING);
                    let _ = datagrams.try_send(datagram);
                    last_number += 1;
                    let number = last_number;
                    peers.insert(address, Peer { datagrams, last: now, number });
                    let (socket, carrier) = (Arc::clone(&socket), carrier.clone());
                    tasks.spawn(async move {
                        peer(&socket, address, waiting, &carrier, permit).await;
                        (address, number)
                    });
                }
                // What a peer's host says of an answer that nobody waited for.
                Err(error) => tracing::debug!(%error, "a published UDP port"),
            },
            Some(ended) = tasks.join_next() => match ended {
                Ok((address, number)) => {
                    if peers.get(&address).is_some_and(|peer| peer.number == number) {
                        peers.remove(&address);
                    }
                }
                Err(error) => tracing::error!(%error, "a peer of a published UDP port broke"),
            }
        }
    }
    // They all have the socket.
    tasks.shutdown().await;
    drop(socket);
    // Nobody may be waiting.
    let _ = freed.send(());
}

/// Its task ends when its datagrams do.
fn forget_oldest(peers: &mut HashMap<SocketAddr, Peer>) {
    if let Some(oldest) = peers
        .iter()
        .min_by_key(|(_, peer)| peer.last)
        .map(|(&address, _)| address)
    {
        peers.remove(&oldest);
    }
}

/// Carries one peer's datagrams, until it has been silent for long or the guest ends it.
async fn peer(
    socket: &UdpSocket,
    address: SocketAddr,
    mut datagrams: mpsc::Receiver<Vec<u8>>,
    carrier: &Carrier,
    _permit: OwnedSemaphorePermit,
) {
    let _counted = carrier.count();
    let guest = match carrier.open(address).await {
        Ok(guest) => guest,
        Err(error) => {
            tracing::warn!("a peer of a published UDP port: {}", chain(&error.into()));
            return;
        }
    };
    let (from_guest, mut to_guest) = tokio::io::split(guest);
    let (active, mut activity) = mpsc::channel::<()>(1);
    let sending = async {
        while let Some(datagram) = datagrams.recv().await {
            // Full means that it is known.
            let _ = active.try_send(());
            write_piece(&mut to_guest, &datagram).await?;
        }
        Ok::<_, io::Error>(())
    };
    let receiving = async {
        let mut reader = PieceReader::new(from_guest);
        while let Piece::Data(datagram) = reader.next().await? {
            let _ = active.try_send(());
            // An answer that cannot be sent is lost, as datagrams are.
            let _ = socket.send_to(datagram, address).await;
        }
        Ok::<_, io::Error>(())
    };
    let silent = async {
        let mut until = Instant::now() + IDLE;
        loop {
            tokio::select! {
                _ = activity.recv() => until = Instant::now() + IDLE,
                () = sleep_until(until) => return,
            }
        }
    };
    let ended = tokio::select! {
        sent = sending => sent,
        received = receiving => received,
        () = silent => Ok(()),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %address, "a peer of a published UDP port");
    }
}
