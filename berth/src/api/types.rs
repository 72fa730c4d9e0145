//! What goes over the daemon's HTTP interface, as JSON. `berth … --json` prints the same.

use std::path::PathBuf;

use fileshare::passthrough::coherence::Figures;
use protocol::control::DockerState;
use serde::{Deserialize, Serialize};

use crate::docker::containers::Container;
use crate::engine::EngineDescription;
use crate::machine::failure::Failure;
use crate::machine::settings::Settings;
use crate::machine::shares::ShareReport;
use crate::machine::state::State;
use crate::profiles::Profile;
use crate::published::PortReport;
use crate::size::Size;

/// The version of the interface. It grows with every change that an older client would not understand.
pub const API_VERSION: u32 = 1;

/// `GET /v1/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// berth's version.
    pub version: String,
    /// [`API_VERSION`].
    pub api: u32,
    /// The version of the protocol between host and guest.
    pub protocol: u32,
}

impl Version {
    /// That of this program.
    pub fn own() -> Version {
        Version {
            version: env!("CARGO_PKG_VERSION").into(),
            api: API_VERSION,
            protocol: protocol::PROTOCOL_VERSION,
        }
    }
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The machine's name.
    pub machine: String,
    /// Where it is in its life.
    #[serde(flatten)]
    pub state: State,
    /// What it was, or will be, started with.
    pub settings: Settings,
    /// What runs it.
    pub engine: Option<EngineReport>,
    /// Seconds since its start.
    pub uptime_seconds: Option<u64>,
    /// Its memory.
    pub memory: MemoryReport,
    /// Its data disk; none before its first start.
    pub disk: Option<DiskReport>,
    /// Its Docker daemon.
    pub docker: DockerReport,
    /// The guest's own system.
    pub guest: Option<GuestReport>,
    /// Directories of the host that its containers can have.
    #[serde(default)]
    pub shares: Vec<ShareReport>,
    /// How it is told of host changes in them; none when it is not.
    #[serde(default)]
    pub coherence: Option<CoherenceReport>,
    /// How its network is, in words; none when it has none.
    pub network: Option<String>,
    /// The daemon's API socket.
    pub api_socket: PathBuf,
    /// The daemon's process id.
    pub daemon_pid: Option<u32>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Why it failed the last time, when it did not run since.
    pub failure: Option<Failure>,
}

/// What runs a machine, and why that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineReport {
    /// What.
    #[serde(flatten)]
    pub description: EngineDescription,
    /// Why.
    pub reason: String,
}

/// A machine's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// What it may use now; the most that it may get without a restart is in the settings.
    pub given: Size,
    /// What its kernel and processes use, without what can be dropped.
    pub used: Option<Size>,
    /// What it takes of the host's memory now.
    pub resident: Option<Size>,
}

/// A machine's data disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// The file.
    pub path: PathBuf,
    /// Its apparent size.
    pub size: Size,
    /// What it takes of the host's disk.
    pub allocated: Size,
    /// What the guest's files take.
    pub used: Option<Size>,
}

/// A machine's Docker daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerReport {
    /// Its socket on the host.
    pub socket: PathBuf,
    /// The docker context that leads to it.
    pub context: Option<String>,
    /// Where it is in its life, as the guest tells it.
    #[serde(default)]
    pub state: Option<DockerState>,
    /// Its version, while it runs.
    pub version: Option<String>,
    /// How often it ended without being asked to.
    pub restarts: Option<u32>,
}

/// The guest's own system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Its kernel's release.
    pub kernel: String,
    /// The version of its init.
    pub init: String,
    /// Milliseconds its kernel took until init said hello.
    pub boot_ms: u64,
    /// CPUs that are online.
    pub cpus: Option<u32>,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: Option<[f64; 3]>,
    /// How far its clock is ahead of the host's, in milliseconds.
    pub clock_offset_ms: Option<i64>,
}

/// How a machine is told of what the host changes in its shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoherenceReport {
    /// It is told of everything at once.
    pub coherent: bool,
    /// Directories that are watched.
    pub watched: u64,
    /// Those of them that only inotify can watch: the machine is told, and caches for a second at most all the same.
    pub by_inotify: u64,
    /// Directories that the machine knows and that cannot be watched.
    pub unwatched: u64,
    /// Events of the host that were read.
    pub seen: u64,
    /// Changes that the machine was told of.
    pub replayed: u64,
    /// Events that went into a change together with others.
    pub coalesced: u64,
    /// Events that the machine did not have to be told of.
    pub dropped: u64,
    /// Times that there were more events than could be kept.
    pub overflows: u64,
    /// Times that the machine was made to forget everything it had cached.
    pub invalidations: u64,
}

impl From<Figures> for CoherenceReport {
    fn from(figures: Figures) -> CoherenceReport {
        CoherenceReport {
            coherent: figures.coherent,
            watched: figures.watched,
            by_inotify: figures.by_inotify,
            unwatched: figures.unwatched,
            seen: figures.seen,
            replayed: figures.replayed,
            coalesced: figures.coalesced,
            dropped: figures.dropped,
            overflows: figures.overflows,
            invalidations: figures.invalidations,
        }
    }
}

/// The answer to `POST /v1/sync`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Synced {
    /// How long it took.
    pub milliseconds: f64,
}

/// A line of `GET /v1/changes`: something the host changed in a share, and what became of telling the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangeReport {
    /// When the machine had been told, in milliseconds since the Unix epoch.
    pub unix_time_ms: u64,
    /// What it was: `create`, `remove`, `rename`, `modify`, `close_write`, `attributes`, `overflow`, `invalidate`.
    pub kind: String,
    /// The path on the host; none for what concerns everything. What is not UTF-8 in it is replaced by U+FFFD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The new path, of a rename.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_path: Option<String>,
    /// Milliseconds from when berth heard of it to when the machine had been told.
    pub latency_ms: f64,
    /// The name of the error that the machine's kernel had for it; none when it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The body of `POST /v1/stop`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Seconds containers get to end; the configuration's when none.
    #[serde(default)]
    pub grace_seconds: Option<u32>,
    /// Cut the power instead.
    #[serde(default)]
    pub force: bool,
}

/// `GET /v1/profiles`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfilesReport {
    /// The machine's profile; none when it has none.
    pub current: Option<String>,
    /// All there are.
    pub profiles: Vec<Profile>,
}

/// The body of `POST /v1/settings`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsRequest {
    /// The profile to switch to, or `none`; the one it has when none is given.
    #[serde(default)]
    pub profile: Option<String>,
    /// CPUs, whatever the profile says.
    #[serde(default)]
    pub cpus: Option<u8>,
    /// Memory, whatever the profile says.
    #[serde(default)]
    pub memory: Option<Size>,
}

/// The answer to `POST /v1/settings`: what holds now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsReport {
    /// The profile; none when it has none.
    pub profile: Option<String>,
    /// CPUs.
    pub cpus: u8,
    /// The most it can have without a restart.
    pub max_cpus: u8,
    /// What of memory it is to have.
    pub memory: Size,
    /// The most it can have without a restart.
    pub max_memory: Size,
    /// What of memory it has.
    pub memory_given: Size,
    /// Why that is not what it is to have.
    pub shortfall: Option<String>,
    /// What it gets with a restart only, a sentence for each.
    pub needs_restart: Vec<String>,
}

/// The query of `GET /v1/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsQuery {
    /// Which log.
    pub source: LogSource,
    /// This many lines before the end; all when none.
    #[serde(default)]
    pub tail: Option<u64>,
    /// Go on as it grows.
    #[serde(default)]
    pub follow: bool,
}

/// `GET /v1/shares`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharesReport {
    /// One by one.
    pub shares: Vec<ShareReport>,
}

/// `GET /v1/ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsReport {
    /// One by one, in the order of their numbers.
    pub ports: Vec<PublishedReport>,
}

/// A published port and the container it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedReport {
    /// The port.
    #[serde(flatten)]
    pub port: PortReport,
    /// The name of the container that Docker publishes it for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// `GET /v1/containers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainersReport {
    /// Those that run, newest first, as Docker lists them.
    pub containers: Vec<Container>,
}

/// The body of `POST /v1/shares`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRequest {
    /// The directory.
    pub path: PathBuf,
    /// Where the machine is to have it; the same path when none.
    #[serde(default)]
    pub target: Option<PathBuf>,
    /// The machine may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// What of it the machine does not see, relative to `path`.
    #[serde(default)]
    pub exclude: Vec<PathBuf>,
}

/// The query of `DELETE /v1/shares`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareQuery {
    /// The directory.
    pub path: PathBuf,
    /// Also when running containers have it.
    #[serde(default)]
    pub force: bool,
}

/// The logs of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogSource {
    /// What the machine's daemon on the host did
    Daemon,
    /// What the guest wrote to its console
    Console,
    /// What the Docker daemon in the guest says (only while the machine runs)
    Dockerd,
    /// The guest kernel's messages (only while the machine runs)
    Kernel,
    /// What the network helper says
    Passt,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// What failed, why, and what to do.
    pub message: String,
}

/// The `Upgrade` token of `POST /v1/exec`.
pub const EXEC_UPGRADE: &str = "berth-exec";
