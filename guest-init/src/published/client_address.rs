//! Connections to containers that come from the address of the client on the host's network, so that a container's log and
//! its rules see who it is.
//!
//! The guest does not have these addresses, so three things make it work: the socket may be bound to a foreign address
//! (`IP_TRANSPARENT`, ip(7)); the connection's packets carry a mark, which the packet filter remembers; and what comes back
//! is given another mark, by which a rule of routing delivers it here instead of sending it out.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use anyhow::{Context, ensure};
use tokio::net::{TcpSocket, TcpStream};

use crate::reaper::Reaper;
use crate::tool;

/// The mark of packets that go to a container in a client's name.
const OUT: u32 = 0x6265_7201;

/// What remembers that mark, and marks the answers otherwise.
const RULES: &str = "\
table ip berth {
  chain out {
    type filter hook output priority mangle; policy accept;
    meta mark 0x62657201 ct mark set 0x62657202
  }
  chain back {
    type filter hook prerouting priority mangle; policy accept;
    ct direction reply ct mark 0x62657202 meta mark set 0x62657202
  }
}";
/// What delivers the answers here. The table's number is nobody else's; busybox knows numbers up to 1023.
const ROUTES: [&[&str]; 2] = [
    &["rule", "add", "fwmark", "0x62657202", "lookup", "627"],
    &["route", "add", "local", "default", "dev", "lo", "table", "627"],
];

/// Sets up what the connections need. They cannot be made without it.
pub(crate) async fn set_up(reaper: &Arc<Reaper>) -> anyhow::Result<()> {
    run(reaper, "nft", &[RULES]).await?;
    for arguments in ROUTES {
        run(reaper, "ip", arguments).await?;
    }
    Ok(())
}

async fn run(reaper: &Arc<Reaper>, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let done = tool::run(reaper, program, arguments)
        .await
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(done.status.success(), "{program}: {}", done.output);
    Ok(())
}

/// The client's and the container's address, where the client's can be kept: both of IPv4, and the client's an address out on
/// the network as the guest sees it. The loopback, and what is a network of containers here, is not.
pub(super) fn keepable(client: SocketAddr, target: SocketAddr) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let (SocketAddr::V4(client), SocketAddr::V4(target)) = (client, target) else {
        return None;
    };
    if client.ip().is_loopback() || client.ip().is_unspecified() || target.ip().is_loopback() {
        return None;
    }
    let to_client = source_towards(client)?;
    let to_container = source_towards(target)?;
    // The guest's own address, and that of the container's network.
    (to_client != to_container && to_client != IpAddr::V4(*client.ip())).then_some((client, target))
}

/// The address that the guest would send from, which tells the network that `to` is on.
fn source_towards(to: SocketAddrV4) -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Sends nothing.
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Connects to `target` as if from `client`.
pub(super) async fn connect(client: SocketAddrV4, target: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = bound(client).or_else(|error| match error.kind() {
        // Another connection to the same container has the port. Any other will do.
        io::ErrorKind::AddrInUse => bound(SocketAddrV4::new(*client.ip(), 0)),
        _ => Err(error),
    })?;
    socket.connect(target.into()).await
}

fn bound(client: SocketAddrV4) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    set(&socket, libc::SOL_IP, libc::IP_TRANSPARENT, 1)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_MARK, OUT)?;
    socket.bind(client.into())?;
    Ok(socket)
}

/// Sets an option whose value is an `int`.
fn set(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel reads four bytes of `value`, whose size
    // is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_and_other_families_keep_the_gateways_address() {
        let target = "172.17.0.2:80".parse().unwrap();
        for client in ["127.0.0.1:5000", "[::1]:5000", "[2001:db8::1]:5000", "0.0.0.0:1"] {
            assert_eq!(keepable(client.parse().unwrap(), target), None, "{client}");
        }
        let client = "192.0.2.9:5000".parse().unwrap();
        assert_eq!(keepable(client, "[fd00::2]:80".parse().unwrap()), None);
        assert_eq!(keepable(client, "127.0.0.1:80".parse().unwrap()), None);
    }
}
