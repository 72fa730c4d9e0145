//! `/etc/resolv.conf`, as the C library reads it (resolv.conf(5)).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::Path;
use std::time::Duration;

use super::fresh::Fresh;

/// The most of the file that is read, in bytes.
const LIMIT: u64 = 64 << 10;
/// How many name servers the C library uses (`MAXNS`), and so this host's programs.
const MOST_SERVERS: usize = 3;
/// The most search domains that are handed on, and the most bytes of one.
const MOST_DOMAINS: usize = 32;
const LONGEST_DOMAIN: usize = 253;
/// The most the options can ask for.
const LONGEST_TIMEOUT: u64 = 30;
const MOST_ATTEMPTS: u32 = 5;

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// The name servers, in order. The one on this host when the file names none, which is where the C library looks then.
    pub servers: Vec<Server>,
    /// The search domains, in order.
    pub search: Vec<String>,
    /// How long a server may take.
    pub timeout: Duration,
    /// How often each is asked.
    pub attempts: u32,
    /// Whether to begin with another server each time.
    pub rotate: bool,
}

/// A name server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    address: IpAddr,
    /// The interface by which a link-local address is meant.
    scope: Option<String>,
}

impl ResolvConf {
    /// The one of this host as it is now.
    pub fn load(path: &Path) -> ResolvConf {
        ResolvConf::clone(&ResolvConf::fresh(path).get())
    }

    pub(super) fn fresh(path: &Path) -> Fresh<ResolvConf> {
        Fresh::new(path.to_owned(), LIMIT, ResolvConf::parse)
    }

    pub(super) fn parse(text: &str) -> ResolvConf {
        let mut conf = ResolvConf {
            servers: Vec::new(),
            search: Vec::new(),
            timeout: Duration::from_secs(5),
            attempts: 2,
            rotate: false,
        };
        for line in text.lines() {
            // A comment has its mark at the beginning, so these words are not found in one.
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let server = words.next().and_then(Server::parse);
                    conf.servers
                        .extend(server.filter(|_| conf.servers.len() < MOST_SERVERS));
                }
                // The last of either holds.
                Some("search") => conf.search = words.filter_map(domain).take(MOST_DOMAINS).collect(),
                Some("domain") => conf.search = words.take(1).filter_map(domain).collect(),
                Some("options") => words.for_each(|option| conf.set(option)),
                _ => {}
            }
        }
        if conf.servers.is_empty() {
            conf.servers.push(Server {
                address: Ipv4Addr::LOCALHOST.into(),
                scope: None,
            });
        }
        conf
    }

    fn set(&mut self, option: &str) {
        if option == "rotate" {
            self.rotate = true;
        } else if let Some(seconds) = value(option, "timeout:") {
            self.timeout = Duration::from_secs(seconds.clamp(1, LONGEST_TIMEOUT));
        } else if let Some(attempts) = value(option, "attempts:") {
            self.attempts = u32::try_from(attempts)
                .unwrap_or(MOST_ATTEMPTS)
                .clamp(1, MOST_ATTEMPTS);
        }
    }
}

impl Server {
    fn parse(text: &str) -> Option<Server> {
        let (address, scope) = match text.split_once('%') {
            Some((address, scope)) => (address, Some(scope.to_owned())),
            None => (text, None),
        };
        Some(Server {
            address: address.parse().ok()?,
            scope,
        })
    }

    /// Where to ask it. None when it is on an interface that is not there.
    pub(super) fn place(&self, port: u16) -> Option<SocketAddr> {
        match (self.address, &self.scope) {
            (IpAddr::V6(address), Some(scope)) => {
                let scope = scope.parse().ok().or_else(|| index_of(scope))?;
                Some(SocketAddrV6::new(address, port, 0, scope).into())
            }
            (address, _) => Some(SocketAddr::new(address, port)),
        }
    }
}

/// The number of a network interface.
fn index_of(interface: &str) -> Option<u32> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
    let flags = SocketFlags::CLOEXEC;
    let any = socket_with(AddressFamily::INET6, SocketType::DGRAM, flags, None).ok()?;
    netdevice::name_to_index(&any, interface).ok()
}

fn value(option: &str, name: &str) -> Option<u64> {
    option.strip_prefix(name)?.parse().ok()
}

/// A search domain. The root, which some tools write to say that there is none, is none.
fn domain(text: &str) -> Option<String> {
    let text = text.trim_end_matches('.');
    let good = (1..=LONGEST_DOMAIN).contains(&text.len()) && !text.contains(char::is_control);
    good.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn places(conf: &ResolvConf) -> Vec<String> {
        let places = conf.servers.iter().map(|server| server.place(53));
        places
            .map(|place| place.map_or("nowhere".into(), |place| place.to_string()))
            .collect()
    }

    #[test]
    fn a_usual_file_is_understood() {
        let conf = ResolvConf::parse(
            "# by hand\n; nameserver 192.0.2.9\nnameserver 192.0.2.1\n  nameserver\t2001:db8::1 \nnameserver nonsense\n\
             search a.example b.example.\noptions edns0 timeout:2 attempts:3 trust-ad rotate\n",
        );
        assert_eq!(places(&conf), ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(conf.search, ["a.example", "b.example"]);
        assert_eq!((conf.timeout.as_secs(), conf.attempts), (2, 3));
        assert!(conf.rotate);
    }

    #[test]
    fn an_empty_file_is_one_with_a_server_on_this_host() {
        let conf = ResolvConf::parse("");
        assert_eq!(places(&conf), ["127.0.0.1:53"]);
        assert_eq!(
            (conf.timeout.as_secs(), conf.attempts, conf.rotate),
            (5, 2, false)
        );
        assert!(conf.search.is_empty());
    }

    #[test]
    fn the_last_of_search_and_domain_holds() {
        assert_eq!(ResolvConf::parse("search a b\ndomain c d\n").search, ["c"]);
        assert_eq!(ResolvConf::parse("domain c\nsearch a b\n").search, ["a", "b"]);
        // What systemd-resolved writes.
        assert!(ResolvConf::parse("search a\nsearch .\n").search.is_empty());
    }

    #[test]
    fn link_local_servers_are_asked_by_their_interface() {
        let conf = ResolvConf::parse(
            "nameserver fe80::1%lo\nnameserver fe80::2%7\nnameserver fe80::3%no-such-one\n",
        );
        assert_eq!(places(&conf), ["[fe80::1%1]:53", "[fe80::2%7]:53", "nowhere"]);
    }

    #[test]
    fn options_are_kept_within_bounds() {
        let conf =
            ResolvConf::parse("options timeout:0 attempts:99999999999\noptions timeout: attempts:-1\n");
        assert_eq!((conf.timeout.as_secs(), conf.attempts), (1, 5));
    }

    proptest! {
        #[test]
        fn any_text_gives_something_to_ask(text in "(nameserver|search|domain|options|[ \\t\\n:%.a-z0-9]|.){0,60}") {
            let conf = ResolvConf::parse(&text);
            prop_assert!((1..=MOST_SERVERS).contains(&conf.servers.len()));
            prop_assert!(conf.search.iter().all(|domain| !domain.contains(char::is_whitespace)));
        }
    }
}
