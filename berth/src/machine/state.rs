//! Where a machine is in its life, and which steps lead where.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A part of a machine's start, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Files are checked, the disk is made, an engine is chosen.
    Prepare,
    /// The network helper starts.
    Network,
    /// The engine makes the virtual machine.
    Engine,
    /// The guest's kernel boots until guest-init calls.
    Kernel,
    /// The guest mounts its disk and sets itself up.
    Guest,
    /// The Docker daemon starts.
    Docker,
    /// The Docker socket answers and the docker context is made.
    Socket,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Prepare => "checking files and choosing an engine",
            Phase::Network => "starting the network",
            Phase::Engine => "starting the virtual machine",
            Phase::Kernel => "booting the guest",
            Phase::Guest => "preparing the guest",
            Phase::Docker => "starting Docker",
            Phase::Socket => "opening the Docker socket",
        })
    }
}

/// Where a machine is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// It is files and nothing else.
    Stopped,
    /// It is being started.
    Starting {
        /// How far that is.
        phase: Phase,
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
        reason: String,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Stopped => f.write_str("stopped"),
            State::Starting { phase } => write!(f, "starting ({phase})"),
            State::Running => f.write_str("running"),
            State::Paused => f.write_str("paused"),
            State::Stopping => f.write_str("stopping"),
            State::Failed { reason } => write!(f, "failed: {reason}"),
        }
    }
}

/// What can happen to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A phase of its start begins.
    Enter(Phase),
    /// Docker answers on its socket.
    Ready,
    /// Its virtual CPUs were stopped.
    Pause,
    /// They run again.
    Resume,
    /// Somebody wants it stopped.
    Stop,
    /// Nothing of it is left, as was wanted.
    Stopped,
    /// It failed, for this reason, and nothing of it is left.
    Fail(String),
}

/// A step that does not lead on from where the machine is: a mistake in the daemon, or a request at the wrong time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a machine that is {from} cannot {step}")]
pub struct WrongStep {
    from: String,
    step: &'static str,
}

impl State {
    /// The state after `step`.
    pub fn after(&self, step: Step) -> Result<State, WrongStep> {
        use State::{Failed, Paused, Running, Starting, Stopped, Stopping};
        let name = step.name();
        match (self, step) {
            (Stopped | Failed { .. }, Step::Enter(phase @ Phase::Prepare)) => Ok(Starting { phase }),
            // Phases may be left out (no network), never gone back to.
            (Starting { phase: now }, Step::Enter(phase)) if phase > *now => Ok(Starting { phase }),
            (Starting { phase: Phase::Socket }, Step::Ready) => Ok(Running),
            (Running | Paused, Step::Pause) => Ok(Paused),
            (Running | Paused, Step::Resume) => Ok(Running),
            (Starting { .. } | Running | Paused | Stopping, Step::Stop) => Ok(Stopping),
            (Stopping, Step::Stopped) => Ok(Stopped),
            (Starting { .. } | Running | Paused | Stopping, Step::Fail(reason)) => Ok(Failed { reason }),
            _ => Err(WrongStep {
                from: self.to_string(),
                step: name,
            }),
        }
    }

    /// Whether the machine is gone and its daemon about to be.
    pub fn is_final(&self) -> bool {
        matches!(self, State::Stopped | State::Failed { .. })
    }
}

impl Step {
    fn name(&self) -> &'static str {
        match self {
            Step::Enter(_) => "go on with its start",
            Step::Ready => "become ready",
            Step::Pause => "be paused",
            Step::Resume => "be resumed",
            Step::Stop => "be stopped",
            Step::Stopped => "have stopped",
            Step::Fail(_) => "fail",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 7] = [
        Phase::Prepare,
        Phase::Network,
        Phase::Engine,
        Phase::Kernel,
        Phase::Guest,
        Phase::Docker,
        Phase::Socket,
    ];

    fn starting(phase: Phase) -> State {
        State::Starting { phase }
    }

    #[test]
    fn a_start_goes_through_its_phases_in_order() {
        let mut state = State::Stopped;
        for phase in PHASES {
            state = state.after(Step::Enter(phase)).unwrap();
        }
        assert_eq!(state.after(Step::Ready), Ok(State::Running));
    }

    #[test]
    fn phases_may_be_left_out_and_never_come_again() {
        let engine = starting(Phase::Prepare)
            .after(Step::Enter(Phase::Engine))
            .unwrap();
        assert_eq!(engine, starting(Phase::Engine));
        for phase in PHASES.into_iter().filter(|phase| *phase <= Phase::Engine) {
            assert!(engine.after(Step::Enter(phase)).is_err());
        }
        assert!(
            engine.after(Step::Ready).is_err(),
            "not before the socket answers"
        );
        assert!(State::Stopped.after(Step::Enter(Phase::Kernel)).is_err());
    }

    #[test]
    fn a_machine_can_be_stopped_from_every_state_in_which_there_is_one() {
        for state in PHASES
            .map(starting)
            .into_iter()
            .chain([State::Running, State::Paused, State::Stopping])
        {
            let stopping = state.after(Step::Stop).unwrap();
            assert_eq!(stopping.after(Step::Stopped), Ok(State::Stopped));
            let failed = state.after(Step::Fail("x".into())).unwrap();
            assert!(failed.is_final());
            assert_eq!(
                failed.after(Step::Enter(Phase::Prepare)),
                Ok(starting(Phase::Prepare))
            );
        }
        assert!(State::Stopped.after(Step::Stop).is_err());
        assert!(State::Running.after(Step::Stopped).is_err());
    }

    #[test]
    fn only_a_running_machine_can_be_paused() {
        let paused = State::Running.after(Step::Pause).unwrap();
        assert_eq!(paused.after(Step::Pause), Ok(State::Paused));
        assert_eq!(paused.after(Step::Resume), Ok(State::Running));
        assert_eq!(
            starting(Phase::Kernel)
                .after(Step::Pause)
                .unwrap_err()
                .to_string(),
            "a machine that is starting (booting the guest) cannot be paused"
        );
    }

    #[test]
    fn states_have_stable_names_on_the_wire() {
        assert_eq!(
            serde_json::to_string(&starting(Phase::Docker)).unwrap(),
            r#"{"state":"starting","phase":"docker"}"#
        );
        assert_eq!(
            serde_json::to_string(&State::Running).unwrap(),
            r#"{"state":"running"}"#
        );
    }
}
