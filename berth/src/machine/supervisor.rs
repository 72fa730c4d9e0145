//! The life of a machine, from its start to its end: what the daemon is for.
//!
//! [`Supervisor::run`] brings the machine up ([`super::bring_up`]), keeps it until somebody wants it stopped or it ends by
//! itself, and takes it down ([`super::take_down`]). Everything waits for events; nothing is asked again and again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use protocol::boot::GuestEvent;
use tokio::sync::mpsc;

use super::bring_up::{self, StartError};
use super::clock::ClockWatch;
use super::console::Console;
use super::control::Control;
use super::events::Event;
use super::failure::{self, Failure};
use super::guest_files::{self, GuestFiles};
use super::handle::{Command, Handle};
use super::live::{Happening, Live};
use super::settings::Chosen;
use super::state::{Phase, State, Step};
use super::take_down;
use crate::config::Config;
use crate::docker::barrier::Barrier as _;
use crate::engine::EngineExit;
use crate::exit::chain;
use crate::logs::RotatingFile;
use crate::process::Children;

/// How many of the console's last lines go with a failure.
const CONSOLE_LINES: usize = 25;
/// How long the guest may take to set its clock.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// What a supervisor needs besides the machine.
#[derive(Debug)]
pub struct Surroundings {
    /// The configuration.
    pub config: Config,
    /// What was chosen for this start; to be remembered once it is accepted.
    pub chosen: Chosen,
    /// Where the guest's kernel and image are.
    pub guest_dir: PathBuf,
    /// The daemon's child processes.
    pub children: Arc<Children>,
}

/// Runs one machine once.
#[derive(Debug)]
pub struct Supervisor {
    machine: Arc<Handle>,
    commands: mpsc::Receiver<Command>,
    around: Surroundings,
}

/// How a machine's life came to its end.
enum Ending {
    /// Somebody wants it stopped; the containers get this long, or the power is cut.
    Asked(Option<Duration>),
    /// The guest powered itself off in an orderly way.
    ByItself,
    /// It failed.
    Failed(Failure),
}

impl Supervisor {
    /// A supervisor for `machine`, which is not started yet.
    pub fn new(machine: Arc<Handle>, commands: mpsc::Receiver<Command>, around: Surroundings) -> Supervisor {
        Supervisor {
            machine,
            commands,
            around,
        }
    }

    /// Starts the machine and returns when nothing of it is left. How it ended is in its state and its events, and, if it
    /// failed, in the record of its last failure.
    pub async fn run(mut self) {
        if let Err(error) = Failure::forget(&self.machine.paths.last_failure()) {
            tracing::warn!(%error, "could not forget the last failure");
        }
        let ending = match RotatingFile::open(self.machine.paths.console_log()) {
            Ok(file) => {
                let console = Console::new(file);
                let mut live = Live::default();
                let ending = self.live_through(&mut live, &console).await;
                self.end(live, &console, ending).await
            }
            Err(error) => {
                let path = self.machine.paths.console_log();
                self.step(Step::Enter(Phase::Prepare));
                Ending::Failed(Failure::now(
                    format!("cannot write the console's log {}: {error}", path.display()),
                    Some(Phase::Prepare),
                ))
            }
        };
        match ending {
            Ending::Failed(failure) => {
                tracing::error!("{}", failure.reason);
                if let Err(error) = failure.store(&self.machine.paths.last_failure()) {
                    tracing::warn!(%error, "could not keep the record of the failure");
                }
                self.machine.facts().failure = Some(failure.clone());
                self.machine.events.send(Event::Failed(failure.clone()));
                self.step(Step::Fail(failure.reason));
            }
            Ending::Asked(_) | Ending::ByItself => self.step(Step::Stopped),
        }
    }

    /// Up to the point where the machine has to be taken down.
    async fn live_through(&mut self, live: &mut Live, console: &Console) -> Ending {
        let timeout = self.around.config.boot_timeout();
        let started = {
            let start = bring_up::bring_up(&self.machine, &self.around, console, live);
            tokio::select! {
                started = tokio::time::timeout(timeout, start) => started,
                grace = asked_to_stop(&mut self.commands) => return Ending::Asked(grace),
            }
        };
        let phase = match self.machine.state() {
            State::Starting { phase } => Some(phase),
            _ => None,
        };
        match started {
            Ok(Ok(())) => self.keep(live, console).await,
            Ok(Err(error)) => Ending::Failed(self.start_failure(error, phase, console).await),
            Err(_) => {
                let doing = phase.map_or_else(String::new, |phase| format!(" It was still {phase}."));
                let reason = format!(
                    "the machine did not come up within {} seconds.{doing} A slow host may need more: set timeouts.boot in \
                     the configuration",
                    timeout.as_secs()
                );
                Ending::Failed(Failure::now(reason, phase))
            }
        }
    }

    /// Runs a machine that is up, until it has to be taken down.
    async fn keep(&mut self, live: &mut Live, console: &Console) -> Ending {
        let mut clock = match ClockWatch::new() {
            Ok(clock) => Some(clock),
            Err(error) => {
                self.machine
                    .warn(format!("the guest's clock will not follow the host's: {error}"));
                None
            }
        };
        let (offset, mut offsets) = mpsc::channel(1);
        let mut last_words = LastWords::default();
        loop {
            tokio::select! {
                happening = live.next() => match happening {
                    Happening::Guest(event) => self.hear(event, &mut last_words),
                    Happening::Ended(exit) => {
                        for event in live.last_events().await {
                            self.hear(event, &mut last_words);
                        }
                        return self.ended(&exit, last_words, console);
                    }
                    Happening::Network(state) => self.machine.set_network(state),
                    Happening::ProxyEnded(why) => {
                        let reason = format!("the Docker socket cannot be served any more: {why}");
                        return Ending::Failed(Failure::now(reason, None));
                    }
                },
                command = self.commands.recv() => match command {
                    Some(Command::Stop { grace }) => return Ending::Asked(grace),
                    None => return Ending::Asked(None),
                    Some(Command::Pause(answer)) => {
                        let result = self.pause(live).await;
                        let _ = answer.send(result);
                    }
                    Some(Command::Resume(answer)) => {
                        let result = self.resume(live).await;
                        let _ = answer.send(result);
                    }
                },
                Some(offset) = offsets.recv() => if let Some(clock) = &mut clock {
                    clock.was_off(offset);
                },
                result = clock_changed(clock.as_ref()) => match result {
                    Ok(()) => self.set_clock(Some(offset.clone())),
                    Err(error) => tracing::warn!(%error, "cannot watch the host's clock"),
                },
            }
        }
    }

    /// Deals with what a running guest reports.
    fn hear(&self, event: GuestEvent, last_words: &mut LastWords) {
        match event {
            GuestEvent::DockerExited {
                status,
                restart_in_ms,
            } => {
                self.machine.events.send(Event::Docker { ready: false });
                self.machine.warn(format!(
                    "the Docker daemon ended ({status}) and is started again in {restart_in_ms} ms; see `berth logs --source \
                     dockerd`"
                ));
            }
            GuestEvent::DockerReady { version } => {
                self.machine.events.send(Event::Docker { ready: true });
                self.machine.note(format!("Docker {version} answers again"));
                self.machine.facts().docker_version = Some(version);
            }
            GuestEvent::ShareFailed { id, message } => {
                self.machine.shares.failed(&id, message, &self.machine);
            }
            GuestEvent::Warning { message } => self.machine.warn(format!("guest: {message}")),
            GuestEvent::Fatal { message } => {
                tracing::error!("guest: {message}");
                last_words.fatal = Some(message);
            }
            GuestEvent::PoweringOff => last_words.powering_off = true,
            GuestEvent::ShuttingDown => {
                // Whoever starts the machine from now on has to wait for its end first.
                self.step(Step::Stop);
                tracing::info!("the guest shuts down by itself");
            }
            event @ (GuestEvent::DataDiskReady { .. }
            | GuestEvent::NetworkReady
            | GuestEvent::DockerStarting) => tracing::info!(?event, "guest"),
        }
    }

    /// The machine has ended and nobody asked it to.
    fn ended(&self, exit: &EngineExit, last_words: LastWords, console: &Console) -> Ending {
        if let Some(message) = last_words.fatal {
            return Ending::Failed(Failure::now(format!("the guest gave up: {message}"), None));
        }
        if last_words.powering_off && *exit.cause() == EngineExit::GuestReset {
            self.machine.note("the guest powered off by itself");
            return Ending::ByItself;
        }
        Ending::Failed(Failure::now(describe_end(exit, console), None))
    }

    async fn pause(&self, live: &Live) -> Result<(), String> {
        self.machine
            .state()
            .after(Step::Pause)
            .map_err(|error| error.to_string())?;
        // Docker calls wait from now on. One that is already with the guest is answered by what its clock says then.
        if let Some(clock) = live.clock() {
            clock.spoil();
        }
        live.engine()
            .ok_or("there is no machine")?
            .pause()
            .await
            .map_err(|error| chain(&error.into()))?;
        self.step(Step::Pause);
        Ok(())
    }

    async fn resume(&self, live: &Live) -> Result<(), String> {
        self.machine
            .state()
            .after(Step::Resume)
            .map_err(|error| error.to_string())?;
        live.engine()
            .ok_or("there is no machine")?
            .resume()
            .await
            .map_err(|error| chain(&error.into()))?;
        self.step(Step::Resume);
        // It stood still, and nobody has set it meanwhile. Docker calls wait for it, and so does who resumes.
        if let Some(clock) = live.clock()
            && let Err(error) = clock.reach().await
        {
            self.machine
                .warn(format!("the guest's clock is not right yet: {}", chain(&error)));
        }
        Ok(())
    }

    /// Sets the guest's clock, and says how far it was off to whoever wants to know.
    fn set_clock(&self, offset: Option<mpsc::Sender<i64>>) {
        let Some(dial) = self.machine.dial() else {
            return;
        };
        if self.machine.state() == State::Paused {
            return;
        }
        tokio::spawn(async move {
            match Control::new(dial).set_clock(CLOCK_TIMEOUT).await {
                Ok(offset_ns) => {
                    tracing::debug!(offset_ns, "the guest's clock was set");
                    if let Some(offset) = offset {
                        // A supervisor that has ended does not mind.
                        let _ = offset.send(offset_ns).await;
                    }
                }
                Err(error) => tracing::warn!("{}", chain(&error.into())),
            }
        });
    }

    /// Takes the machine down and makes the ending complete.
    async fn end(&mut self, live: Live, console: &Console, ending: Ending) -> Ending {
        let grace = match &ending {
            Ending::Asked(grace) => {
                self.step(Step::Stop);
                *grace
            }
            Ending::ByItself => {
                self.step(Step::Stop);
                None
            }
            Ending::Failed(_) => None,
        };
        take_down::take_down(&self.machine, &self.around, &mut self.commands, live, grace).await;
        match ending {
            Ending::Failed(mut failure) => {
                failure.console = console.last_lines(CONSOLE_LINES);
                Ending::Failed(failure)
            }
            other => other,
        }
    }

    /// What a start's error means to the user. A guest that does not get to its init may be damaged, which is found out here.
    async fn start_failure(&self, error: StartError, phase: Option<Phase>, console: &Console) -> Failure {
        let host_lacks = error.host_lacks();
        let mut reason = match error {
            StartError::Ended(exit) => describe_end(&exit, console),
            StartError::Other(error) => chain(&error),
        };
        let in_guest = phase.is_some_and(|phase| (Phase::Engine..=Phase::Guest).contains(&phase));
        if in_guest && !host_lacks {
            let dir = self.around.guest_dir.clone();
            // Reads a hundred megabytes or so.
            let damage = tokio::task::spawn_blocking(move || {
                let files = GuestFiles::locate(&dir)?;
                files.verify_kernel()?;
                files.verify_image()
            })
            .await;
            if let Ok(Err(damage)) = damage {
                reason = format!("{reason}. The cause: {}", guest_files::explain(damage));
            }
        }
        Failure {
            host_lacks,
            ..Failure::now(reason, phase)
        }
    }

    fn step(&self, step: Step) {
        if let Err(error) = self.machine.step(step) {
            // A mistake in this file; the machine's life goes on all the same.
            tracing::error!("{error}");
        }
    }
}

/// What a guest said last.
#[derive(Debug, Default)]
struct LastWords {
    fatal: Option<String>,
    powering_off: bool,
}

/// Why a machine ended that nobody stopped, in one sentence.
fn describe_end(exit: &EngineExit, console: &Console) -> String {
    let lines = console.last_lines(usize::MAX);
    match (
        exit.cause(),
        failure::kernel_panic(lines.iter().map(String::as_str)),
    ) {
        (EngineExit::GuestReset, Some(panic)) => format!("the guest's kernel panicked: {panic}"),
        (EngineExit::GuestReset, None) => {
            "the guest ended without a word; the console's last lines may tell why".into()
        }
        (EngineExit::Killed(how), _) => format!(
            "the virtual machine was killed from outside ({}); the host may have run out of memory",
            how.as_deref().unwrap_or("no status")
        ),
        (EngineExit::Failed(why), _) => format!("the virtual machine failed: {why}"),
        // A cause has no part that is stuck.
        (EngineExit::Stuck { what, .. }, _) => format!("{what} did not stop"),
    }
}

/// Waits for a stop; what else is asked of a machine that is not up is refused.
pub(super) async fn asked_to_stop(commands: &mut mpsc::Receiver<Command>) -> Option<Duration> {
    loop {
        match commands.recv().await {
            Some(Command::Stop { grace }) => return grace,
            Some(Command::Pause(answer) | Command::Resume(answer)) => {
                // Whoever asked may have gone.
                let _ = answer.send(Err("the machine is not running".into()));
            }
            None => return None,
        }
    }
}

async fn clock_changed(clock: Option<&ClockWatch>) -> std::io::Result<()> {
    match clock {
        Some(clock) => clock.changed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::host::Host;
    use crate::machine::settings::Settings;
    use crate::name::MachineName;

    fn console(text: &str) -> (tempfile::TempDir, Console) {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::new(RotatingFile::open(dir.path().join("console.log")).unwrap());
        console.sink().writer().write_all(text.as_bytes()).unwrap();
        (dir, console)
    }

    #[test]
    fn an_end_nobody_wanted_is_explained() {
        let (_dir, panicked) = console("[ 1.0] Kernel panic - not syncing: VFS: no root\n[ 1.1] end\n");
        assert_eq!(
            describe_end(&EngineExit::GuestReset, &panicked),
            "the guest's kernel panicked: VFS: no root"
        );
        let (_dir, quiet) = console("");
        assert!(describe_end(&EngineExit::GuestReset, &quiet).contains("without a word"));
        assert!(describe_end(&EngineExit::Killed(Some("signal 9".into())), &panicked).contains("signal 9"));
        assert!(describe_end(&EngineExit::Failed("no memory".into()), &quiet).ends_with("no memory"));
    }

    #[tokio::test]
    async fn whoever_listens_hears_when_docker_ends_and_when_it_answers_again() {
        let dir = tempfile::tempdir().unwrap();
        let paths = crate::paths::MachinePaths {
            data_dir: dir.path().into(),
            state_dir: dir.path().into(),
            runtime_dir: dir.path().into(),
        };
        let settings = Settings::resolve(&Chosen::default(), &Config::default(), &Host::detect()).unwrap();
        let (machine, commands) = Handle::new(MachineName::default(), paths, settings, &Config::default());
        let machine = Arc::new(machine);
        let (children, _) = Children::take_over(dir.path().join("children.json")).unwrap();
        let around = Surroundings {
            config: Config::default(),
            chosen: Chosen::default(),
            guest_dir: dir.path().into(),
            children,
        };
        let supervisor = Supervisor::new(Arc::clone(&machine), commands, around);
        let mut words = LastWords::default();
        let exited = GuestEvent::DockerExited {
            status: "signal 9".into(),
            restart_in_ms: 500,
        };
        let ready = GuestEvent::DockerReady { version: "27".into() };
        for event in [exited, ready] {
            supervisor.hear(event, &mut words);
        }
        machine.events.close();
        let mut listener = machine.events.listen();
        let mut heard = Vec::new();
        while let Some(event) = listener.next().await {
            heard.push(event);
        }
        assert!(
            matches!(
                &heard[..],
                [
                    Event::Docker { ready: false },
                    Event::Warning { message },
                    Event::Docker { ready: true },
                    Event::Note { .. },
                ] if message.contains("signal 9")
            ),
            "{heard:?}"
        );
    }

    #[tokio::test]
    async fn while_there_is_no_machine_only_a_stop_is_heard() {
        let (sender, mut commands) = mpsc::channel(4);
        let (answer, refused) = tokio::sync::oneshot::channel();
        sender.send(Command::Pause(answer)).await.unwrap();
        sender
            .send(Command::Stop {
                grace: Some(Duration::from_secs(1)),
            })
            .await
            .unwrap();
        assert_eq!(asked_to_stop(&mut commands).await, Some(Duration::from_secs(1)));
        assert!(refused.await.unwrap().is_err());
        drop(sender);
        assert_eq!(asked_to_stop(&mut commands).await, None);
    }
}
