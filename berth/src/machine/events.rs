//! What happens to a machine, told to everybody who listens. A listener that comes late is told everything from the
//! beginning, so that a second `berth start` can follow the first.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::disk::MIN_FREE;
use super::failure::Failure;
use super::state::{Phase, State};
use crate::docker::containers::Container;
use crate::published::PortReport;
use crate::size::Size;

/// How many events are kept. A start makes about a dozen; the rest is warnings, of which a broken guest may make many.
const KEPT: usize = 1000;

/// Something that happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A phase of the start began.
    Phase {
        /// Which.
        phase: Phase,
        /// Milliseconds since the start began.
        at_ms: u64,
    },
    /// The machine is in a new state.
    State {
        /// Which.
        #[serde(flatten)]
        state: State,
        /// Milliseconds since the start began.
        at_ms: u64,
    },
    /// The Docker daemon of a machine that runs has ended, or answers again. Words for the user follow as a warning or a
    /// note.
    Docker {
        /// Whether it answers.
        ready: bool,
    },
    /// The profile, the CPUs or the memory of a running machine were changed.
    Settings {
        /// The profile; none when it has none.
        profile: Option<String>,
        /// CPUs online.
        cpus: u8,
        /// What of memory it is to have.
        memory: Size,
    },
    /// Something the user should know that does not stop the machine.
    Warning {
        /// What, and what to do about it.
        message: String,
    },
    /// Something worth telling.
    Note {
        /// What.
        message: String,
    },
    /// The running containers are others. Not kept: who comes late is told how they are now.
    Containers {
        /// All that run.
        containers: Vec<Container>,
    },
    /// The published ports are others. Not kept: who comes late is told how they are now.
    Ports {
        /// All that are published.
        ports: Vec<PortReport>,
    },
    /// What it takes of the host is noticeably other than what was told before. Not kept, as the lists above.
    Usage(Usage),
    /// The machine failed. A state event follows.
    Failed(Failure),
}

/// What a machine takes of the host, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// What of memory it may use now.
    pub given: Size,
    /// What it takes of the host's memory; none while it does not run.
    pub resident: Option<Size>,
    /// What its disk takes of the host's; none when it has none yet.
    pub allocated: Option<Size>,
    /// What is left for it on the host's disk; none when nobody can tell.
    pub free: Option<Size>,
}

impl Usage {
    /// Whether it is worth telling after `told`: a sixteenth of the memory, 64 MiB of disk, or that the host's disk is full now.
    pub fn is_news_after(&self, told: &Usage) -> bool {
        const DISK: u64 = 64 << 20;
        let by = |now: Option<Size>, then: Option<Size>, least: u64| match (now, then) {
            (Some(now), Some(then)) => now.bytes().abs_diff(then.bytes()) >= least,
            (now, then) => now != then,
        };
        let is_short = |free: Option<Size>| free.is_some_and(|free| free < MIN_FREE);
        self.given != told.given
            || by(self.resident, told.resident, self.given.bytes() / 16)
            || by(self.allocated, told.allocated, DISK)
            || is_short(self.free) != is_short(told.free)
    }
}

#[derive(Debug, Default)]
struct History {
    /// The number of the first event that is kept.
    first: u64,
    events: std::collections::VecDeque<Event>,
}

/// The events of one machine.
#[derive(Debug, Clone)]
pub struct EventBus {
    history: Arc<Mutex<History>>,
    /// How many events there have been; the bus has ended when the sender is gone.
    count: Arc<Mutex<Option<watch::Sender<u64>>>>,
    listen: watch::Receiver<u64>,
}

impl Default for EventBus {
    fn default() -> Self {
        let (count, listen) = watch::channel(0);
        EventBus {
            history: Arc::default(),
            count: Arc::new(Mutex::new(Some(count))),
            listen,
        }
    }
}

impl EventBus {
    /// Tells everybody.
    pub fn send(&self, event: Event) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = count.as_ref() else {
            return;
        };
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.events.push_back(event);
        if history.events.len() > KEPT {
            history.events.pop_front();
            history.first += 1;
        }
        let total = history.first + history.events.len() as u64;
        drop(history);
        count.send_replace(total);
    }

    /// Nothing more will happen: listeners get to the end of what there is, and then its end.
    pub fn close(&self) {
        self.count.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Listens from the beginning.
    pub fn listen(&self) -> Listener {
        Listener {
            history: Arc::clone(&self.history),
            count: self.listen.clone(),
            next: 0,
        }
    }

    /// The warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history
            .events
            .iter()
            .filter_map(|event| match event {
                Event::Warning { message } => Some(message.clone()),
                _ => None,
            })
            .collect()
    }
}

/// One listener.
#[derive(Debug)]
pub struct Listener {
    history: Arc<Mutex<History>>,
    count: watch::Receiver<u64>,
    next: u64,
}

impl Listener {
    /// The next event; none at the end. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            self.count.borrow_and_update();
            {
                let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
                // Whoever is a thousand events behind goes on with the oldest that is left.
                self.next = self.next.max(history.first);
                let index = usize::try_from(self.next - history.first).unwrap_or(usize::MAX);
                if let Some(event) = history.events.get(index) {
                    self.next += 1;
                    return Some(event.clone());
                }
            }
            if self.count.changed().await.is_err() {
                // A last event may have come between the look and the end.
                let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
                let index = usize::try_from(self.next.saturating_sub(history.first)).unwrap_or(usize::MAX);
                let event = history.events.get(index).cloned();
                self.next += u64::from(event.is_some());
                return event;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_news_when_it_is_noticeably_other() {
        let told = Usage {
            given: Size::from_gib(1),
            resident: Some(Size::from_mib(300)),
            allocated: Some(Size::from_mib(100)),
            free: Some(Size::from_gib(5)),
        };
        let news = |change: fn(&mut Usage)| {
            let mut now = told.clone();
            change(&mut now);
            now.is_news_after(&told)
        };
        assert!(!news(|_| {}));
        assert!(!news(|now| now.resident = Some(Size::from_mib(350))));
        assert!(news(|now| now.resident = Some(Size::from_mib(364))));
        assert!(news(|now| now.resident = Some(Size::from_mib(236))));
        assert!(news(|now| now.resident = None));
        assert!(news(|now| now.allocated = Some(Size::from_mib(164))));
        assert!(!news(|now| now.free = Some(MIN_FREE)));
        assert!(news(|now| now.free = Some(Size::from_mib(255))));
        assert!(news(|now| now.given = Size::from_gib(2)));
    }

    fn note(n: usize) -> Event {
        Event::Note {
            message: n.to_string(),
        }
    }

    #[tokio::test]
    async fn a_late_listener_hears_everything_and_then_the_end() {
        let bus = EventBus::default();
        bus.send(note(1));
        let mut early = bus.listen();
        assert_eq!(early.next().await, Some(note(1)));
        let waiting =
            tokio::spawn(async move { (early.next().await, early.next().await, early.next().await) });
        bus.send(note(2));
        let mut late = bus.listen();
        bus.send(note(3));
        bus.close();
        bus.send(note(4));
        assert_eq!(waiting.await.unwrap(), (Some(note(2)), Some(note(3)), None));
        for n in 1..=3 {
            assert_eq!(late.next().await, Some(note(n)));
        }
        assert_eq!(late.next().await, None);
        assert_eq!(late.next().await, None);
    }

    #[tokio::test]
    async fn a_flood_keeps_the_newest() {
        let bus = EventBus::default();
        for n in 0..KEPT + 10 {
            bus.send(note(n));
        }
        bus.close();
        let mut listener = bus.listen();
        for n in 10..KEPT + 10 {
            assert_eq!(listener.next().await, Some(note(n)));
        }
        assert_eq!(listener.next().await, None);
    }

    #[test]
    fn events_have_stable_names_on_the_wire() {
        let event = Event::State {
            state: State::Starting { phase: Phase::Kernel },
            at_ms: 5,
        };
        let text = r#"{"event":"state","state":"starting","phase":"kernel","at_ms":5}"#;
        assert_eq!(serde_json::to_string(&event).unwrap(), text);
        assert_eq!(serde_json::from_str::<Event>(text).unwrap(), event);
    }
}
