//! Listening on an address of the host, and why that cannot be done in the words of Docker's users.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use protocol::forward::{Transport, listen_error};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};

/// Connections that wait to be accepted; the kernel takes less where `net.core.somaxconn` says so.
const BACKLOG: u32 = 4096;
/// Bytes of datagrams that wait for the daemon: bursts are what UDP is used for.
const DATAGRAMS: usize = 1 << 20;
/// Where the kernel says which ports are the administrator's.
const FIRST_FREE_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// A socket that is bound.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Binds `address`; nothing when it is `::` on a host without IPv6, as Docker does not mind that either.
pub(super) fn bind(transport: Transport, address: SocketAddr) -> Result<Option<Listener>, String> {
    let bound = match transport {
        Transport::Tcp => tcp(address).map(Listener::Tcp),
        Transport::Udp => udp(address).map(Listener::Udp),
    };
    match bound {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && has_no_family(&error) => Ok(None),
        Err(error) => Err(listen_error(transport, address, &reason(&error, address.port()))),
    }
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        sockopt::set_ipv6_v6only(&socket, true)?;
        socket
    };
    // Connections of a listener before this one may still be ending.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(family, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    // As much as the kernel allows.
    let _ = sockopt::set_socket_recv_buffer_size(&socket, DATAGRAMS);
    net::bind(&socket, &address)?;
    UdpSocket::from_std(socket.into())
}

fn has_no_family(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
    )
}

/// Why, as Go says it, and what to do where that is not plain.
fn reason(error: &io::Error, port: u16) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::ADDRINUSE) => "address already in use".into(),
        Some(Errno::ADDRNOTAVAIL) => "cannot assign requested address".into(),
        Some(Errno::ACCESS) => {
            let first = std::fs::read_to_string(FIRST_FREE_PORT).ok();
            let first = first
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(1024_u16);
            if port < first {
                format!(
                    "permission denied: ports below {first} are the administrator's on this host; \
                     `sudo sysctl net.ipv4.ip_unprivileged_port_start={port}` allows this one"
                )
            } else {
                "permission denied".into()
            }
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_said_as_docker_says_it() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(
            bind(Transport::Tcp, address).unwrap_err(),
            format!("listen tcp4 {address}: bind: address already in use")
        );
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(
            bind(Transport::Udp, address).unwrap_err(),
            format!("listen udp4 {address}: bind: address already in use")
        );
    }

    #[tokio::test]
    async fn an_address_of_another_host_is_refused() {
        let error = bind(Transport::Tcp, "192.0.2.1:80".parse().unwrap()).unwrap_err();
        assert_eq!(
            error,
            "listen tcp4 192.0.2.1:80: bind: cannot assign requested address"
        );
    }

    #[test]
    fn a_port_of_the_administrator_comes_with_the_way_to_it() {
        let error = io::Error::from_raw_os_error(Errno::ACCESS.raw_os_error());
        // Containers often allow all ports.
        let first: u16 = std::fs::read_to_string(FIRST_FREE_PORT)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let said = reason(&error, 0);
        assert_eq!(said.contains("ip_unprivileged_port_start=0"), first > 0, "{said}");
        assert_eq!(reason(&error, 40000), "permission denied");
    }

    #[tokio::test]
    async fn both_families_can_have_a_port_at_once() {
        let Ok(Some(Listener::Tcp(v6))) = bind(Transport::Tcp, "[::]:0".parse().unwrap()) else {
            return; // A host without IPv6.
        };
        let port = v6.local_addr().unwrap().port();
        bind(Transport::Tcp, SocketAddr::from(([0, 0, 0, 0], port))).unwrap();
    }
}
