//! Keeping Docker's networks out of the way of the host's: what a container's network covers, it cannot reach on the host's.

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;

use super::{GATEWAY, PREFIX};

/// A network by its first address and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    first: Ipv4Addr,
    prefix: u8,
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

/// The network that Docker's default bridge has when nobody says otherwise.
pub const DEFAULT_BRIDGE: Subnet = Subnet::new(Ipv4Addr::new(172, 17, 0, 0), 16);
/// The network between the guest and its gateway.
pub const GUEST: Subnet = Subnet::new(GATEWAY, PREFIX);
/// A route this wide is a way to everywhere: a default route, or one of the halves that some VPNs make of it.
const WIDEST: u8 = 7;
/// The route leads nowhere (`RTF_REJECT`, linux/route.h).
const REJECT: u32 = 0x200;

impl Subnet {
    const fn new(address: Ipv4Addr, prefix: u8) -> Subnet {
        let mask = Subnet::mask(prefix);
        Subnet {
            first: Ipv4Addr::from_bits(address.to_bits() & mask),
            prefix,
        }
    }

    const fn mask(prefix: u8) -> u32 {
        match prefix {
            0 => 0,
            prefix => u32::MAX << (32 - prefix),
        }
    }

    /// Whether they have addresses in common.
    pub fn overlaps(self, other: Subnet) -> bool {
        let mask = Subnet::mask(self.prefix.min(other.prefix));
        self.first.to_bits() & mask == other.first.to_bits() & mask
    }

    /// Its first address for a host, as `bip` wants it.
    pub fn gateway(self) -> String {
        format!(
            "{}/{}",
            Ipv4Addr::from_bits(self.first.to_bits() | 1),
            self.prefix
        )
    }

    /// How long its prefix is.
    pub fn prefix(self) -> u8 {
        self.prefix
    }
}

/// The networks this host has routes to, other than default routes.
pub fn routes() -> Vec<Subnet> {
    fs::read_to_string("/proc/net/route")
        .map(|table| parse(&table))
        .unwrap_or_default()
}

fn parse(table: &str) -> Vec<Subnet> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, destination, _, flags, _, _, _, mask, ..] = fields[..] else {
            return None;
        };
        // As they are in memory.
        let number = |text| u32::from_str_radix(text, 16).ok();
        let destination = Ipv4Addr::from(number(destination)?.to_ne_bytes());
        let mask = Ipv4Addr::from(number(mask)?.to_ne_bytes()).to_bits();
        let prefix = u8::try_from(mask.leading_ones()).ok()?;
        let wanted = prefix > WIDEST
            && number(flags)? & REJECT == 0
            && !destination.is_loopback()
            && !destination.is_multicast()
            && !destination.is_link_local();
        wanted.then(|| Subnet::new(destination, prefix))
    };
    table.lines().skip(1).filter_map(route).collect()
}

/// The networks for Docker to take its own from, when its own choice would clash with one of `routes`: the same without those
/// that clash, and others when none is left. The first is for the default bridge.
pub fn pools(routes: &[Subnet]) -> Option<Vec<Subnet>> {
    let own = (16..32)
        .skip(1)
        .map(|second| Subnet::new(Ipv4Addr::new(172, second, 0, 0), 16));
    let small = (0..16).map(|part| Subnet::new(Ipv4Addr::new(192, 168, part * 16, 0), 20));
    let more = (208..224).map(|second| Subnet::new(Ipv4Addr::new(10, second, 0, 0), 16));
    let free = |pool: &Subnet| !pool.overlaps(GUEST) && !routes.iter().any(|route| route.overlaps(*pool));
    let dockers: Vec<Subnet> = own.chain(small).filter(|pool| !pool.overlaps(GUEST)).collect();
    if dockers.iter().all(free) {
        return None;
    }
    let mut left: Vec<Subnet> = dockers.into_iter().filter(free).collect();
    if left.len() < 4 {
        left.extend(more.filter(free));
    }
    (!left.is_empty()).then_some(left)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(text: &str) -> Subnet {
        let (address, prefix) = text.split_once('/').unwrap();
        Subnet::new(address.parse().unwrap(), prefix.parse().unwrap())
    }

    #[test]
    fn the_routing_table_is_read() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n\
                     tun0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                     *\t0000010A\t00000000\t0201\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                     eth0\t0000FEA9\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                     nonsense\n";
        assert_eq!(parse(table), [subnet("172.17.0.0/16")]);
    }

    #[test]
    fn networks_overlap_when_one_is_in_the_other() {
        assert!(subnet("172.16.0.0/12").overlaps(DEFAULT_BRIDGE));
        assert!(subnet("172.17.3.0/24").overlaps(DEFAULT_BRIDGE));
        assert!(!subnet("172.18.0.0/16").overlaps(DEFAULT_BRIDGE));
        assert!(subnet("192.168.0.0/16").overlaps(GUEST));
        assert!(!subnet("192.168.126.0/24").overlaps(GUEST));
        assert_eq!(subnet("172.18.0.0/16").gateway(), "172.18.0.1/16");
        assert_eq!(GUEST.to_string(), "192.168.127.0/24");
    }

    #[test]
    fn docker_chooses_for_itself_unless_that_clashes() {
        assert_eq!(pools(&[]), None);
        assert_eq!(pools(&[subnet("10.0.0.0/8"), subnet("192.168.127.0/24")]), None);
        let first = |routes: &[&str]| {
            let routes: Vec<_> = routes.iter().map(|text| subnet(text)).collect();
            pools(&routes).map(|pools| pools[0].to_string())
        };
        assert_eq!(first(&["172.17.0.0/16"]).unwrap(), "172.18.0.0/16");
        assert_eq!(first(&["172.20.7.0/24"]).unwrap(), "172.17.0.0/16");
        assert_eq!(first(&["172.16.0.0/12"]).unwrap(), "192.168.0.0/20");
        assert_eq!(
            first(&["172.16.0.0/12", "192.168.0.0/16"]).unwrap(),
            "10.208.0.0/16"
        );
        assert_eq!(first(&["172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/8"]), None);
    }

    proptest! {
        #[test]
        fn what_is_chosen_clashes_with_nothing(routes in proptest::collection::vec((any::<u32>(), 8u8..=32), 0..10)) {
            let routes: Vec<_> = routes
                .into_iter()
                // Near Docker's own.
                .map(|(bits, prefix)| Subnet::new(Ipv4Addr::from_bits(0xac10_0000 | bits & 0x1f_ffff), prefix))
                .collect();
            for pool in pools(&routes).unwrap_or_default() {
                prop_assert!(!pool.overlaps(GUEST));
                prop_assert!(!routes.iter().any(|route| route.overlaps(pool)));
            }
        }

        #[test]
        fn any_table_is_read(table in "(\n|\t|[0-9A-F]{8}|.){0,60}") {
            parse(&table);
        }
    }
}
