//! Whether the host has a network, and when that changes: the kernel tells, nobody asks again and again.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Multicast groups of rtnetlink: IPv4 addresses and IPv4 routes.
const GROUPS: u32 = 0x10 | 0x40;

/// Tells of changes to the host's IPv4 addresses and routes.
#[derive(Debug)]
pub struct Routes(AsyncFd<OwnedFd>);

impl Routes {
    /// Begins to watch.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub fn watch() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // The default protocol of netlink is that of routes.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        // SAFETY: an owned descriptor always names the same open file, and closes it only when it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Routes(socket))
    }

    /// Waits for a change since the last call.
    ///
    /// # Errors
    /// When the kernel tells no more.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut any = false;
            loop {
                let mut message = [0; 4096];
                match rustix::net::recv(self.0.get_ref(), &mut message, RecvFlags::empty()) {
                    // What was changed is looked up; that something was is all that counts. So it is when messages were lost.
                    Ok(_) | Err(rustix::io::Errno::NOBUFS) => any = true,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if any {
                return Ok(());
            }
        }
    }
}

/// Whether the host has a default route for IPv4, which is what passt wants of a network.
pub(super) fn has_network() -> bool {
    fs::read_to_string("/proc/net/route").is_ok_and(|table| has_default(&table))
}

fn has_default(table: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        // Interface, destination, ..., mask.
        matches!(fields[..], [_, "00000000", _, _, _, _, _, "00000000", ..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_is_recognised() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let default = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        let local = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert!(has_default(&format!("{head}{local}{default}")));
        assert!(!has_default(&format!("{head}{local}")));
        assert!(!has_default(""));
    }

    #[tokio::test]
    async fn the_kernel_lets_us_watch() {
        Routes::watch().unwrap();
    }
}
