//! What listens in the guest itself, from `/proc/net`: the kernel's own list, which needs no dockerd and no container.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use protocol::forward::Transport;

/// `TCP_LISTEN` of the kernel's `tcp_states.h`.
const LISTEN: u8 = 0x0a;
/// `TCP_CLOSE`, which a UDP socket that is not connected is in.
const UNCONNECTED: u8 = 0x07;
/// The first of the ports that the kernel gives to UDP sockets that only want to send.
const EPHEMERAL: u16 = 32768;

/// A port that a program listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Listening {
    pub(super) transport: Transport,
    pub(super) address: SocketAddr,
}

/// All that listens on an unspecified or loopback address. Other addresses of the guest mean nothing on the host.
pub(super) fn now() -> io::Result<BTreeSet<Listening>> {
    let mut all = BTreeSet::new();
    for (file, transport) in [
        ("/proc/net/tcp", Transport::Tcp),
        ("/proc/net/tcp6", Transport::Tcp),
        ("/proc/net/udp", Transport::Udp),
        ("/proc/net/udp6", Transport::Udp),
    ] {
        match std::fs::read_to_string(file) {
            Ok(text) => all.extend(parse(&text, transport)),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn parse(text: &str, transport: Transport) -> impl Iterator<Item = Listening> + '_ {
    text.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let address = address(fields.next()?)?;
        let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
        let wanted = match transport {
            Transport::Tcp => state == LISTEN,
            Transport::Udp => state == UNCONNECTED && address.port() < EPHEMERAL,
        };
        let ip = address.ip();
        (wanted && address.port() != 0 && (ip.is_unspecified() || ip.is_loopback()))
            .then_some(Listening { transport, address })
    })
}

/// An address as `/proc/net` has it: 32-bit words in the host's byte order, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        u32::from_str_radix(ip.get(at..at + 8)?, 16)
            .ok()
            .map(u32::to_ne_bytes)
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(at * 8)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_is_understood() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
                    0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
                    1: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
                    2: 0100007F:9C40 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0\n\
                    3: 0111A8C0:0051 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
                    4: nonsense\n";
        let found: Vec<_> = parse(text, Transport::Tcp)
            .map(|l| l.address.to_string())
            .collect();
        assert_eq!(found, ["0.0.0.0:8080", "127.0.0.1:80"]);
        let text = "head\n\
                    0: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0\n\
                    1: 00000000000000000000000000000000:9C40 00000000000000000000000000000000:0000 07 0\n";
        let found: Vec<_> = parse(text, Transport::Udp)
            .map(|l| l.address.to_string())
            .collect();
        assert_eq!(found, ["[::1]:53"]);
    }

    #[test]
    fn a_listener_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listening = Listening {
            transport: Transport::Tcp,
            address: listener.local_addr().unwrap(),
        };
        assert!(now().unwrap().contains(&listening));
        drop(listener);
        assert!(!now().unwrap().contains(&listening));
    }
}
