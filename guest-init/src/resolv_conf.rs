//! `/etc/resolv.conf`, which containers get a copy of: the guest's own name server, and the search domains of the host,
//! which change while the machine runs.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use protocol::boot::NetworkConfig;

use crate::lock::lock;

/// The most search domains, and the most bytes of one: what programs can be expected to read.
const MOST_DOMAINS: usize = 32;
const LONGEST_DOMAIN: usize = 253;

/// The file.
#[derive(Debug)]
pub(crate) struct ResolvConf {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// None before the host has said which machine this is.
    servers: Option<Vec<IpAddr>>,
    /// None before it has said which domains.
    search: Option<Vec<String>>,
}

impl ResolvConf {
    /// The one in `directory`; nothing is written yet.
    pub(crate) fn new(directory: &Path) -> Arc<ResolvConf> {
        Arc::new(ResolvConf {
            path: directory.join("resolv.conf"),
            state: Mutex::default(),
        })
    }

    /// Writes it for a machine with this network. Domains that were told meanwhile are newer than those in `network`.
    pub(crate) fn set_up(&self, network: Option<&NetworkConfig>) -> anyhow::Result<()> {
        let mut state = lock(&self.state);
        state.servers = Some(network.map(|network| network.dns.clone()).unwrap_or_default());
        if state.search.is_none() {
            state.search = network.map(|network| network.search.clone());
        }
        self.write(&state)
    }

    /// Writes it with other search domains, once it is set up.
    pub(crate) fn set_search(&self, domains: Vec<String>) -> anyhow::Result<()> {
        let mut state = lock(&self.state);
        state.search = Some(domains);
        self.write(&state)
    }

    /// In one step, because dockerd may be reading it.
    fn write(&self, state: &State) -> anyhow::Result<()> {
        let Some(servers) = &state.servers else {
            return Ok(());
        };
        let text = text(servers, state.search.as_deref().unwrap_or_default());
        let new = self.path.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &self.path))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn text(servers: &[IpAddr], search: &[String]) -> String {
    let mut text = String::new();
    for server in servers {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "nameserver {server}");
    }
    // A name with a line break would add lines of its own.
    let is_domain = |domain: &&String| {
        (1..=LONGEST_DOMAIN).contains(&domain.len())
            && !domain.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    let search: Vec<_> = search
        .iter()
        .filter(is_domain)
        .take(MOST_DOMAINS)
        .map(String::as_str)
        .collect();
    if !servers.is_empty() && !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(search: &[&str]) -> NetworkConfig {
        NetworkConfig {
            addresses: vec![],
            gateways: vec![],
            dns: vec!["192.168.127.3".parse().unwrap()],
            search: search.iter().map(|&domain| domain.into()).collect(),
            mtu: 1500,
        }
    }

    fn file() -> (tempfile::TempDir, Arc<ResolvConf>) {
        let directory = tempfile::tempdir().unwrap();
        let file = ResolvConf::new(directory.path());
        (directory, file)
    }

    fn read(file: &ResolvConf) -> String {
        fs::read_to_string(&file.path).unwrap()
    }

    #[test]
    fn a_search_domain_cannot_smuggle_lines_in() {
        let (_directory, file) = file();
        file.set_up(Some(&network(&["example.org", "evil\nnameserver 6.6.6.6", ""])))
            .unwrap();
        assert_eq!(read(&file), "nameserver 192.168.127.3\nsearch example.org\n");
    }

    #[test]
    fn there_is_an_end_to_search_domains() {
        let domains: Vec<String> = (0..100).map(|number| format!("d{number}")).collect();
        let text = text(&["192.0.2.1".parse().unwrap()], &domains);
        assert!(text.ends_with(" d31\n"), "{text}");
    }

    #[test]
    fn without_a_network_it_is_empty() {
        let (_directory, file) = file();
        file.set_up(None).unwrap();
        assert_eq!(read(&file), "");
        file.set_search(vec!["example.org".into()]).unwrap();
        assert_eq!(read(&file), "");
    }

    #[test]
    fn search_domains_change_and_those_told_last_hold() {
        let (_directory, file) = file();
        file.set_search(vec!["new.example".into()]).unwrap();
        assert!(!file.path.exists(), "the servers are not known yet");
        file.set_up(Some(&network(&["old.example"]))).unwrap();
        assert!(read(&file).contains("search new.example\n"));
        file.set_search(vec![]).unwrap();
        assert_eq!(read(&file), "nameserver 192.168.127.3\n");
    }
}
