//! Questions that are answered without asking anybody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use protocol::dns::message::{A, AAAA, IN, NO_ERROR, Query};

use super::hosts::Hosts;
use crate::net::GATEWAY;

/// What this host is called in containers, as in Docker Desktop.
const HOST: [&str; 2] = ["host.docker.internal", "gateway.docker.internal"];

/// The answer, if this is such a question.
pub(super) fn answer(query: &Query, hosts: &Hosts) -> Option<Vec<u8>> {
    if query.class() != IN {
        return None;
    }
    let name = query.name();
    if HOST.contains(&name) {
        return Some(with(query, &[IpAddr::V4(GATEWAY)]));
    }
    // RFC 6761, section 6.3: whoever asks means itself, and no name server is to hear of it.
    if name == "localhost" || name.ends_with(".localhost") {
        return Some(with(
            query,
            &[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        ));
    }
    // As for the host's own programs, a name that is here has no other addresses; what else it has is not the file's matter.
    let addresses = hosts
        .addresses(name)
        .filter(|_| [A, AAAA].contains(&query.kind()))?;
    let mut seen_from_guest: Vec<IpAddr> = Vec::new();
    for address in addresses {
        let address = seen_from_the_guest(*address);
        if !seen_from_guest.contains(&address) {
            seen_from_guest.push(address);
        }
    }
    Some(with(query, &seen_from_guest))
}

/// What is the host itself for the host has another address in the guest.
fn seen_from_the_guest(address: IpAddr) -> IpAddr {
    if address.to_canonical().is_loopback() {
        IpAddr::V4(GATEWAY)
    } else {
        address
    }
}

/// Those of the addresses that are asked for.
fn with(query: &Query, addresses: &[IpAddr]) -> Vec<u8> {
    let records: Vec<Vec<u8>> = addresses
        .iter()
        .filter_map(|address| match (query.kind(), address) {
            (A, IpAddr::V4(v4)) => Some(v4.octets().to_vec()),
            (AAAA, IpAddr::V6(v6)) => Some(v6.octets().to_vec()),
            _ => None,
        })
        .collect();
    let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    query.answer(NO_ERROR, &records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::tests::{addresses, question};

    fn ask(name: &str, kind: u16) -> Option<Vec<String>> {
        let hosts = Hosts::parse(
            "127.0.0.1 localhost\n127.0.1.1 moor.example moor\n::1 moor.example six\n192.0.2.7 dev\n2001:db8::7 dev\n\
             0.0.0.0 ads.example\n",
        );
        let query = Query::parse(&question(1, name, kind)).unwrap();
        let answer = answer(&query, &hosts)?;
        assert!(query.is_answered_by(1, &answer));
        Some(addresses(&answer))
    }

    fn some(addresses: &[&str]) -> Option<Vec<String>> {
        Some(addresses.iter().map(|&address| address.into()).collect())
    }

    const TXT: u16 = 16;

    #[test]
    fn the_host_has_one_address_and_nothing_else() {
        for name in ["host.docker.internal", "GATEWAY.docker.Internal"] {
            assert_eq!(ask(name, A), some(&["192.168.127.1"]));
            assert_eq!(ask(name, AAAA), some(&[]));
            assert_eq!(ask(name, TXT), some(&[]));
        }
        assert_eq!(ask("docker.internal", A), None);
        assert_eq!(ask("x.host.docker.internal", A), None);
    }

    #[test]
    fn localhost_is_whoever_asks() {
        assert_eq!(ask("localhost", A), some(&["127.0.0.1"]));
        assert_eq!(ask("app.LOCALHOST", AAAA), some(&["::1"]));
        assert_eq!(ask("notlocalhost", A), None);
    }

    #[test]
    fn names_of_the_hosts_file_lead_where_they_lead_on_the_host() {
        assert_eq!(ask("dev", A), some(&["192.0.2.7"]));
        assert_eq!(ask("dev", AAAA), some(&["2001:db8::7"]));
        assert_eq!(ask("dev", TXT), None, "asked elsewhere");
        assert_eq!(ask("Moor.Example", A), some(&["192.168.127.1"]));
        assert_eq!(ask("moor.example", AAAA), some(&[]));
        assert_eq!(ask("six", A), some(&["192.168.127.1"]));
        assert_eq!(ask("ads.example", A), some(&["0.0.0.0"]));
        assert_eq!(ask("example", A), None);
    }
}
