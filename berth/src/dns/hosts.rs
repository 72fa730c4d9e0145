//! `/etc/hosts`: names with their addresses (hosts(5)).

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use super::fresh::Fresh;

/// The most of the file that is read, in bytes. Some people block advertisements with it, which takes megabytes.
const LIMIT: u64 = 16 << 20;

/// What the file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hosts(HashMap<String, Vec<IpAddr>>);

impl Hosts {
    pub(super) fn fresh(path: &Path) -> Fresh<Hosts> {
        Fresh::new(path.to_owned(), LIMIT, Hosts::parse)
    }

    pub(super) fn parse(text: &str) -> Hosts {
        let mut names: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            // An address with a scope means nothing elsewhere.
            let Some(Ok(address)) = words.next().map(str::parse) else {
                continue;
            };
            for name in words {
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                let addresses = names.entry(name).or_default();
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        Hosts(names)
    }

    /// The addresses of a name in lower case, if it has any here.
    pub(super) fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        self.0.get(name).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_have_all_their_addresses_whatever_their_case() {
        let hosts = Hosts::parse(
            "192.0.2.1\tDev.Example dev # dev2\n2001:db8::1 dev.example.\n192.0.2.1 dev\n\nfe80::1%eth0 dev\nnonsense dev\n",
        );
        let of = |name: &str| {
            hosts
                .addresses(name)
                .map(|all| all.iter().map(IpAddr::to_string).collect())
        };
        assert_eq!(
            of("dev.example"),
            Some(vec!["192.0.2.1".into(), "2001:db8::1".into()])
        );
        assert_eq!(of("dev"), Some(vec!["192.0.2.1".into()]));
        assert_eq!(of("dev2"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "([0-9.:#]|[a-z]|\\s|.){0,60}") {
            Hosts::parse(&text);
        }
    }
}
