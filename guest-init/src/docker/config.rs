//! dockerd's configuration: guest-init's defaults with the machine's own settings over them, in the one place dockerd
//! reads, so that a setting is never given twice (dockerd refuses that).

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::containerd;
use crate::published::proxy;

/// dockerd's API socket, which the DOCKER service connects to.
pub(crate) const SOCKET: &str = "/run/docker.sock";
/// dockerd's pid file.
pub(super) const PID_FILE: &str = "/run/docker.pid";
/// The configuration file; `/etc/docker` of the image leads there.
pub(super) const FILE: &str = "/run/berth/etc/docker/daemon.json";

/// Seconds dockerd gives containers to stop before it gives up on them. Longer than any grace a host is likely to ask
/// for: the shutdown's own grace is the limit, and each container's stop timeout holds within it.
const SHUTDOWN_TIMEOUT: u64 = 110;

/// Settings the machine's configuration may change. `host_gateway` is what `host-gateway` stands for in `--add-host`.
///
/// `live-restore` stays off. It would keep containers running while dockerd restarts after a crash, but dockerd refuses
/// it together with swarm mode, and leaves containers running when it is stopped, so that an orderly shutdown would have
/// no one to stop them. Containers with a restart policy come back by themselves after a crash as well.
fn defaults(host_gateway: Option<IpAddr>) -> Map<String, Value> {
    let mut settings = Map::new();
    settings.insert("storage-driver".into(), json!("overlay2"));
    settings.insert("shutdown-timeout".into(), json!(SHUTDOWN_TIMEOUT));
    if let Some(address) = host_gateway {
        settings.insert("host-gateway-ip".into(), json!(address));
    }
    settings
}

/// Lays `overlay` over the defaults, key by key: a value replaces the default, null takes it away. What guest-init
/// itself relies on is set last and cannot be changed: dockerd listens on our socket, also when others are added, and
/// writes its pid file where we look, uses the containerd that guest-init runs, and publishes ports by way of our proxy.
pub(super) fn merge(host_gateway: Option<IpAddr>, overlay: &Map<String, Value>) -> Map<String, Value> {
    let mut settings = defaults(host_gateway);
    for (key, value) in overlay {
        if value.is_null() {
            settings.remove(key);
        } else {
            settings.insert(key.clone(), value.clone());
        }
    }
    let ours = json!(format!("unix://{SOCKET}"));
    let mut hosts = vec![ours.clone()];
    if let Some(Value::Array(more)) = settings.get("hosts") {
        hosts.extend(more.iter().filter(|host| **host != ours).cloned());
    }
    settings.insert("hosts".into(), Value::Array(hosts));
    settings.insert("pidfile".into(), json!(PID_FILE));
    settings.insert("containerd".into(), json!(containerd::SOCKET));
    settings.insert("userland-proxy".into(), json!(true));
    settings.insert("userland-proxy-path".into(), json!(proxy::PATH));
    settings
}

/// Writes dockerd's configuration file.
pub(super) fn write(
    path: &Path,
    host_gateway: Option<IpAddr>,
    overlay: &Map<String, Value>,
) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(&merge(host_gateway, overlay))
        .context("cannot encode dockerd's configuration")?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(overlay: Value) -> Value {
        let gateway = Some("192.168.127.1".parse().unwrap());
        Value::Object(merge(gateway, overlay.as_object().unwrap()))
    }

    #[test]
    fn the_machines_settings_win_key_by_key() {
        let settings = merged(
            json!({"storage-driver": "vfs", "log-opts": {"max-size": "1m"}, "shutdown-timeout": null}),
        );
        assert_eq!(settings["storage-driver"], "vfs");
        assert_eq!(settings["log-opts"]["max-size"], "1m");
        assert_eq!(settings.get("shutdown-timeout"), None);
        assert_eq!(settings["host-gateway-ip"], "192.168.127.1");
    }

    #[test]
    fn dockerd_listens_on_our_socket_whatever_is_asked() {
        assert_eq!(merged(json!({}))["hosts"], json!(["unix:///run/docker.sock"]));
        assert_eq!(
            merged(json!({"hosts": ["tcp://127.0.0.1:2375", "unix:///run/docker.sock"], "pidfile": "/x"})),
            merged(json!({"hosts": ["tcp://127.0.0.1:2375"]}))
        );
        assert_eq!(
            merged(json!({"hosts": "nonsense"}))["hosts"],
            json!(["unix:///run/docker.sock"])
        );
    }

    #[test]
    fn without_a_network_there_is_no_host_gateway() {
        assert!(!merge(None, &Map::new()).contains_key("host-gateway-ip"));
    }

    #[test]
    fn the_file_is_written_with_its_directories() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc/docker/daemon.json");
        write(&path, None, &Map::new()).unwrap();
        let read: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(read["storage-driver"], "overlay2");
    }
}
