//! The guest's network: loopback, `eth0` with the addresses the host chose, and default routes. No DHCP, no `ip`.

mod netlink;

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use protocol::boot::NetworkConfig;

use self::netlink::Socket;
use crate::sysctl;

/// The network device's name; without udev it keeps the kernel's.
const DEVICE: &str = "eth0";

/// Smallest MTU accepted from the host: what IPv4 asks of every link (RFC 791).
const MIN_MTU: u32 = 576;

/// Brings the loopback device up.
pub(crate) fn bring_up_loopback() -> anyhow::Result<()> {
    let index = index_of("lo")?;
    let mut socket = Socket::open().context("cannot open a netlink socket")?;
    socket
        .request(&netlink::link_up(index, None))
        .context("cannot bring the loopback device up")
}

/// Gives the guest an address of its own that every container can reach, for services in the guest. May be called again
/// with the same one.
pub(crate) fn add_own_address(address: IpAddr) -> anyhow::Result<()> {
    let index = index_of("lo")?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let mut socket = Socket::open().context("cannot open a netlink socket")?;
    socket
        .request(&netlink::add_address(index, address, whole))
        .with_context(|| format!("cannot take the address {address}"))
}

/// Gives `eth0` its addresses and routes. May be called again with the same configuration.
pub(crate) fn configure(config: &NetworkConfig) -> anyhow::Result<()> {
    check(config)?;
    let index = index_of(DEVICE)?;
    // The host chose the addresses: nothing is to be added to them by router advertisements.
    let accept_ra = format!("net/ipv6/conf/{DEVICE}/accept_ra");
    sysctl::apply(Path::new("/proc/sys"), &accept_ra, "0")
        .with_context(|| format!("cannot turn router advertisements off on {DEVICE}"))?;

    let mut socket = Socket::open().context("cannot open a netlink socket")?;
    socket
        .request(&netlink::link_up(index, Some(config.mtu)))
        .with_context(|| format!("cannot bring {DEVICE} up with an MTU of {}", config.mtu))?;
    for &(address, prefix) in &config.addresses {
        socket
            .request(&netlink::add_address(index, address, prefix))
            .with_context(|| format!("cannot give {DEVICE} the address {address}/{prefix}"))?;
    }
    for &gateway in &config.gateways {
        let on_link = config
            .addresses
            .iter()
            .any(|&(address, prefix)| same_network(address, gateway, prefix));
        socket
            .request(&netlink::add_default_route(index, gateway, on_link))
            .with_context(|| format!("cannot route by way of {gateway}"))?;
    }
    Ok(())
}

fn check(config: &NetworkConfig) -> anyhow::Result<()> {
    ensure!(
        config.mtu >= MIN_MTU,
        "an MTU of {} is below {MIN_MTU}",
        config.mtu
    );
    for (address, prefix) in &config.addresses {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        ensure!(
            *prefix <= longest,
            "the prefix length of {address}/{prefix} is over {longest}"
        );
    }
    for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        let gateways = config.gateways.iter().filter(|g| family(g)).count();
        ensure!(
            gateways <= 1,
            "there are {gateways} default gateways of one family"
        );
    }
    Ok(())
}

/// Whether both addresses agree in their first `prefix` bits.
fn same_network(a: IpAddr, b: IpAddr, prefix: u8) -> bool {
    let differing = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(a.to_bits() ^ b.to_bits()) << 96,
        (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() ^ b.to_bits(),
        _ => return false,
    };
    differing.leading_zeros() >= u32::from(prefix)
}

fn index_of(device: &str) -> anyhow::Result<u32> {
    let path = format!("/sys/class/net/{device}/ifindex");
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!("there is no network device {device} ({path}); does the machine have its network device?")
    })?;
    text.trim()
        .parse()
        .with_context(|| format!("{path} does not hold a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NetworkConfig {
        NetworkConfig {
            addresses: vec![("192.168.127.2".parse().unwrap(), 24)],
            gateways: vec!["192.168.127.1".parse().unwrap()],
            dns: vec![],
            search: vec![],
            mtu: 1500,
        }
    }

    #[test]
    fn networks_are_compared_by_prefix() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(same_network(ip("192.168.127.2"), ip("192.168.127.1"), 24));
        assert!(!same_network(ip("192.168.127.2"), ip("192.168.126.1"), 24));
        assert!(same_network(ip("192.168.127.2"), ip("10.0.0.1"), 0));
        assert!(same_network(ip("10.0.0.1"), ip("10.0.0.1"), 32));
        assert!(!same_network(ip("fe80::1"), ip("fd00::1"), 64));
        assert!(same_network(ip("fd00::1"), ip("fd00::2"), 64));
        assert!(!same_network(ip("fd00::1"), ip("10.0.0.1"), 0));
    }

    #[test]
    fn values_the_kernel_would_misread_are_refused() {
        assert!(check(&config()).is_ok());
        let mut long = config();
        long.addresses[0].1 = 33;
        assert!(check(&long).is_err());
        let mut two = config();
        two.gateways.push("192.168.127.9".parse().unwrap());
        assert!(check(&two).is_err());
        let mut small = config();
        small.mtu = 0;
        assert!(check(&small).is_err());
    }
}
