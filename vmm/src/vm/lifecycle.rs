//! The states of a machine and what takes it from one to the next: a pure function, so that the contract of
//! docs/lifecycle.md can be tested line by line.

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmState {
    /// Being put together; no vCPU has run.
    Starting,
    /// vCPUs run.
    Running,
    /// Asked to pause; some vCPUs may still run.
    Pausing,
    /// No vCPU runs. Devices finish what they were asked before and accept no new requests.
    Paused,
    /// The end has begun: vCPUs leave, devices are deactivated.
    Stopping,
    /// Nothing of the machine is left but why it ended.
    Ended,
}

/// What can happen to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmEvent {
    /// Everything is in place; the vCPUs may go.
    Started,
    /// Somebody wants a pause.
    PauseRequested,
    /// Every vCPU has stopped for the pause.
    AllParked,
    /// Somebody wants to go on, or gave up on a pause.
    ResumeRequested,
    /// The guest reset itself, somebody killed the machine, or it cannot go on.
    EndRequested,
    /// Every vCPU has left and every device is deactivated.
    TornDown,
}

/// What an event does in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// The machine goes to this state.
    To(VmState),
    /// Nothing to do: the machine is where the event wants it, or on its way there.
    Stay,
    /// The event cannot be had in this state.
    Refuse,
}

impl VmState {
    /// What `event` does in this state.
    pub fn on(self, event: VmEvent) -> Transition {
        use Transition::{Refuse, Stay, To};
        use VmEvent::{AllParked, EndRequested, PauseRequested, ResumeRequested, Started, TornDown};
        use VmState::{Ended, Paused, Pausing, Running, Starting, Stopping};
        match (self, event) {
            (Starting, Started) => To(Running),
            (Running, PauseRequested) => To(Pausing),
            (Pausing | Paused, PauseRequested) => Stay,
            (Pausing, AllParked) => To(Paused),
            (Pausing | Paused, ResumeRequested) => To(Running),
            (Running, ResumeRequested) => Stay,
            (Starting | Running | Pausing | Paused, EndRequested) => To(Stopping),
            // The first reason to end is the one that counts.
            (Stopping | Ended, EndRequested) => Stay,
            // A vCPU that parks when the machine is already ending, or was told to go on, is no longer waited for.
            (Running | Paused | Stopping, AllParked) => Stay,
            (Stopping, TornDown) => To(Ended),
            (Starting, PauseRequested | AllParked | ResumeRequested | TornDown)
            | (Running | Pausing | Paused | Stopping | Ended, Started)
            | (Running | Pausing | Paused, TornDown)
            | (Stopping | Ended, PauseRequested | ResumeRequested)
            | (Ended, AllParked | TornDown) => Refuse,
        }
    }

    /// Whether the end has begun or is over.
    pub fn is_ending(self) -> bool {
        matches!(self, VmState::Stopping | VmState::Ended)
    }
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest reset the machine: it powered off, rebooted or panicked. A guest without ACPI has no other way to say
    /// so.
    Reset,
    /// [`Vm::kill`](super::Vm::kill), or the last handle was dropped.
    Killed,
    /// The machine could not go on; what happened.
    InternalError(String),
    /// The machine ended for the reason `after`, but a device or vCPU did not stop in time. Its thread is left behind,
    /// and so is what it holds: the machine's memory, and its disk images, which must not be used by another machine
    /// before this process has ended.
    Stuck {
        /// What did not stop.
        what: String,
        /// Why the machine ended.
        after: Box<ExitReason>,
    },
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExitReason::Reset => f.write_str("the guest reset the machine"),
            ExitReason::Killed => f.write_str("the machine was killed"),
            ExitReason::InternalError(what) => write!(f, "the machine cannot go on: {what}"),
            ExitReason::Stuck { what, after } => write!(f, "{after}, but {what} did not stop"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Transition::{Refuse, Stay, To},
        VmEvent::*,
        VmState::*,
        *,
    };

    const STATES: [VmState; 6] = [Starting, Running, Pausing, Paused, Stopping, Ended];
    const EVENTS: [VmEvent; 6] = [
        Started,
        PauseRequested,
        AllParked,
        ResumeRequested,
        EndRequested,
        TornDown,
    ];

    /// The table of docs/lifecycle.md: a row per state, a column per event.
    #[test]
    fn every_transition_is_as_documented() {
        let table = [
            [To(Running), Refuse, Refuse, Refuse, To(Stopping), Refuse],
            [Refuse, To(Pausing), Stay, Stay, To(Stopping), Refuse],
            [Refuse, Stay, To(Paused), To(Running), To(Stopping), Refuse],
            [Refuse, Stay, Stay, To(Running), To(Stopping), Refuse],
            [Refuse, Refuse, Stay, Refuse, Stay, To(Ended)],
            [Refuse, Refuse, Refuse, Refuse, Stay, Refuse],
        ];
        for (state, row) in STATES.into_iter().zip(table) {
            for (event, expected) in EVENTS.into_iter().zip(row) {
                assert_eq!(state.on(event), expected, "{state:?} on {event:?}");
            }
        }
    }

    #[test]
    fn every_state_but_the_last_can_end_and_none_comes_back() {
        for state in STATES {
            match state.on(EndRequested) {
                To(Stopping) => assert!(!state.is_ending()),
                Stay => assert!(state.is_ending()),
                other => panic!("{state:?}: {other:?}"),
            }
            if state.is_ending() {
                for event in EVENTS {
                    assert!(!matches!(state.on(event), To(next) if !next.is_ending()));
                }
            }
        }
    }
}
