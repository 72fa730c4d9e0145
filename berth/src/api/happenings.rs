//! The stream of everything that happens to a machine: what its history keeps, and what is only true now.
//!
//! The history is told from its beginning. The lists of containers and ports are told as they are when a client comes, and
//! again whenever they are others; in between nothing is sent. What the machine takes of the host nobody tells: it is looked at
//! a few times a minute while somebody listens, which costs next to nothing, and told when it is noticeably other.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::docker::containers::Container;
use crate::machine::events::{Event, Listener, Usage};
use crate::machine::handle::Handle;

/// How often is looked at what the machine takes.
const LOOK: Duration = Duration::from_secs(10);

struct All {
    machine: Arc<Handle>,
    history: Listener,
    containers: watch::Receiver<Vec<Container>>,
    ports: watch::Receiver<u64>,
    looks: Interval,
    told: Option<Usage>,
}

/// What has happened and what happens, until the machine is gone.
pub(super) fn of(machine: Arc<Handle>) -> impl Stream<Item = Event> + Send + 'static {
    let mut all = All {
        history: machine.events.listen(),
        containers: machine.containers.subscribe(),
        ports: machine.published.changes(),
        looks: interval(LOOK),
        told: None,
        machine,
    };
    // What they are now is news to who comes.
    all.containers.mark_changed();
    all.ports.mark_changed();
    all.looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream::unfold(all, |mut all| async move {
        let event = all.next().await?;
        Some((event, all))
    })
}

impl All {
    async fn next(&mut self) -> Option<Event> {
        loop {
            return tokio::select! {
                // Who comes late reads how it came to what is now before that.
                biased;
                event = self.history.next() => event,
                // Both senders are in the machine.
                _ = self.containers.changed() => Some(Event::Containers {
                    containers: self.containers.borrow_and_update().clone(),
                }),
                _ = self.ports.changed() => {
                    self.ports.borrow_and_update();
                    Some(Event::Ports { ports: self.machine.published.list() })
                }
                _ = self.looks.tick() => match self.look() {
                    Some(usage) => Some(Event::Usage(usage)),
                    None => continue,
                },
            };
        }
    }

    /// What it takes now, when that is worth telling.
    fn look(&mut self) -> Option<Usage> {
        let now = self.machine.usage();
        if self.told.as_ref().is_some_and(|told| !now.is_news_after(told)) {
            return None;
        }
        self.told = Some(now.clone());
        Some(now)
    }
}
