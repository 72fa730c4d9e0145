//! What this host has the Docker daemon do: use its proxies, publish ports at the configured address, and stay clear of its
//! networks. What the user's `docker.daemon` says wins, key by key.

use std::net::IpAddr;
use std::sync::Weak;

use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;

use super::handle::Handle;
use crate::config::Config;
use crate::net::subnets::{self, DEFAULT_BRIDGE, GUEST, Subnet};
use crate::net::{Proxies, Routes};

/// Settings for dockerd's `daemon.json`, and what the user should know of them.
#[derive(Debug, PartialEq)]
pub(super) struct DockerSettings {
    /// The settings.
    pub(super) daemon: Map<String, Value>,
    /// The network of the default bridge, as far as that is known here.
    pub(super) bridge: Option<Subnet>,
    /// What could not be done.
    pub(super) warnings: Vec<String>,
}

/// Those for a machine that starts now.
pub(super) fn settle(config: &Config) -> DockerSettings {
    let proxies = config
        .proxies()
        .unwrap_or_else(|| Proxies::from_env(|name| std::env::var(name).ok()));
    let mut daemon = config.docker_daemon();
    if let Some(address) = config.published_address() {
        publish_at(&mut daemon, address);
    }
    complete(daemon, &proxies, &subnets::routes())
}

/// Has ports published at `address` when the user of `docker run` names none.
fn publish_at(daemon: &mut Map<String, Value>, address: IpAddr) {
    // One for the default bridge, one for the networks that users make.
    daemon.entry("ip").or_insert_with(|| json!(address));
    if address.is_ipv4() {
        daemon
            .entry("default-network-opts")
            .or_insert_with(|| json!({"bridge": {"com.docker.network.bridge.host_binding_ipv4": address}}));
    }
}

fn complete(mut daemon: Map<String, Value>, proxies: &Proxies, routes: &[Subnet]) -> DockerSettings {
    let mut warnings = Vec::new();
    if !daemon.contains_key("proxies") {
        match proxies.for_dockerd() {
            Ok(Some(settings)) => {
                daemon.insert("proxies".into(), settings);
            }
            Ok(None) => {}
            Err(error) => warnings.push(format!(
                "Docker pulls images without a proxy: {error}; set network.proxy in the configuration"
            )),
        }
    }
    let says = |key: &str| daemon.contains_key(key);
    let own_bridge = ["bip", "fixed-cidr", "bridge"].into_iter().any(says);
    let own_pools = says("default-address-pools");
    let mut bridge = (!own_bridge && !own_pools).then_some(DEFAULT_BRIDGE);
    if let Some(pools) = subnets::pools(routes).filter(|_| !own_pools) {
        if !own_bridge && let Some(first) = pools.first() {
            daemon.insert("bip".into(), json!(first.gateway()));
            bridge = Some(*first);
        }
        let pools: Vec<Value> = pools
            .iter()
            .map(|pool| json!({"base": pool.to_string(), "size": pool.prefix()}))
            .collect();
        daemon.insert("default-address-pools".into(), Value::Array(pools));
    }
    DockerSettings {
        daemon,
        bridge,
        warnings,
    }
}

/// Watches the host's routes for ones that a running machine clashes with. Dropping it ends that.
#[derive(Debug)]
pub(super) struct ClashWatch(JoinHandle<()>);

impl Drop for ClashWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Warns of routes that clash with the machine's network, or with that of Docker's default `bridge`: now and later.
pub(super) fn watch(machine: Weak<Handle>, bridge: Option<Subnet>) -> ClashWatch {
    ClashWatch(tokio::spawn(async move {
        let changes = match Routes::watch() {
            Ok(changes) => changes,
            Err(error) => return tracing::warn!(%error, "cannot watch the host's routes"),
        };
        let mut told: Vec<String> = Vec::new();
        loop {
            let found = clashes(&subnets::routes(), bridge);
            let Some(machine) = machine.upgrade() else { return };
            for clash in &found {
                if !told.contains(clash) {
                    machine.warn(clash.clone());
                }
            }
            // One that went away and comes again is told again.
            told = found;
            drop(machine);
            if let Err(error) = changes.changed().await {
                return tracing::warn!(%error, "cannot watch the host's routes any more");
            }
        }
    }))
}

fn clashes(routes: &[Subnet], bridge: Option<Subnet>) -> Vec<String> {
    let mut all = Vec::new();
    for route in routes {
        if route.overlaps(GUEST) {
            all.push(format!(
                "this host has a route to {route}, which overlaps {GUEST}, the network between berth and its machine: \
                 containers cannot reach this host's {GUEST}"
            ));
        }
        if let Some(bridge) = bridge.filter(|bridge| route.overlaps(*bridge)) {
            all.push(format!(
                "this host has a route to {route}, which overlaps {bridge}, the network of Docker's default bridge: \
                 containers cannot reach this host's {route} until the machine is restarted"
            ));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn proxy(http: &str) -> Proxies {
        Proxies {
            http: Some(http.into()),
            ..Proxies::default()
        }
    }

    #[test]
    fn ports_are_published_where_the_configuration_says_unless_docker_is_told_otherwise() {
        let loopback = "127.0.0.1".parse().unwrap();
        let mut daemon = Map::new();
        publish_at(&mut daemon, loopback);
        let binding = |daemon: &Map<String, Value>| {
            daemon["default-network-opts"]["bridge"]["com.docker.network.bridge.host_binding_ipv4"].clone()
        };
        assert_eq!(
            (&daemon["ip"], binding(&daemon)),
            (&json!("127.0.0.1"), json!("127.0.0.1"))
        );
        let mut daemon = object(json!({"ip": "192.0.2.1"}));
        publish_at(&mut daemon, loopback);
        assert_eq!(
            (&daemon["ip"], binding(&daemon)),
            (&json!("192.0.2.1"), json!("127.0.0.1"))
        );
    }

    #[test]
    fn the_users_own_settings_win() {
        let own = object(json!({"proxies": {}, "bip": "10.9.0.1/24", "default-address-pools": []}));
        let settled = complete(own.clone(), &proxy("http://p.example"), &[DEFAULT_BRIDGE]);
        assert_eq!(settled.daemon, own);
        assert_eq!(settled.bridge, None);
        // A bridge of one's own says nothing of the other networks.
        let own = object(json!({"bip": "10.9.0.1/24"}));
        let settled = complete(own, &Proxies::default(), &[DEFAULT_BRIDGE]);
        assert_eq!(settled.daemon["bip"], "10.9.0.1/24");
        assert_eq!(
            settled.daemon["default-address-pools"][0]["base"],
            "172.18.0.0/16"
        );
    }

    #[test]
    fn without_a_clash_and_a_proxy_nothing_is_added() {
        let settled = complete(Map::new(), &Proxies::default(), &[]);
        assert_eq!(settled.daemon, Map::new());
        assert_eq!(settled.bridge, Some(DEFAULT_BRIDGE));
    }

    #[test]
    fn docker_stays_clear_of_the_hosts_networks() {
        let settled = complete(Map::new(), &proxy("http://p.example"), &[DEFAULT_BRIDGE]);
        assert_eq!(settled.daemon["bip"], "172.18.0.1/16");
        assert_eq!(
            settled.daemon["default-address-pools"][0],
            json!({"base": "172.18.0.0/16", "size": 16})
        );
        assert_eq!(settled.daemon["proxies"]["http-proxy"], "http://p.example");
        assert_eq!(clashes(&[DEFAULT_BRIDGE], settled.bridge), Vec::<String>::new());
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_a_warning() {
        let settled = complete(Map::new(), &proxy("gopher://x"), &[]);
        assert!(!settled.daemon.contains_key("proxies"));
        assert!(
            settled.warnings[0].contains("network.proxy"),
            "{:?}",
            settled.warnings
        );
    }

    #[test]
    fn clashes_are_named() {
        let told = clashes(&[GUEST, DEFAULT_BRIDGE], Some(DEFAULT_BRIDGE));
        assert!(told[0].contains("192.168.127.0/24") && told[1].contains("172.17.0.0/16"));
        assert_eq!(told.len(), 2);
        assert_eq!(clashes(&[DEFAULT_BRIDGE], None).len(), 0);
    }
}
