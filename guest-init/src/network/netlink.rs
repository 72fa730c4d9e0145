//! The three rtnetlink requests guest-init needs, and a socket to make them on (rtnetlink(7), netlink(7)).

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The type of answers (`NLMSG_ERROR`); an error of 0 acknowledges.
const ERROR: u16 = 2;
/// The route's gateway is reachable although no address covers it (`RTNH_F_ONLINK`, linux/rtnetlink.h).
const ONLINK: u32 = 4;
/// Configured by the administrator, for addresses that are ready at once: no duplicate detection, there is nobody else.
const NO_DAD: u8 = libc::IFA_F_NODAD as u8;

/// A request, all but its sequence number and length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    kind: u16,
    flags: u16,
    payload: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: libc::c_int, fixed: &[u8]) -> Request {
        let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        Request {
            kind,
            // All flags are within 16 bits.
            flags: flags as u16,
            payload: fixed.to_vec(),
        }
    }

    /// Appends a `struct rtattr`, padded to four bytes.
    fn attribute(mut self, kind: u16, value: &[u8]) -> Request {
        // Values are addresses and numbers of at most 16 bytes.
        let length = 4 + value.len() as u16;
        self.payload.extend_from_slice(&length.to_ne_bytes());
        self.payload.extend_from_slice(&kind.to_ne_bytes());
        self.payload.extend_from_slice(value);
        self.payload.resize(self.payload.len().next_multiple_of(4), 0);
        self
    }

    fn encode(&self, sequence: u32) -> Vec<u8> {
        let length = HEADER + self.payload.len();
        let mut out = Vec::with_capacity(length);
        // A request is a few dozen bytes.
        out.extend_from_slice(&(length as u32).to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&self.flags.to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        // Port 0: the kernel is meant.
        out.extend_from_slice(&0_u32.to_ne_bytes());
        out.extend_from_slice(&self.payload);
        out
    }
}

/// Brings a device up, with a new MTU when one is given.
pub(super) fn link_up(index: u32, mtu: Option<u32>) -> Request {
    // struct ifinfomsg: family, pad, type u16, index i32, flags u32, mask of flags to change u32.
    let up = libc::IFF_UP as u32;
    let mut fixed = vec![libc::AF_UNSPEC as u8, 0, 0, 0];
    for field in [index, up, up] {
        fixed.extend_from_slice(&field.to_ne_bytes());
    }
    let request = Request::new(libc::RTM_NEWLINK, 0, &fixed);
    match mtu {
        Some(mtu) => request.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes()),
        None => request,
    }
}

/// Adds an address to a device; one that is there already is kept.
pub(super) fn add_address(index: u32, address: IpAddr, prefix: u8) -> Request {
    // struct ifaddrmsg: family, prefix length, flags, scope, index u32.
    let flags = if address.is_ipv6() { NO_DAD } else { 0 };
    let mut fixed = vec![family(address), prefix, flags, libc::RT_SCOPE_UNIVERSE];
    fixed.extend_from_slice(&index.to_ne_bytes());
    let bytes = octets(address);
    let request = Request::new(
        libc::RTM_NEWADDR,
        libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
        &fixed,
    )
    .attribute(libc::IFA_LOCAL, &bytes)
    .attribute(libc::IFA_ADDRESS, &bytes);
    match address {
        // Without one, programs that ask for the network's broadcast address get 0.0.0.0.
        IpAddr::V4(v4) if prefix < 31 => {
            let broadcast = v4.to_bits() | (u32::MAX >> prefix);
            request.attribute(libc::IFA_BROADCAST, &broadcast.to_be_bytes())
        }
        _ => request,
    }
}

/// Routes everything by way of `gateway`. `on_link` says that an address of the device covers it.
pub(super) fn add_default_route(index: u32, gateway: IpAddr, on_link: bool) -> Request {
    // struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags u32.
    let mut fixed = vec![
        family(gateway),
        0,
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_STATIC,
        libc::RT_SCOPE_UNIVERSE,
        libc::RTN_UNICAST,
    ];
    let flags = if on_link { 0 } else { ONLINK };
    fixed.extend_from_slice(&flags.to_ne_bytes());
    Request::new(
        libc::RTM_NEWROUTE,
        libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
        &fixed,
    )
    .attribute(libc::RTA_GATEWAY, &octets(gateway))
    .attribute(libc::RTA_OIF, &index.to_ne_bytes())
}

fn family(address: IpAddr) -> u8 {
    // Both constants are small.
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A netlink socket to the kernel's routing part.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens one.
    pub(super) fn open() -> io::Result<Socket> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is protocol 0.
            None,
        )?;
        Ok(Socket { fd, sequence: 0 })
    }

    /// Sends one request and waits for the kernel's answer, which comes before the call to send returns.
    pub(super) fn request(&mut self, request: &Request) -> io::Result<()> {
        self.sequence += 1;
        let bytes = request.encode(self.sequence);
        if send(&self.fd, &bytes, SendFlags::empty())? != bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        loop {
            let mut answer = [0; 4096];
            let (_, length) = recv(&self.fd, &mut answer, RecvFlags::empty())?;
            let answer = answer
                .get(..length)
                .ok_or_else(|| malformed("is longer than the buffer"))?;
            if let Some(result) = parse_answer(answer, self.sequence)? {
                return result;
            }
        }
    }
}

/// Reads one datagram: the result of request `sequence`, or nothing when it speaks of another.
fn parse_answer(bytes: &[u8], sequence: u32) -> io::Result<Option<io::Result<()>>> {
    let header = bytes.get(..HEADER).ok_or_else(|| malformed("has no header"))?;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let answered = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
    if answered != sequence || kind != ERROR {
        return Ok(None);
    }
    let code = bytes
        .get(HEADER..HEADER + 4)
        .ok_or_else(|| malformed("has no error code"))?;
    let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
    Ok(Some(match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the kernel's netlink answer {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn an_ipv4_address_is_encoded_as_the_kernel_reads_it() {
        let bytes = add_address(2, "192.168.127.2".parse().unwrap(), 24).encode(7);
        #[rustfmt::skip]
        assert_eq!(bytes, [
            48, 0, 0, 0,  20, 0,  5, 5,  7, 0, 0, 0,  0, 0, 0, 0, // header: NEWADDR, REQUEST|ACK|REPLACE|CREATE
            2, 24, 0, 0,  2, 0, 0, 0,                             // ifaddrmsg
            8, 0, 2, 0,  192, 168, 127, 2,                        // IFA_LOCAL
            8, 0, 1, 0,  192, 168, 127, 2,                        // IFA_ADDRESS
            8, 0, 4, 0,  192, 168, 127, 255,                      // IFA_BROADCAST
        ]);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_default_route_is_encoded_as_the_kernel_reads_it() {
        let bytes = add_default_route(3, "10.0.0.1".parse().unwrap(), true).encode(1);
        #[rustfmt::skip]
        assert_eq!(bytes, [
            44, 0, 0, 0,  24, 0,  5, 5,  1, 0, 0, 0,  0, 0, 0, 0,
            2, 0, 0, 0, 254, 4, 0, 1,  0, 0, 0, 0,
            8, 0, 5, 0,  10, 0, 0, 1,
            8, 0, 4, 0,  3, 0, 0, 0,
        ]);
    }

    #[test]
    fn lengths_are_right_for_every_kind_of_request() {
        for request in [
            link_up(1, None),
            link_up(1, Some(65520)),
            add_address(1, "fd00::2".parse().unwrap(), 64),
            add_default_route(1, "fe80::1".parse().unwrap(), false),
        ] {
            let bytes = request.encode(1);
            assert_eq!(bytes.len() % 4, 0);
            assert_eq!(bytes[..4], u32::try_from(bytes.len()).unwrap().to_ne_bytes());
        }
    }

    #[test]
    fn answers_of_other_requests_are_passed_over_and_errors_kept() {
        let answer = |sequence: u32, code: i32| {
            let mut request = Request::new(ERROR, 0, &code.to_ne_bytes());
            request.flags = 0;
            request.encode(sequence)
        };
        assert!(parse_answer(&answer(1, 0), 2).unwrap().is_none());
        assert!(parse_answer(&answer(2, 0), 2).unwrap().unwrap().is_ok());
        let error = parse_answer(&answer(2, -libc::EEXIST), 2)
            .unwrap()
            .unwrap()
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        assert!(parse_answer(&[0; 3], 1).is_err());
        assert!(parse_answer(&answer(1, 0)[..HEADER], 1).is_err());
    }

    #[test]
    fn the_kernel_understands_us() {
        // Loopback is up on every machine that runs tests; asking for a device that does not exist shows that errors
        // come back. Neither changes anything, and without privileges the kernel says so.
        let mut socket = Socket::open().unwrap();
        let error = socket.request(&link_up(u32::MAX >> 1, None)).unwrap_err();
        assert!(
            [libc::ENODEV, libc::EPERM].contains(&error.raw_os_error().unwrap()),
            "{error}"
        );
    }
}
