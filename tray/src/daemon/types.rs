//! What comes over the daemon's HTTP interface, as far as the icon shows it.
//!
//! The daemon may be older or newer than the icon: members that are missing have defaults, those that are not known are
//! passed over, and so are states and events.

use serde::Deserialize;

/// Where a machine is in its life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum State {
    /// It is files and nothing else.
    #[default]
    Stopped,
    /// It is being started.
    Starting {
        /// How far that is.
        #[serde(default)]
        phase: String,
    },
    /// Docker answers.
    Running,
    /// Its virtual CPUs are stopped.
    Paused,
    /// It is being stopped.
    Stopping,
    /// It could not be started, or ended by itself.
    Failed {
        /// Why, in one sentence.
        #[serde(default)]
        reason: String,
    },
    /// One that this version does not know.
    #[serde(other)]
    Other,
}

/// `GET /v1/status`, and `berth status --json`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct Status {
    #[serde(flatten)]
    pub(crate) state: State,
    #[serde(default)]
    pub(crate) settings: Settings,
    #[serde(default)]
    pub(crate) engine: Option<Engine>,
    #[serde(default)]
    pub(crate) uptime_seconds: Option<u64>,
    #[serde(default)]
    pub(crate) memory: Memory,
    #[serde(default)]
    pub(crate) disk: Option<Disk>,
    #[serde(default)]
    pub(crate) docker: Docker,
    #[serde(default)]
    pub(crate) guest: Option<Guest>,
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
    #[serde(default)]
    pub(crate) failure: Option<Failure>,
}

/// What a machine is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    pub(crate) profile: Option<String>,
    pub(crate) cpus: u64,
    pub(crate) max_cpus: u64,
    pub(crate) memory: u64,
    pub(crate) max_memory: u64,
    pub(crate) disk: u64,
}

/// What runs it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Engine {
    pub(crate) engine: String,
    pub(crate) accelerator: String,
}

/// Its memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Memory {
    pub(crate) given: u64,
    pub(crate) used: Option<u64>,
    pub(crate) resident: Option<u64>,
}

/// Its disk, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Disk {
    pub(crate) size: u64,
    pub(crate) allocated: u64,
    pub(crate) used: Option<u64>,
}

/// Its Docker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Docker {
    pub(crate) socket: Option<String>,
    pub(crate) state: Option<String>,
    pub(crate) version: Option<String>,
}

/// The guest's own system.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Guest {
    pub(crate) load: Option<Vec<f64>>,
}

/// Why it failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Failure {
    pub(crate) reason: String,
}

/// `GET /v1/profiles`, and `berth profile list --json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Profiles {
    pub(crate) current: Option<String>,
    pub(crate) profiles: Vec<Profile>,
}

/// A named set of settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Profile {
    pub(crate) name: String,
    pub(crate) cpus: Option<u64>,
    pub(crate) memory: Option<u64>,
}

/// A running container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) state: String,
    pub(crate) ports: Vec<ContainerPort>,
    pub(crate) host_network: bool,
}

/// A published port of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct ContainerPort {
    pub(crate) transport: String,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) container_port: u16,
}

/// A port of the host that leads to the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Port {
    pub(crate) transport: String,
    /// Address and port on the host.
    pub(crate) host: String,
    pub(crate) by: String,
    pub(crate) listening: bool,
}

/// A line of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A part of the start begins.
    Phase {
        #[serde(default)]
        phase: String,
    },
    /// The machine is in a new state.
    State {
        #[serde(flatten)]
        state: State,
    },
    /// Docker ended, or answers again.
    Docker {
        #[serde(default)]
        ready: bool,
    },
    /// It was switched to other settings.
    Settings {
        #[serde(default)]
        profile: Option<String>,
    },
    /// Something the user should know.
    Warning {
        #[serde(default)]
        message: String,
    },
    /// The running containers are others.
    Containers {
        #[serde(default)]
        containers: Vec<Container>,
    },
    /// The published ports are others.
    Ports {
        #[serde(default)]
        ports: Vec<Port>,
    },
    /// It takes more or less of the host, or the host's disk is full; the status has the figures.
    Usage,
    /// The machine failed; a state follows.
    Failed(Failure),
    /// One that this version does not show.
    #[serde(other)]
    Other,
}

/// The answer to `POST /v1/settings`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct SettingsReport {
    pub(crate) shortfall: Option<String>,
    pub(crate) needs_restart: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_daemon_is_understood_as_far_as_that_goes() {
        let status: Status = serde_json::from_str(
            r#"{"state":"hovering","machine":"default","memory":{"given":1,"swapped":2},"news":[1]}"#,
        )
        .unwrap();
        assert_eq!((status.state, status.memory.given), (State::Other, 1));
        let event: Event = serde_json::from_str(r#"{"event":"eclipse","at_ms":5}"#).unwrap();
        assert_eq!(event, Event::Other);
        let event: Event =
            serde_json::from_str(r#"{"event":"state","state":"starting","phase":"warp","at_ms":5}"#).unwrap();
        let state = State::Starting { phase: "warp".into() };
        assert_eq!(event, Event::State { state });
    }

    #[test]
    fn an_older_daemon_leaves_things_out() {
        let status: Status = serde_json::from_str(r#"{"state":"running"}"#).unwrap();
        assert_eq!(
            status,
            Status {
                state: State::Running,
                ..Status::default()
            }
        );
        let event: Event =
            serde_json::from_str(r#"{"event":"containers","containers":[{"id":"x"}]}"#).unwrap();
        let Event::Containers { containers } = event else {
            panic!("{event:?}");
        };
        assert_eq!(containers[0].id, "x");
    }

    #[test]
    fn the_words_of_the_documentation_are_known() {
        let event: Event = serde_json::from_str(
            r#"{"event":"failed","reason":"no","phase":"kernel","at":1,"host_lacks":false,"console":[]}"#,
        )
        .unwrap();
        assert_eq!(event, Event::Failed(Failure { reason: "no".into() }));
        let failed: Status = serde_json::from_str(r#"{"state":"failed","reason":"no"}"#).unwrap();
        assert_eq!(failed.state, State::Failed { reason: "no".into() });
    }
}
