//! What the rest of the daemon sees of its machine while the supervisor runs it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::boot::GuestHello;
use tokio::sync::{mpsc, oneshot, watch};

use super::control::{Control, unix_time_ns};
use super::disk;
use super::events::{Event, EventBus, Usage};
use super::failure::Failure;
use super::resources::Resources;
use super::settings::Settings;
use super::shares::LiveShares;
use super::state::{State, Step, WrongStep};
use crate::api::types::{DiskReport, DockerReport, EngineReport, GuestReport, MemoryReport, Status};
use crate::config::Config;
use crate::docker::containers::Container;
use crate::guest::GuestDial;
use crate::name::MachineName;
use crate::net::NetworkState;
use crate::paths::MachinePaths;
use crate::published::PublishedPorts;
use crate::size::Size;

/// How long the guest may take to tell its status before `status` goes without.
const GUEST_STATUS_TIMEOUT: Duration = Duration::from_secs(3);

/// What can be asked of a machine.
#[derive(Debug)]
pub enum Command {
    /// Stop it; the containers get `grace`. None: cut the power.
    Stop {
        /// How long the containers get.
        grace: Option<Duration>,
    },
    /// Stop its virtual CPUs.
    Pause(oneshot::Sender<Result<(), String>>),
    /// Let them run again.
    Resume(oneshot::Sender<Result<(), String>>),
}

/// What was found out while the machine started.
#[derive(Debug, Default)]
pub struct Facts {
    /// What runs it.
    pub engine: Option<EngineReport>,
    /// Processes besides this one whose memory is the machine's.
    pub processes: Vec<u32>,
    /// What the guest said first.
    pub hello: Option<GuestHello>,
    /// How to reach it.
    pub dial: Option<GuestDial>,
    /// Docker's version.
    pub docker_version: Option<String>,
    /// How its network is; none when it is to have none.
    pub network: Option<NetworkState>,
    /// The docker context that was made.
    pub context: Option<String>,
    /// Why it failed.
    pub failure: Option<Failure>,
}

/// A machine that has a daemon.
#[derive(Debug)]
pub struct Handle {
    /// Its name.
    pub name: MachineName,
    /// Its files.
    pub paths: MachinePaths,
    /// What it was started with.
    pub settings: Settings,
    /// The CPUs and the memory that it has now.
    pub resources: Resources,
    /// Directories of the host that it has.
    pub shares: LiveShares,
    /// What happens to it.
    pub events: EventBus,
    /// The published ports of its containers.
    pub published: Arc<PublishedPorts>,
    /// Its running containers, while Docker answers.
    pub containers: watch::Sender<Vec<Container>>,
    state: watch::Sender<State>,
    commands: mpsc::Sender<Command>,
    facts: Mutex<Facts>,
    began: Instant,
}

impl Handle {
    /// A machine that is about to be started, and the commands it will get.
    pub fn new(
        name: MachineName,
        paths: MachinePaths,
        settings: Settings,
        config: &Config,
    ) -> (Handle, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(16);
        let handle = Handle {
            resources: Resources::new(&settings),
            shares: LiveShares::new(&name, &paths, &settings.shares, config),
            name,
            paths,
            settings,
            events: EventBus::default(),
            published: Arc::default(),
            containers: watch::Sender::default(),
            state: watch::channel(State::Stopped).0,
            commands,
            facts: Mutex::default(),
            began: Instant::now(),
        };
        (handle, receiver)
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Where it is in its life, now and later.
    pub fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Takes a step in the machine's life and tells everybody.
    pub fn step(&self, step: Step) -> Result<(), WrongStep> {
        let mut result = Ok(());
        let at_ms = self.elapsed_ms();
        let entered = match &step {
            Step::Enter(phase) => Some(*phase),
            _ => None,
        };
        self.state.send_if_modified(|state| match state.after(step) {
            Ok(next) if next != *state => {
                *state = next;
                true
            }
            Ok(_) => false,
            Err(error) => {
                result = Err(error);
                false
            }
        });
        if result.is_ok() {
            let state = self.state();
            tracing::info!(at_ms, %state, "state");
            self.events.send(match entered {
                Some(phase) => Event::Phase { phase, at_ms },
                None => Event::State { state, at_ms },
            });
        }
        result
    }

    /// Tells the user something that does not stop the machine.
    pub fn warn(&self, message: impl Into<String>) {
        let message = message.into();
        tracing::warn!("{message}");
        self.events.send(Event::Warning { message });
    }

    /// The network is in a new state.
    pub fn set_network(&self, state: NetworkState) {
        let before = self.facts().network.replace(state.clone());
        match state {
            NetworkState::Starting => {}
            NetworkState::Up => {
                if before.is_some_and(|before| before != NetworkState::Starting) {
                    self.note("the network is up again");
                }
            }
            _ => self.warn(state.to_string()),
        }
    }

    /// Tells something worth telling.
    pub fn note(&self, message: impl Into<String>) {
        let message = message.into();
        tracing::info!("{message}");
        self.events.send(Event::Note { message });
    }

    /// What was found out so far.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How to reach the guest; none before it has said hello.
    pub fn dial(&self) -> Option<GuestDial> {
        self.facts().dial.clone()
    }

    /// Asks for something; false when the supervisor has ended.
    pub async fn command(&self, command: Command) -> bool {
        self.commands.send(command).await.is_ok()
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What it takes of the host. Asks nobody.
    pub fn usage(&self) -> Usage {
        let facts = self.facts();
        let processes = facts.processes.iter().copied().chain([std::process::id()]);
        let path = self.paths.data_disk();
        Usage {
            given: self.given(&facts),
            resident: facts.engine.as_ref().map(|_| resident(processes)),
            allocated: disk::usage(&path).ok().map(|(_, allocated)| allocated),
            free: disk::free_space(path.parent().unwrap_or(&path)).ok(),
        }
    }

    /// What of memory it may use now.
    fn given(&self, facts: &Facts) -> Size {
        match facts.hello {
            Some(_) => self.resources.memory(),
            // Nobody has it yet.
            None => self.resources.now().memory,
        }
    }

    /// Everything `berth status` tells. Asks the guest, if there is one.
    pub async fn status(&self) -> Status {
        let state = self.state();
        let mut warnings = self.events.warnings();
        warnings.extend(disk::shortage(&self.paths.data_disk()));
        for warning in self.shares.warnings(state == State::Running) {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        let shares = self.shares.list();
        let dial = self.dial().filter(|_| state == State::Running);
        let guest = match dial {
            Some(dial) => match Control::new(dial).status(GUEST_STATUS_TIMEOUT).await {
                Ok(status) => Some(status),
                Err(error) => {
                    warnings.push(crate::exit::chain(&error.into()));
                    None
                }
            },
            None => None,
        };
        let now = self.resources.now();
        if matches!(state, State::Running | State::Paused) {
            warnings.extend(self.resources.shortfall());
        }
        let facts = self.facts();
        let processes = facts.processes.iter().copied().chain([std::process::id()]);
        let disk_used = guest
            .as_ref()
            .and_then(|guest| guest.data_disk.as_ref())
            .map(|disk| Size::from_bytes(disk.used));
        Status {
            machine: self.name.to_string(),
            settings: Settings {
                profile: now.profile,
                cpus: now.cpus,
                memory: now.memory,
                shares: shares.iter().map(|report| report.share.clone()).collect(),
                ..self.settings.clone()
            },
            engine: facts.engine.clone(),
            uptime_seconds: (!state.is_final()).then(|| self.began.elapsed().as_secs()),
            memory: MemoryReport {
                given: self.given(&facts),
                used: guest
                    .as_ref()
                    .map(|guest| Size::from_bytes(guest.memory.total.saturating_sub(guest.memory.available))),
                resident: facts.engine.as_ref().map(|_| resident(processes)),
            },
            disk: disk_report(&self.paths, disk_used),
            docker: DockerReport {
                socket: self.paths.docker_socket(),
                context: facts.context.clone(),
                version: guest
                    .as_ref()
                    .and_then(|guest| guest.docker.version.clone())
                    .or_else(|| facts.docker_version.clone()),
                state: guest.as_ref().map(|guest| guest.docker.state),
                restarts: guest.as_ref().map(|guest| guest.docker.restarts),
            },
            guest: facts.hello.as_ref().map(|hello| GuestReport {
                kernel: hello.kernel.clone(),
                init: hello.init_version.clone(),
                boot_ms: hello.boot_ms,
                cpus: guest.as_ref().map(|guest| guest.cpus),
                load: guest.as_ref().map(|guest| guest.load),
                clock_offset_ms: guest
                    .as_ref()
                    .map(|guest| offset_ms(guest.unix_time_ns, unix_time_ns())),
            }),
            shares,
            coherence: self.shares.changes().report(),
            network: facts.network.as_ref().map(ToString::to_string),
            api_socket: self.paths.api_socket(),
            daemon_pid: Some(std::process::id()),
            warnings,
            failure: facts.failure.clone(),
            state,
        }
    }
}

/// The data disk as the host sees it; none when there is none.
pub fn disk_report(paths: &MachinePaths, used: Option<Size>) -> Option<DiskReport> {
    let path = paths.data_disk();
    let (size, allocated) = disk::usage(&path).ok()?;
    Some(DiskReport {
        path,
        size,
        allocated,
        used,
    })
}

/// How far `guest` is ahead of `host`, both in nanoseconds, in milliseconds.
fn offset_ms(guest: u64, host: u64) -> i64 {
    let ns = i128::from(guest) - i128::from(host);
    i64::try_from(ns / 1_000_000).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
}

/// The resident memory of these processes together. One that is gone has none.
fn resident(processes: impl Iterator<Item = u32>) -> Size {
    let pages: u64 = processes
        .filter_map(|pid| {
            let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
            statm.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .sum();
    Size::from_bytes(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::machine::settings::Chosen;
    use crate::machine::state::Phase;

    fn handle(dir: &std::path::Path) -> Handle {
        let host = Host {
            cpus: 4,
            memory: Size::from_gib(8),
        };
        let settings = Settings::resolve(&Chosen::default(), &Config::default(), &host).unwrap();
        let paths = MachinePaths {
            data_dir: dir.into(),
            state_dir: dir.into(),
            runtime_dir: dir.into(),
        };
        Handle::new(MachineName::default(), paths, settings, &Config::default()).0
    }

    #[tokio::test]
    async fn steps_are_told_and_wrong_ones_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let handle = handle(dir.path());
        handle.step(Step::Enter(Phase::Prepare)).unwrap();
        assert!(handle.step(Step::Ready).is_err());
        handle.warn("careful");
        handle.step(Step::Stop).unwrap();
        handle.step(Step::Stopped).unwrap();
        handle.events.close();
        let mut listener = handle.events.listen();
        let mut heard = Vec::new();
        while let Some(event) = listener.next().await {
            heard.push(match event {
                Event::Phase { phase, .. } => format!("{phase:?}"),
                Event::State { state, .. } => state.to_string(),
                Event::Warning { message } => message,
                other => format!("{other:?}"),
            });
        }
        assert_eq!(heard, ["Prepare", "careful", "stopping", "stopped"]);
    }

    #[tokio::test]
    async fn status_tells_what_is_known_without_a_guest() {
        let dir = tempfile::tempdir().unwrap();
        let handle = handle(dir.path());
        disk::prepare(&handle.paths.data_disk(), Size::from_gib(2)).unwrap();
        handle.step(Step::Enter(Phase::Prepare)).unwrap();
        let status = handle.status().await;
        assert_eq!(
            status.state,
            State::Starting {
                phase: Phase::Prepare
            }
        );
        assert_eq!(status.disk.as_ref().unwrap().size, Size::from_gib(2));
        assert_eq!(status.memory.given, Size::from_gib(2));
        assert_eq!(status.daemon_pid, Some(std::process::id()));
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["state"], "starting");
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status);
    }
}
