//! The files of `/etc` that differ from machine to machine. The image has symbolic links to them in
//! `/run/berth/etc`. (`resolv.conf` is [`crate::resolv_conf`]'s.)

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use protocol::boot::{MachineConfig, NetworkConfig};
use protocol::shares::is_id;

/// Where the links of the image lead.
pub(crate) const DIRECTORY: &str = "/run/berth/etc";

/// Writes the copies of the host's files into `directory`, for containers to be given.
pub(crate) fn write_host_files(directory: &Path, files: &BTreeMap<String, Vec<u8>>) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (name, content) in files {
        ensure!(is_id(name), "{name:?} is not the name of a file of the host");
        let path = directory.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Writes them all into `directory`.
pub(crate) fn write_all(directory: &Path, config: &MachineConfig) -> anyhow::Result<()> {
    check_hostname(&config.hostname)?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let network = config.network.as_ref();
    for (name, text) in [
        ("hostname", format!("{}\n", config.hostname)),
        ("hosts", hosts(&config.hostname, network)),
    ] {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Refuses what the kernel would take as a host name and no other program would (RFC 1123, section 2.1).
pub(crate) fn check_hostname(name: &str) -> anyhow::Result<()> {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    ensure!(
        name.len() <= 64 && name.split('.').all(label),
        "{name:?} is not a host name: at most 64 letters, digits and inner hyphens"
    );
    Ok(())
}

fn hosts(hostname: &str, network: Option<&NetworkConfig>) -> String {
    let mut text = format!(
        "127.0.0.1\tlocalhost\n\
         127.0.1.1\t{hostname}\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n"
    );
    if let Some(gateway) = host_gateway(network) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{gateway}\thost.docker.internal gateway.docker.internal");
    }
    text
}

/// The address containers reach the host by: the IPv4 gateway.
pub(crate) fn host_gateway(network: Option<&NetworkConfig>) -> Option<IpAddr> {
    network?.gateways.iter().copied().find(IpAddr::is_ipv4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetworkConfig {
        NetworkConfig {
            addresses: vec![("192.168.127.2".parse().unwrap(), 24)],
            gateways: vec!["fe80::1".parse().unwrap(), "192.168.127.1".parse().unwrap()],
            dns: vec!["192.168.127.3".parse().unwrap()],
            search: vec![],
            mtu: 1500,
        }
    }

    #[test]
    fn the_host_has_a_name_in_the_guest() {
        let text = hosts("berth", Some(&network()));
        assert!(
            text.contains("192.168.127.1\thost.docker.internal gateway.docker.internal\n"),
            "{text}"
        );
        assert!(text.contains("127.0.1.1\tberth\n"), "{text}");
        assert!(!hosts("berth", None).contains("host.docker.internal"));
    }

    #[test]
    fn host_names_are_checked() {
        for good in ["berth", "a", "my-machine.local", "4"] {
            assert!(check_hostname(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a b", "a\nb", "a..b", &"a".repeat(65)] {
            assert!(check_hostname(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn all_files_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let etc = directory.path().join("etc");
        let config = MachineConfig {
            hostname: "berth".into(),
            network: Some(network()),
            docker: serde_json::Map::new(),
            shares: Vec::new(),
            host_files: BTreeMap::new(),
            ca_certificates: Vec::new(),
        };
        write_all(&etc, &config).unwrap();
        assert_eq!(fs::read_to_string(etc.join("hostname")).unwrap(), "berth\n");
        assert!(etc.join("hosts").exists());
    }

    #[test]
    fn copies_of_the_hosts_files_stay_in_their_directory() {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path().join("host");
        let files = |name: &str| BTreeMap::from([(name.to_owned(), b"TZif2\0".to_vec())]);
        write_host_files(&host, &files("localtime")).unwrap();
        assert_eq!(fs::read(host.join("localtime")).unwrap(), b"TZif2\0");
        assert!(write_host_files(&host, &files("../x")).is_err());
        assert!(!directory.path().join("x").exists());
    }
}
