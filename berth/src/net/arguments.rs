//! passt's command line.

use std::os::fd::RawFd;

use super::{GATEWAY, GUEST_ADDRESS, PREFIX, PasstProgram};

/// The arguments for one connection on descriptor `fd`.
///
/// All addresses are given, so that they do not depend on the host's; the guest knows them, so nothing is announced. The
/// gateway standing for the host's loopback is passt's default. Nothing is forwarded inwards: ports are berth's business. Nor
/// are questions for names, which do not come this way.
pub(super) fn arguments(program: &PasstProgram, fd: RawFd, mtu: u32) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["--foreground", "--ipv4-only"]);
    if program.wants_stderr {
        add(&["--stderr"]);
    }
    add(&["--fd", &fd.to_string()]);
    add(&["--address", &GUEST_ADDRESS.to_string()]);
    add(&["--netmask", &PREFIX.to_string()]);
    add(&["--gateway", &GATEWAY.to_string()]);
    add(&["--mtu", &mtu.to_string()]);
    add(&["--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra"]);
    add(&["--tcp-ports", "none", "--udp-ports", "none"]);
    arguments
}
