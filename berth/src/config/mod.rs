//! The configuration file: what it may say, and the refusal of everything else with its place.
//!
//! Values are checked while they are read ([`values`]), because only then is their line known. What the file leaves out is
//! decided when a machine is started ([`crate::machine::settings`]).

mod places;
mod profiles;
mod proxy;
mod shares;
mod template;
mod values;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use places::{Place, Places};
pub use profiles::NO_PROFILE;
pub use template::template;
use values::{AbsolutePath, Address, ContextName, Cpus, Disk, LogLevel, Memory, Seconds};
pub use values::{
    EngineChoice, MAX_CPUS, MIN_DISK, MIN_MEMORY, ValueError, cpus, disk, engine, memory, profile_choice,
    profile_name,
};

use crate::profiles::{Origin, Profile, ProfileSettings};

/// Why the configuration cannot be used. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// The key, what is wrong with its value and what is accepted.
        message: String,
    },
    /// The template could not be written.
    #[error("cannot write the configuration template {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The file as it is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a set of `key: value` lines")]
pub struct Config {
    cpus: Option<Cpus>,
    memory: Option<Memory>,
    max_cpus: Option<Cpus>,
    max_memory: Option<Memory>,
    disk: Option<Disk>,
    engine: Option<EngineChoice>,
    profiles: Option<profiles::Profiles>,
    shares: Option<shares::Shares>,
    paths: Option<shares::Paths>,
    docker: Option<DockerSection>,
    network: Option<NetworkSection>,
    programs: Option<ProgramsSection>,
    timeouts: Option<TimeoutsSection>,
    log_level: Option<LogLevel>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a set of `key: value` lines")]
struct DockerSection {
    context: Option<ContextName>,
    create_context: Option<bool>,
    switch_context: Option<bool>,
    daemon: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a set of `key: value` lines")]
struct NetworkSection {
    enabled: Option<bool>,
    search: Option<Vec<String>>,
    published_address: Option<Address>,
    proxy: Option<proxy::Proxy>,
    ca_certificates: Option<Vec<AbsolutePath>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a set of `key: value` lines")]
struct ProgramsSection {
    qemu: Option<AbsolutePath>,
    passt: Option<AbsolutePath>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a set of `key: value` lines")]
struct TimeoutsSection {
    boot: Option<Seconds>,
    stop: Option<Seconds>,
}

impl Config {
    /// Reads the file at `path`; everything left to its default when there is none.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        match fs::read_to_string(path) {
            Ok(text) => Config::parse(&text, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Config::default()),
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Reads `text`, which stands in `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        // A file of nothing but comments is YAML's null.
        let read: Result<Option<Config>, _> = serde_yaml::from_str(text);
        read.map(Option::unwrap_or_default).map_err(|error| {
            let (line, column) = error
                .location()
                .map_or((1, 1), |place| (place.line(), place.column()));
            ConfigError::Invalid {
                path: path.to_owned(),
                line,
                column,
                message: without_place(&error.to_string(), line, column),
            }
        })
    }

    /// Virtual CPUs.
    pub fn cpus(&self) -> Option<u8> {
        self.cpus.map(|cpus| cpus.0)
    }

    /// Guest memory.
    pub fn memory(&self) -> Option<crate::size::Size> {
        self.memory.map(|memory| memory.0)
    }

    /// The most virtual CPUs that a machine can get while it runs.
    pub fn max_cpus(&self) -> Option<u8> {
        self.max_cpus.map(|cpus| cpus.0)
    }

    /// The most memory that a machine can get while it runs.
    pub fn max_memory(&self) -> Option<crate::size::Size> {
        self.max_memory.map(|memory| memory.0)
    }

    /// The profiles that it has, in its order.
    pub fn profiles(&self) -> impl Iterator<Item = Profile> {
        let all = self.profiles.iter().flat_map(|profiles| &profiles.0);
        all.map(|(name, section)| Profile {
            name: name.clone(),
            origin: Origin::Config,
            settings: ProfileSettings {
                cpus: section.cpus.map(|cpus| cpus.0),
                memory: section.memory.map(|memory| memory.0),
                disk: section.disk.map(|disk| disk.0),
                network: section.network,
                shares: section.shares.as_ref().map(|shares| shares.0.clone()),
            },
        })
    }

    /// This configuration for a machine with a profile: what the profile says wins.
    #[must_use]
    pub fn under(&self, profile: &ProfileSettings) -> Config {
        let mut config = self.clone();
        config.cpus = profile.cpus.map(Cpus).or(config.cpus);
        config.memory = profile.memory.map(Memory).or(config.memory);
        config.disk = profile.disk.map(Disk).or(config.disk);
        config.shares = profile.shares.clone().map(shares::Shares).or(config.shares);
        if let Some(enabled) = profile.network {
            config.network.get_or_insert_default().enabled = Some(enabled);
        }
        config
    }

    /// This configuration with a profile changed or added, or taken away when there are no settings: what a change of its
    /// text is to come to.
    #[must_use]
    pub fn with_profile(&self, name: &str, settings: Option<&ProfileSettings>) -> Config {
        let mut config = self.clone();
        let all = &mut config.profiles.get_or_insert_default().0;
        let section = settings.map(|settings| profiles::ProfileSection {
            cpus: settings.cpus.map(Cpus),
            memory: settings.memory.map(Memory),
            disk: settings.disk.map(Disk),
            network: settings.network,
            shares: settings.shares.clone().map(shares::Shares),
        });
        let known = all.iter().position(|(known, _)| known == name);
        match (known, section) {
            (Some(index), Some(section)) => all[index].1 = section,
            (Some(index), None) => drop(all.remove(index)),
            (None, Some(section)) => all.push((name.to_owned(), section)),
            (None, None) => {}
        }
        config
    }

    /// Whether both say the same; `profiles:` with nothing below it says nothing.
    pub fn says_the_same_as(&self, other: &Config) -> bool {
        let plain = |config: &Config| {
            let mut config = config.clone();
            config.profiles = config.profiles.filter(|profiles| !profiles.0.is_empty());
            config
        };
        plain(self) == plain(other)
    }

    /// Whether it says something of the setting with this path (`docker.context`), of those that have one value.
    pub fn sets(&self, path: &str) -> bool {
        let docker = self.docker.as_ref();
        let timeouts = self.timeouts.as_ref();
        match path {
            "cpus" => self.cpus.is_some(),
            "memory" => self.memory.is_some(),
            "max_cpus" => self.max_cpus.is_some(),
            "max_memory" => self.max_memory.is_some(),
            "disk" => self.disk.is_some(),
            "engine" => self.engine.is_some(),
            "shares" => self.shares.is_some(),
            "docker.context" => docker.is_some_and(|docker| docker.context.is_some()),
            "docker.switch_context" => docker.is_some_and(|docker| docker.switch_context.is_some()),
            "network.enabled" => self
                .network
                .as_ref()
                .is_some_and(|network| network.enabled.is_some()),
            "timeouts.boot" => timeouts.is_some_and(|timeouts| timeouts.boot.is_some()),
            "timeouts.stop" => timeouts.is_some_and(|timeouts| timeouts.stop.is_some()),
            "log_level" => self.log_level.is_some(),
            _ => false,
        }
    }

    /// Apparent size of the data disk.
    pub fn disk(&self) -> Option<crate::size::Size> {
        self.disk.map(|disk| disk.0)
    }

    /// Which engine.
    pub fn engine(&self) -> Option<EngineChoice> {
        self.engine
    }

    /// The shares; none when it does not say.
    pub fn shares(&self) -> Option<Vec<crate::shares::Share>> {
        self.shares.as_ref().map(|shares| shares.0.clone())
    }

    /// What paths that other systems write stand for.
    pub fn path_table(&self) -> crate::shares::foreign::PathTable {
        self.paths
            .as_ref()
            .map(|paths| paths.0.clone())
            .unwrap_or_default()
    }

    /// The docker context of a machine.
    pub fn context_of(&self, name: &crate::name::MachineName) -> String {
        let base = self.docker_context();
        if name.is_default() {
            base.to_owned()
        } else {
            format!("{base}-{name}")
        }
    }

    /// The docker context of the default machine; the others add their name to it.
    pub fn docker_context(&self) -> &str {
        self.docker
            .as_ref()
            .and_then(|docker| docker.context.as_ref())
            .map_or("berth", |name| &name.0)
    }

    /// Whether to make a docker context at all.
    pub fn create_context(&self) -> bool {
        self.docker
            .as_ref()
            .and_then(|docker| docker.create_context)
            .unwrap_or(true)
    }

    /// Whether to make it the current one on start and give the last one back on stop.
    pub fn switch_context(&self) -> bool {
        self.create_context()
            && self
                .docker
                .as_ref()
                .and_then(|docker| docker.switch_context)
                .unwrap_or(true)
    }

    /// Settings for dockerd's `daemon.json`.
    pub fn docker_daemon(&self) -> serde_json::Map<String, serde_json::Value> {
        self.docker
            .as_ref()
            .and_then(|docker| docker.daemon.clone())
            .unwrap_or_default()
    }

    /// Whether the machine has a network device.
    pub fn network(&self) -> bool {
        self.network
            .as_ref()
            .and_then(|network| network.enabled)
            .unwrap_or(true)
    }

    /// DNS search domains; none when they are the host's.
    pub fn search_domains(&self) -> Option<Vec<String>> {
        self.network.as_ref()?.search.clone()
    }

    /// The proxies that Docker uses; none when they are the host's.
    pub fn proxies(&self) -> Option<crate::net::Proxies> {
        Some(self.network.as_ref()?.proxy.as_ref()?.0.clone())
    }

    /// Files with certificates that Docker is to trust, besides the host's own.
    pub fn ca_certificates(&self) -> Vec<PathBuf> {
        let files = self
            .network
            .as_ref()
            .and_then(|network| network.ca_certificates.as_ref());
        files.into_iter().flatten().map(|path| path.0.clone()).collect()
    }

    /// The address of the host that published ports are bound to when the user names none; none for all.
    pub fn published_address(&self) -> Option<std::net::IpAddr> {
        self.network
            .as_ref()
            .and_then(|network| network.published_address)
            .map(|address| address.0)
            .filter(|address| !address.is_unspecified())
    }

    /// Where QEMU is, when not in `PATH`.
    pub fn qemu(&self) -> Option<&Path> {
        Some(&self.programs.as_ref()?.qemu.as_ref()?.0)
    }

    /// Where passt is, when not in `PATH`.
    pub fn passt(&self) -> Option<&Path> {
        Some(&self.programs.as_ref()?.passt.as_ref()?.0)
    }

    /// How long a machine may take from its start until Docker answers.
    pub fn boot_timeout(&self) -> Duration {
        self.timeouts
            .as_ref()
            .and_then(|timeouts| timeouts.boot)
            .map_or(Duration::from_secs(300), |seconds| seconds.0)
    }

    /// How long containers get to end when the machine is stopped.
    pub fn stop_timeout(&self) -> Duration {
        self.timeouts
            .as_ref()
            .and_then(|timeouts| timeouts.stop)
            .map_or(Duration::from_secs(20), |seconds| seconds.0)
    }

    /// What the daemon logs, as a `tracing` filter.
    pub fn log_level(&self) -> &'static str {
        self.log_level.map_or("info", LogLevel::name)
    }
}

/// Writes the commented template to `path` unless something is there; whether it did.
pub fn write_template(path: &Path, host: &crate::host::Host) -> Result<bool, ConfigError> {
    use std::io::Write;
    let failed = |source| ConfigError::Write {
        path: path.to_owned(),
        source,
    };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    match fs::OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(mut file) => file
            .write_all(template(host).as_bytes())
            .map(|()| true)
            .map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(failed(source)),
    }
}

/// The parser's message without the place it ends with: that stands in front already.
fn without_place(message: &str, line: usize, column: usize) -> String {
    message.replacen(&format!(" at line {line} column {column}"), "", 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Size;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("/c.yaml")).unwrap_err().to_string()
    }

    #[test]
    fn everything_can_be_set() {
        let config = Config::parse(
            "cpus: 3\nmemory: 4GiB\ndisk: 100 GiB\nengine: qemu\ndocker:\n  context: moor\n  switch_context: false\n  \
             daemon:\n    debug: true\n    insecure-registries: ['127.0.0.1:5000']\nnetwork:\n  enabled: false\n\
             programs:\n  qemu: /opt/q\ntimeouts:\n  boot: 10m\n  stop: 5s\nlog_level: debug\n",
            Path::new("/c.yaml"),
        )
        .unwrap();
        assert_eq!(config.cpus(), Some(3));
        assert_eq!(config.memory(), Some(Size::from_gib(4)));
        assert_eq!(config.disk(), Some(Size::from_gib(100)));
        assert_eq!(config.engine(), Some(EngineChoice::Qemu));
        assert_eq!(config.docker_context(), "moor");
        assert!(config.create_context() && !config.switch_context());
        assert_eq!(
            config.docker_daemon()["insecure-registries"],
            serde_json::json!(["127.0.0.1:5000"])
        );
        assert!(!config.network());
        assert_eq!(config.qemu(), Some(Path::new("/opt/q")));
        assert_eq!(config.passt(), None);
        assert_eq!(config.boot_timeout(), Duration::from_secs(600));
        assert_eq!(config.stop_timeout(), Duration::from_secs(5));
        assert_eq!(config.log_level(), "debug");
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_place_and_what_is_accepted() {
        assert_eq!(
            error("# mine\ncpus: 0\n"),
            "/c.yaml:2:7: cpus: invalid value: integer `0`, expected a number of CPUs from 1 to 128"
        );
        assert_eq!(
            error("memory: 4\n"),
            "/c.yaml:1:9: memory: invalid value: integer `4`, expected a size with a unit, such as 4GiB, of at least 128 MiB"
        );
        assert_eq!(
            error("memory: 4 elephants\n"),
            "/c.yaml:1:9: memory: invalid value: string \"4 elephants\", expected a size with a unit, such as 4GiB, of at \
             least 128 MiB"
        );
        assert_eq!(
            error("engine: vbox\n"),
            "/c.yaml:1:9: engine: invalid value: string \"vbox\", expected `auto`, `kvm` or `qemu`"
        );
        assert_eq!(
            error("docker:\n  context: a/b\n"),
            "/c.yaml:2:12: docker.context: invalid value: string \"a/b\", expected a docker context name: letters, \
             digits, '_', '.', '+' and '-', beginning with a letter or digit, and not `default`"
        );
        assert_eq!(
            error("programs:\n  qemu: bin/qemu\n"),
            "/c.yaml:2:9: programs.qemu: invalid value: string \"bin/qemu\", expected an absolute path"
        );
        assert_eq!(
            error("network:\n  published_address: everywhere\n"),
            "/c.yaml:2:22: network.published_address: invalid value: string \"everywhere\", expected an IP address, such as \
             127.0.0.1"
        );
        assert_eq!(
            error("timeouts:\n  boot: soon\n"),
            "/c.yaml:2:9: timeouts.boot: invalid value: string \"soon\", expected a time with a unit, such as 90s or \
             5m, from 1s to 24h"
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_known_ones() {
        assert_eq!(
            error("cpus: 2\ndocker:\n  contxt: x\n"),
            "/c.yaml:3:3: docker: unknown field `contxt`, expected one of `context`, `create_context`, \
             `switch_context`, `daemon`"
        );
        assert!(error("cpu: 2\n").starts_with("/c.yaml:1:1: unknown field `cpu`, expected one of `cpus`"));
    }

    #[test]
    fn what_is_not_yaml_or_not_a_mapping_is_refused_with_its_place() {
        assert!(error("cpus: 1\n\tmemory: 2g\n").starts_with("/c.yaml:2:1: "));
        assert!(error("- cpus\n").contains("expected a set of `key: value` lines"));
        assert!(error("docker: 7\n").starts_with("/c.yaml:1:9: docker: invalid type: integer `7`"));
        assert!(error("cpus: 1\ncpus: 2\n").contains("duplicate"));
    }

    #[test]
    fn proxies_are_none_or_named() {
        let proxies = |text: &str| {
            let text = format!("network:\n  proxy: {text}\n");
            Config::parse(&text, Path::new("/c.yaml")).map(|config| config.proxies())
        };
        assert_eq!(Config::default().proxies(), None);
        assert_eq!(proxies("none").unwrap(), Some(crate::net::Proxies::default()));
        let named = proxies("{http: 'http://p:1', no_proxy: a}").unwrap().unwrap();
        assert_eq!(named.http.as_deref(), Some("http://p:1"));
        assert_eq!((named.https, named.no_proxy.as_deref()), (None, Some("a")));
        assert_eq!(
            error("network:\n  proxy: http://p:1\n"),
            "/c.yaml:2:10: network.proxy: invalid value: string \"http://p:1\", expected `none`, or `http`, `https` and \
             `no_proxy`"
        );
        assert!(error("network:\n  proxy: {http: 'gopher://p'}\n").contains("expected the URL of a proxy"));
        assert!(error("network:\n  ca_certificates: [x.pem]\n").contains("expected an absolute path"));
    }

    #[test]
    fn an_empty_file_and_the_template_change_nothing() {
        let host = crate::host::Host {
            cpus: 8,
            memory: Size::from_gib(32),
        };
        for text in ["", "# nothing\n", "---\n", &template(&host)] {
            assert_eq!(
                Config::parse(text, Path::new("/c.yaml")).unwrap(),
                Config::default()
            );
        }
    }

    #[test]
    fn every_line_of_the_template_is_accepted_when_its_mark_is_taken_away() {
        let host = crate::host::Host {
            cpus: 8,
            memory: Size::from_gib(32),
        };
        let text: String = template(&host)
            .lines()
            .filter_map(|line| {
                line.strip_prefix('#')
                    .filter(|rest| !rest.starts_with(' ') || rest.starts_with("  "))
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let config = Config::parse(&text, Path::new("/c.yaml")).unwrap();
        assert_eq!(config.cpus(), Some(4));
        assert_eq!(config.memory(), Some(Size::from_gib(8)));
        assert!(config.docker.is_some() && config.network.is_some() && config.programs.is_some());
        assert!(config.timeouts.is_some() && config.log_level.is_some());
        assert!(config.shares.is_some() && config.paths.is_some());
        assert_eq!(
            (config.max_cpus(), config.max_memory()),
            (Some(8), Some(Size::from_gib(16)))
        );
        assert_eq!(config.profiles().count(), 1);
    }

    #[test]
    fn the_template_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x/config.yaml");
        let host = crate::host::Host::detect();
        assert!(write_template(&path, &host).unwrap());
        fs::write(&path, "cpus: 1\n").unwrap();
        assert!(!write_template(&path, &host).unwrap());
        assert_eq!(Config::load(&path).unwrap().cpus(), Some(1));
        assert_eq!(Config::load(&dir.path().join("none")).unwrap(), Config::default());
    }
}
