//! What is known of all machines, and what follows from what happens to them.
//!
//! Pure: what comes in are [`Update`]s, what goes out are [`Effect`]s, and what is shown is computed from the [`World`].

mod machine;
mod notices;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

pub(crate) use machine::{Daemon, Doing, Look, Machine};
pub(crate) use notices::Notice;

use crate::daemon::follow::Told;
use crate::daemon::types::{Event, Profiles, State, Status};
use crate::machines::{FileId, Machines};

/// Who told a machine's facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Its daemon.
    Daemon,
    /// Its files, as the command line reads them.
    Files,
}

/// Something that the icon came to know.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Update {
    /// These are the machines now.
    Machines(Machines),
    /// Whoever follows the daemon on a socket says something.
    Followed {
        /// The machine.
        machine: String,
        /// The socket: words about one that has been replaced since do not count.
        socket: FileId,
        /// What.
        told: Told,
    },
    /// How a machine is, or why nobody can tell.
    Facts {
        /// The machine.
        machine: String,
        /// Who says so.
        source: Source,
        /// What.
        status: Result<Box<Status>, String>,
    },
    /// The profiles it can have.
    Profiles {
        /// The machine.
        machine: String,
        /// Which.
        profiles: Profiles,
    },
    /// The user wants something done, and it has begun.
    Doing {
        /// The machine.
        machine: String,
        /// What.
        doing: Doing,
    },
    /// That has ended.
    Done {
        /// The machine.
        machine: String,
        /// What.
        doing: Doing,
        /// How; if not well, why.
        result: Result<(), String>,
    },
    /// The user wants to see this machine.
    Show(String),
}

/// Something to be done about an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Follow the daemon on this socket, and no other of this machine.
    Follow {
        /// The machine.
        machine: String,
        /// Its socket.
        socket: FileId,
    },
    /// Follow it no longer.
    Leave(String),
    /// Ask the daemon how the machine is.
    AskDaemon(String),
    /// Ask the command line how a machine without a daemon is.
    AskFiles(String),
    /// Tell the user.
    Notify(Notice),
}

/// All that is known.
#[derive(Debug)]
pub(crate) struct World {
    machines: BTreeMap<String, Machine>,
    shown: String,
    /// What the user has been told of.
    told: BTreeSet<String>,
}

impl World {
    /// Knows nothing yet, and is to show this machine.
    pub(crate) fn new(shown: String) -> World {
        World {
            machines: BTreeMap::new(),
            shown,
            told: BTreeSet::new(),
        }
    }

    /// The name of the machine that is shown.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// A machine, if there is such a one.
    pub(crate) fn machine(&self, name: &str) -> Option<&Machine> {
        self.machines.get(name)
    }

    /// All machines.
    pub(crate) fn machines(&self) -> impl Iterator<Item = (&str, &Machine)> {
        self.machines
            .iter()
            .map(|(name, machine)| (name.as_str(), machine))
    }

    /// Whom to ask how a machine is.
    pub(crate) fn ask(&self, name: &str) -> Option<Effect> {
        let machine = self.machines.get(name)?;
        Some(match machine.daemon {
            Daemon::None => Effect::AskFiles(name.to_owned()),
            // It is asked when it has answered once.
            Daemon::Awaited | Daemon::Silent => return None,
            Daemon::Answers => Effect::AskDaemon(name.to_owned()),
        })
    }

    /// Takes in what happened.
    pub(crate) fn apply(&mut self, update: Update, now: Instant) -> Vec<Effect> {
        match update {
            Update::Machines(machines) => self.see(machines),
            Update::Followed {
                machine,
                socket,
                told,
            } => self.hear(&machine, socket, told),
            Update::Facts {
                machine,
                source,
                status,
            } => self.learn(&machine, source, status, now),
            Update::Profiles { machine, profiles } => {
                if let Some(machine) = self.machines.get_mut(&machine) {
                    machine.profiles = Some(profiles);
                }
                Vec::new()
            }
            Update::Doing { machine, doing } => {
                // The first start of a machine makes it.
                let machine = self.machines.entry(machine).or_default();
                machine.failure_told = false;
                machine.doing = Some(doing);
                Vec::new()
            }
            Update::Done {
                machine,
                doing,
                result,
            } => self.done(machine, doing, result),
            Update::Show(name) => {
                let ask = self.ask(&name);
                self.shown = name;
                ask.into_iter().collect()
            }
        }
    }

    /// These are the machines' files now.
    fn see(&mut self, seen: Machines) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.machines.retain(|name, machine| {
            // One that is being made has no files yet.
            let stays = seen.contains_key(name) || machine.doing.is_some();
            if !stays && machine.following.is_some() {
                effects.push(Effect::Leave(name.clone()));
            }
            stays
        });
        for (name, files) in seen {
            let is_new = !self.machines.contains_key(&name);
            let machine = self.machines.entry(name.clone()).or_default();
            let changed = is_new || machine.files != files;
            let socket = files.socket.filter(|_| machine.files.socket != files.socket);
            machine.files = files;
            if let Some(socket) = socket {
                machine.following = Some(socket);
                machine.daemon = Daemon::Awaited;
                effects.push(Effect::Follow {
                    machine: name,
                    socket,
                });
            } else if changed && machine.following.is_none() {
                effects.push(Effect::AskFiles(name));
            }
        }
        effects
    }

    /// A follower says something.
    fn hear(&mut self, name: &str, socket: FileId, told: Told) -> Vec<Effect> {
        let Some(machine) = self.machines.get_mut(name) else {
            return Vec::new();
        };
        if machine.following != Some(socket) {
            return Vec::new();
        }
        match told {
            Told::Began => {
                machine.begin();
                vec![Effect::AskDaemon(name.to_owned())]
            }
            Told::Silent => {
                machine.daemon = Daemon::Silent;
                Vec::new()
            }
            Told::Gone => {
                machine.end();
                vec![Effect::AskFiles(name.to_owned())]
            }
            Told::Event(event) => self.happened(name, event),
        }
    }

    fn happened(&mut self, name: &str, event: Event) -> Vec<Effect> {
        let Some(machine) = self.machines.get_mut(name) else {
            return Vec::new();
        };
        match event {
            Event::Phase { phase } => {
                machine.set_state(State::Starting { phase });
                // Facts of a machine that starts are of no interest.
                return Vec::new();
            }
            Event::State { state } => {
                let effects = self.turned(name, state);
                let asks = self
                    .machines
                    .get(name)
                    .is_some_and(|machine| !matches!(machine.state, State::Starting { .. }));
                let ask = asks.then(|| Effect::AskDaemon(name.to_owned()));
                return effects.into_iter().chain(ask).collect();
            }
            Event::Docker { ready } => machine.docker_ready = ready,
            Event::Containers { containers } => machine.containers = containers,
            Event::Ports { ports } => machine.ports = ports,
            Event::Settings { profile } => {
                if let Some(profiles) = &mut machine.profiles {
                    profiles.current = profile;
                }
            }
            Event::Warning { .. } | Event::Usage => {}
            Event::Failed(_) | Event::Other => return Vec::new(),
        }
        vec![Effect::AskDaemon(name.to_owned())]
    }

    /// The machine is in another state; a failure is told.
    fn turned(&mut self, name: &str, state: State) -> Option<Effect> {
        let machine = self.machines.get_mut(name)?;
        let was = machine.state.clone();
        machine.set_state(state);
        let State::Failed { reason } = &machine.state else {
            return None;
        };
        // One that was found failed has been told of before, if only by the icon.
        if !machine::is_live(&was) || machine.failure_told {
            return None;
        }
        machine.failure_told = true;
        Some(Effect::Notify(if matches!(was, State::Starting { .. }) {
            Notice::start_failed(name, reason)
        } else {
            Notice::failed(name, reason)
        }))
    }

    fn learn(
        &mut self,
        name: &str,
        source: Source,
        status: Result<Box<Status>, String>,
        now: Instant,
    ) -> Vec<Effect> {
        let Some(machine) = self.machines.get_mut(name) else {
            return Vec::new();
        };
        let is_current = match source {
            Source::Daemon => machine.daemon == Daemon::Answers,
            Source::Files => machine.daemon == Daemon::None,
        };
        if !is_current {
            return Vec::new();
        }
        let status = match status {
            Ok(status) => *status,
            Err(message) => {
                machine.trouble = Some(message);
                return Vec::new();
            }
        };
        machine.learn(&status, now);
        let mut effects = Vec::new();
        // A daemon's states come in order with its events, and its answers may be older.
        if source == Source::Files {
            effects.extend(self.turned(name, status.state));
        }
        let news: Vec<_> = status
            .warnings
            .iter()
            .filter(|warning| self.told.insert(format!("{name}: {}", notices::gist(warning))))
            .map(String::as_str)
            .collect();
        if !news.is_empty() {
            effects.push(Effect::Notify(Notice::warnings(name, &news)));
        }
        effects
    }

    fn done(&mut self, name: String, doing: Doing, result: Result<(), String>) -> Vec<Effect> {
        let Some(machine) = self.machines.get_mut(&name) else {
            return Vec::new();
        };
        if machine.doing.as_ref() == Some(&doing) {
            machine.doing = None;
        }
        let mut effects = Vec::new();
        if let Err(message) = result {
            let starts = matches!(doing, Doing::Start | Doing::Restart);
            // Why a start failed has perhaps been told by the daemon, in more words.
            if !(starts && machine.failure_told) {
                machine.failure_told |= starts;
                effects.push(Effect::Notify(Notice::not_done(&name, &doing, &message)));
            }
        }
        let never_made = machine.files == Default::default() && machine.following.is_none();
        if never_made {
            self.machines.remove(&name);
        } else {
            effects.extend(self.ask(&name));
        }
        effects
    }
}

#[cfg(test)]
mod tests;
