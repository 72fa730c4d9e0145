//! The machine's way out: passt, which turns the guest's Ethernet frames into the host user's own sockets.
//!
//! passt comes and goes (a host without a network, a crash, a new network), the machine's link does not: between the two
//! stands [`relay`], to which the engine connects once. [`service`] keeps passt running behind it. A host without passt or
//! without a network therefore never keeps a machine from starting, and the network works as soon as it can.

mod arguments;
pub mod ca_certificates;
mod frames;
mod program;
mod proxies;
mod relay;
mod routes;
mod service;
pub mod subnets;

use std::net::{IpAddr, Ipv4Addr};

use protocol::boot::NetworkConfig;

pub use program::{PasstProgram, find};
pub use proxies::{Proxies, is_proxy};
pub use routes::Routes;
pub use service::{NetworkState, Passt, PasstConfig};

/// The guest's address.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
/// The gateway, which stands for the host's loopback.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);
/// The name server, which is an address of the guest's own: its init answers there, with what the host says.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 3);
/// The length of the network's prefix.
pub const PREFIX: u8 = 24;
/// The guest's MAC address.
pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x62, 0x74, 0x68];
/// The largest packet unless the machine says otherwise, in bytes: the most that passt takes.
const DEFAULT_MTU: u32 = 65520;

/// Why the network could not be provided.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// There is no passt.
    #[error("passt was not found{place}; install it (Debian and Ubuntu: `sudo apt install passt`)")]
    NotFound {
        /// Where it was looked for, if the configuration says so.
        place: String,
    },
    /// passt could not be asked what it can do.
    #[error("cannot run {path} to see what it can do")]
    Unusable {
        /// The program.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The socket for the machine's network device could not be made.
    #[error("cannot listen for the machine's network device on {path}")]
    Listen {
        /// The socket.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host's routes cannot be watched.
    #[error("cannot watch the host's routes")]
    Routes(#[source] std::io::Error),
}

/// The guest's side of the network (`docs/seams.md`, "Network").
pub fn guest_network() -> NetworkConfig {
    NetworkConfig {
        addresses: vec![(IpAddr::V4(GUEST_ADDRESS), PREFIX)],
        gateways: vec![IpAddr::V4(GATEWAY)],
        dns: vec![IpAddr::V4(NAME_SERVER)],
        search: Vec::new(),
        mtu: DEFAULT_MTU,
    }
}

#[cfg(test)]
mod tests;
