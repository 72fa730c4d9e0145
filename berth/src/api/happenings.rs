//! The stream of everything that happens to a machine: what its history keeps, and what is only true now.
//!
//! The history is told from its beginning. The lists of containers and ports are told as they are when a client comes, and
//! again whenever they are others; in between nothing is sent and nothing is looked at.

use std::sync::Arc;

use futures_util::stream::{self, Stream};
use tokio::sync::watch;

use crate::docker::containers::Container;
use crate::machine::events::{Event, Listener};
use crate::machine::handle::Handle;

struct All {
    machine: Arc<Handle>,
    history: Listener,
    containers: watch::Receiver<Vec<Container>>,
    ports: watch::Receiver<u64>,
}

/// What has happened and what happens, until the machine is gone.
pub(super) fn of(machine: Arc<Handle>) -> impl Stream<Item = Event> + Send + 'static {
    let mut all = All {
        history: machine.events.listen(),
        containers: machine.containers.subscribe(),
        ports: machine.published.changes(),
        machine,
    };
    // What they are now is news to who comes.
    all.containers.mark_changed();
    all.ports.mark_changed();
    stream::unfold(all, |mut all| async move {
        let event = all.next().await?;
        Some((event, all))
    })
}

impl All {
    async fn next(&mut self) -> Option<Event> {
        tokio::select! {
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
        }
    }
}
