//! What is known of one machine.

use std::time::{Duration, Instant};

use crate::daemon::types::{Container, Port, Profiles, State, Status};
use crate::machines::{FileId, Files};
use crate::words;

/// How it is with a machine's daemon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Daemon {
    /// There is none.
    #[default]
    None,
    /// There may be one; it has not answered yet.
    Awaited,
    /// It does not answer.
    Silent,
    /// It tells what happens.
    Answers,
}

/// What is being done about a machine because the user asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Doing {
    /// It is being started.
    Start,
    /// It was asked to stop.
    Stop,
    /// It is being stopped and started.
    Restart,
    /// It is being switched to this profile.
    Profile(String),
}

/// What the icon looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Look {
    /// Nothing runs.
    Stopped,
    /// A start is under way; so many of its seven parts are done.
    Starting(u8),
    /// Docker answers and all is well.
    Running,
    /// It runs, and the user should know something.
    Warning,
    /// It could not be started, or ended by itself.
    Failed,
}

/// A machine.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    pub(super) files: Files,
    /// The socket of the daemon that is followed.
    pub(super) following: Option<FileId>,
    pub(super) daemon: Daemon,
    pub(super) state: State,
    pub(super) docker_ready: bool,
    /// The current failure, or that of the current attempt, has been told.
    pub(super) failure_told: bool,
    pub(super) doing: Option<Doing>,
    /// Why nobody can tell how it is.
    pub(super) trouble: Option<String>,
    pub(super) profiles: Option<Profiles>,
    pub(super) containers: Vec<Container>,
    pub(super) ports: Vec<Port>,
    facts: Option<Status>,
    /// When its start began.
    since: Option<Instant>,
}

/// Whether there is a machine of this state, more than its files.
pub(super) fn is_live(state: &State) -> bool {
    !matches!(state, State::Stopped | State::Failed { .. })
}

impl Machine {
    /// The daemon begins to tell.
    pub(super) fn begin(&mut self) {
        self.daemon = Daemon::Answers;
        self.docker_ready = true;
        self.trouble = None;
        self.containers.clear();
        self.ports.clear();
        self.facts = None;
        self.since = None;
    }

    /// The daemon is gone.
    pub(super) fn end(&mut self) {
        self.following = None;
        self.daemon = Daemon::None;
        self.containers.clear();
        self.ports.clear();
        self.since = None;
    }

    pub(super) fn set_state(&mut self, state: State) {
        let reached = match self.doing {
            Some(Doing::Start) => is_live(&state),
            Some(Doing::Stop) => !matches!(state, State::Running | State::Paused | State::Starting { .. }),
            Some(Doing::Restart | Doing::Profile(_)) | None => false,
        };
        if reached {
            self.doing = None;
        }
        if state == State::Running {
            self.failure_told = false;
        }
        self.state = state;
    }

    pub(super) fn learn(&mut self, status: &Status, now: Instant) {
        self.trouble = None;
        self.since = status
            .uptime_seconds
            .and_then(|seconds| now.checked_sub(Duration::from_secs(seconds)));
        if let Some(profiles) = &mut self.profiles {
            profiles.current.clone_from(&status.settings.profile);
        }
        self.facts = Some(status.clone());
    }

    /// Whether it runs, paused or not, or is on its way to that.
    pub(crate) fn is_live(&self) -> bool {
        is_live(&self.state)
    }

    /// Where it is in its life.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Whether it can be told to do things.
    pub(crate) fn is_running(&self) -> bool {
        self.state == State::Running && self.daemon == Daemon::Answers
    }

    /// What is being done about it.
    pub(crate) fn doing(&self) -> Option<&Doing> {
        self.doing.as_ref()
    }

    /// Its profiles, where they are known.
    pub(crate) fn profiles(&self) -> Option<&Profiles> {
        self.profiles.as_ref()
    }

    /// What runs in it.
    pub(crate) fn containers(&self) -> &[Container] {
        &self.containers
    }

    /// What leads into it.
    pub(crate) fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// How it was when somebody asked last.
    pub(crate) fn facts(&self) -> Option<&Status> {
        self.facts.as_ref()
    }

    /// What the user should know of it: warnings, and why nobody can tell more.
    pub(crate) fn warnings(&self) -> Vec<&str> {
        let silent = (self.daemon == Daemon::Silent)
            .then_some("the machine's daemon does not answer; `berth stop --force` ends it");
        let warnings = self.facts.iter().flat_map(|facts| &facts.warnings);
        silent
            .into_iter()
            .chain(self.trouble.as_deref())
            .chain(warnings.map(String::as_str))
            .collect()
    }

    /// Why it failed, if it did.
    pub(crate) fn failure(&self) -> Option<&str> {
        match &self.state {
            State::Failed { reason } if self.doing.is_none() => Some(reason),
            _ => None,
        }
    }

    /// How long it has been up.
    pub(crate) fn uptime(&self, now: Instant) -> Option<Duration> {
        self.since
            .filter(|_| self.is_live())
            .map(|since| now.saturating_duration_since(since))
    }

    /// Where it is in its life, in the words of the command line.
    pub(crate) fn state_text(&self) -> String {
        if self.daemon == Daemon::Silent {
            return "does not answer".into();
        }
        match (&self.doing, &self.state) {
            (Some(Doing::Start | Doing::Restart), State::Stopped | State::Failed { .. }) => "starting".into(),
            (Some(Doing::Stop), State::Starting { .. } | State::Running | State::Paused) => "stopping".into(),
            (_, State::Stopped) => "stopped".into(),
            (_, State::Starting { phase }) => format!("starting ({})", words::phase(phase)),
            (_, State::Running) => "running".into(),
            (_, State::Paused) => "paused".into(),
            (_, State::Stopping) => "stopping".into(),
            (_, State::Failed { .. }) => "failed".into(),
            (_, State::Other) => "in a state that this version does not know".into(),
        }
    }

    /// What the icon looks like while this machine is shown.
    pub(crate) fn look(&self) -> Look {
        let bad = self.daemon == Daemon::Silent || self.trouble.is_some();
        match (&self.doing, &self.state) {
            (Some(Doing::Start | Doing::Restart), State::Stopped | State::Failed { .. }) => Look::Starting(0),
            (_, State::Failed { .. }) => Look::Failed,
            _ if bad => Look::Warning,
            (_, State::Starting { phase }) => Look::Starting(done(phase)),
            (_, State::Running) if !self.warnings().is_empty() || !self.docker_ready => Look::Warning,
            (_, State::Running) => Look::Running,
            (_, State::Other) => Look::Warning,
            (_, State::Stopped | State::Stopping | State::Paused) => Look::Stopped,
        }
    }
}

/// How many parts of a start are done when this one begins.
fn done(phase: &str) -> u8 {
    let at = words::PHASES.iter().position(|known| *known == phase);
    at.and_then(|at| u8::try_from(at).ok()).unwrap_or(0)
}
