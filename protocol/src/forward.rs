//! Published ports of containers, forwarded from the host.
//!
//! On [`crate::ports::PUBLISH`] the guest tells which ports of the host its containers want and the host answers whether they
//! can have them; the host calls, and a call takes over from the one before with everything told anew. For each connection,
//! and for each peer that sends datagrams, the host opens a stream to [`crate::ports::FORWARD`], names the published port in
//! a [`StreamHello`], and both sides send pieces from then on ([`carry`]).
//!
//! A stream that ends without [`Piece::End`] was cut, and what it carries is cut too: a client must not take half an answer
//! for a whole one because the machine died.

mod carry;
mod piece;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use carry::{CarryEnd, carry};
pub use piece::{MAX_PIECE, Piece, PieceBuffer, PieceReader, write_end, write_piece};

/// A transport protocol whose ports can be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP: each connection becomes a stream.
    Tcp,
    /// UDP: each peer becomes a stream, and each datagram a piece.
    Udp,
}

impl Transport {
    /// As Docker writes it.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A port of the host that something in the guest is to be reached by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Published {
    /// The transport protocol.
    pub transport: Transport,
    /// The address of the host, which may be the unspecified one.
    pub host: SocketAddr,
    /// Where in the guest it leads: an address that the guest can connect to.
    pub target: SocketAddr,
    /// Why it is published.
    pub by: PublishedBy,
}

/// Why a port is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishedBy {
    /// Docker publishes it for a container (`-p`).
    Docker,
    /// A program in a container with the host's network listens there.
    HostNetwork,
}

/// What the guest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "publish", rename_all = "snake_case")]
pub enum ToHost {
    /// Listen. Answered.
    Listen {
        /// Names the published port from now on; never given twice in a guest's life.
        id: u64,
        /// What to listen on.
        port: Published,
    },
    /// Listen no more. Answered when the port is free. An unknown id is no error.
    Close {
        /// Which.
        id: u64,
    },
}

/// What the host says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "publish", rename_all = "snake_case")]
pub enum ToGuest {
    /// The answer to the request with this id.
    Answer {
        /// Which.
        id: u64,
        /// Why not, in the words of Go's `net` package, which Docker's users know; none when it is done.
        refused: Option<String>,
    },
    /// Whether containers with the host's network are running, so that what listens in the guest is to be published.
    HostNetwork {
        /// Whether there are any.
        used: bool,
    },
}

/// The first frame on a stream to [`crate::ports::FORWARD`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamHello {
    /// The published port.
    pub id: u64,
    /// Who connected to it or sends to it.
    pub client: SocketAddr,
}

/// Why a host cannot listen, as Go's `net` package words it: `listen tcp4 0.0.0.0:80: bind: address already in use`.
pub fn listen_error(transport: Transport, address: SocketAddr, reason: &str) -> String {
    let family = match address.ip() {
        IpAddr::V4(_) => 4,
        IpAddr::V6(_) => 6,
    };
    format!("listen {transport}{family} {address}: bind: {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_stable_names_on_the_wire() {
        let listen = ToHost::Listen {
            id: 7,
            port: Published {
                transport: Transport::Udp,
                host: "[::]:53".parse().unwrap(),
                target: "172.17.0.2:53".parse().unwrap(),
                by: PublishedBy::Docker,
            },
        };
        assert_eq!(
            serde_json::to_string(&listen).unwrap(),
            r#"{"publish":"listen","id":7,"port":{"transport":"udp","host":"[::]:53","target":"172.17.0.2:53","by":"docker"}}"#
        );
    }

    #[test]
    fn errors_read_as_docker_users_know_them() {
        assert_eq!(
            listen_error(
                Transport::Tcp,
                "0.0.0.0:80".parse().unwrap(),
                "address already in use"
            ),
            "listen tcp4 0.0.0.0:80: bind: address already in use"
        );
        assert_eq!(
            listen_error(Transport::Udp, "[::1]:53".parse().unwrap(), "permission denied"),
            "listen udp6 [::1]:53: bind: permission denied"
        );
    }
}
