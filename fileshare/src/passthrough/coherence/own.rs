//! What this process does itself in directories that inotify watches: its events do not say who did it.
//!
//! Whoever is about to change something notes it with the name it is at, and that is its own doing until the events of that
//! time have been read. Something that another process does to the same name in the same milliseconds is taken for it as
//! well; the guest does not rely on being told there, for it caches what inotify watches for a second at most.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;

use super::super::Passthrough;
use super::super::node::Node;
use super::Watcher;
use super::event::Key;
use crate::filesystem::NodeId;

/// Any event there is.
const ANYTHING: u32 = u32::MAX;
/// What changing contents or attributes raises.
const CONTENTS: u32 = libc::IN_MODIFY | libc::IN_ATTRIB | libc::IN_CLOSE_WRITE;
/// When so many names have been noted, it is time to read events, should there be any or not.
const MANY: usize = 1024;

/// A watched directory and a name in it; `.` is the directory itself.
type Spot = (Key, Box<[u8]>);

/// What is under way, and what has ended since events were read to their end.
#[derive(Debug, Default)]
pub(super) struct Own(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    spots: HashMap<Spot, Vec<Noted>>,
    next: u64,
    round: u64,
}

#[derive(Debug)]
struct Noted {
    number: u64,
    bits: u32,
    /// In which round of reading it ended; none while it is under way.
    ended: Option<u64>,
}

impl Own {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing in here panics halfway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an event is of this process's own doing.
    pub(super) fn is(&self, key: &Key, name: &[u8], mask: u32) -> bool {
        let table = self.table();
        if table.spots.is_empty() {
            return false;
        }
        table.spots.get(&(key.clone(), name.into())).is_some_and(|noted| {
            noted
                .iter()
                .any(|noted| noted.bits & mask & libc::IN_ALL_EVENTS != 0)
        })
    }

    /// Events are going to be read until there are none. Returns the number of the round.
    pub(super) fn begin_round(&self) -> u64 {
        let mut table = self.table();
        table.round += 1;
        table.round
    }

    /// There are none left: what had ended when the round began has had its events.
    pub(super) fn end_round(&self, round: u64) {
        self.table().spots.retain(|_, noted| {
            noted.retain(|noted| noted.ended.is_none_or(|ended| ended >= round));
            !noted.is_empty()
        });
    }

    /// Returns its number, and whether there are very many.
    fn note(&self, spots: &[Spot], bits: u32) -> (u64, bool) {
        let mut table = self.table();
        table.next += 1;
        let number = table.next;
        for spot in spots {
            table.spots.entry(spot.clone()).or_default().push(Noted {
                number,
                bits,
                ended: None,
            });
        }
        (number, table.spots.len() >= MANY)
    }

    fn end(&self, spots: &[Spot], number: u64) {
        let mut table = self.table();
        let round = table.round;
        for spot in spots {
            let noted = table.spots.get_mut(spot);
            if let Some(noted) = noted.and_then(|all| all.iter_mut().find(|noted| noted.number == number)) {
                noted.ended = Some(round);
            }
        }
    }
}

/// Something that this process is doing, until it is dropped.
#[derive(Debug)]
pub(in super::super) struct Doing {
    watcher: Arc<Watcher>,
    spots: Vec<Spot>,
    number: u64,
}

impl Doing {
    fn begin(watcher: &Arc<Watcher>, spots: Vec<Spot>, bits: u32) -> Option<Doing> {
        if spots.is_empty() {
            return None;
        }
        let (number, many) = watcher.own.note(&spots, bits);
        if many {
            watcher.wake();
        }
        Some(Doing {
            watcher: watcher.clone(),
            spots,
            number,
        })
    }
}

impl Drop for Doing {
    fn drop(&mut self) {
        self.watcher.own.end(&self.spots, self.number);
    }
}

/// The watcher, when anything is watched by inotify.
fn listening(fs: &Passthrough) -> Option<&Arc<Watcher>> {
    fs.watcher.get().filter(|watcher| watcher.watches.uses_inotify())
}

/// Everywhere that events of a node's contents and attributes may be told.
fn spots_of(watcher: &Watcher, node: &Node) -> Vec<Spot> {
    let key = |dir: NodeId| watcher.watches.inotify_key(dir);
    let itself = key(node.id).map(|key| (key, b"."[..].into()));
    let places = node.places().into_iter();
    itself
        .into_iter()
        .chain(places.filter_map(|place| Some((key(place.parent.id)?, place.name))))
        .collect()
}

impl Passthrough {
    /// Notes that names are about to be made, removed or moved.
    pub(in super::super) fn doing_at(&self, names: &[(NodeId, &CStr)]) -> Option<Doing> {
        let watcher = listening(self)?;
        let spot = |(dir, name): &(NodeId, &CStr)| {
            Some((watcher.watches.inotify_key(*dir)?, name.to_bytes().into()))
        };
        Doing::begin(watcher, names.iter().filter_map(spot).collect(), ANYTHING)
    }

    /// Notes that a node's contents or attributes are about to be changed.
    pub(in super::super) fn doing_to(&self, node: NodeId) -> Option<Doing> {
        let watcher = listening(self)?;
        let node = self.store.get(node)?;
        Doing::begin(watcher, spots_of(watcher, &node), CONTENTS)
    }

    /// A descriptor whose closing is known as this process's own doing.
    pub(in super::super) fn own_fd(&self, node: &Arc<Node>, fd: OwnedFd) -> OwnFd {
        let writes = || {
            rustix::fs::fcntl_getfl(&fd).is_ok_and(|flags| flags.intersects(OFlags::WRONLY | OFlags::RDWR))
        };
        let of = listening(self)
            .filter(|_| writes())
            .map(|watcher| (watcher.clone(), node.clone()));
        OwnFd {
            fd,
            closing: None,
            of,
        }
    }
}

/// A descriptor of a node, maybe open for writing.
#[derive(Debug)]
pub(in super::super) struct OwnFd {
    fd: OwnedFd,
    /// Dropped after the descriptor, as fields are in their order.
    closing: Option<Doing>,
    of: Option<(Arc<Watcher>, Arc<Node>)>,
}

impl Drop for OwnFd {
    fn drop(&mut self) {
        if let Some((watcher, node)) = &self.of {
            self.closing = Doing::begin(watcher, spots_of(watcher, node), CONTENTS);
        }
    }
}

impl AsFd for OwnFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(name: &[u8]) -> Spot {
        (Box::from([1, 2, 3, 4]), name.into())
    }

    fn is(own: &Own, name: &[u8], bits: u32) -> bool {
        let (key, name) = spot(name);
        own.is(&key, &name, bits)
    }

    #[test]
    fn what_is_done_is_own_until_its_events_have_been_read() {
        let own = Own::default();
        assert!(!is(&own, b"a", libc::IN_CREATE));
        let spots = [spot(b"a")];
        let (number, _) = own.note(&spots, CONTENTS);
        assert!(is(&own, b"a", libc::IN_MODIFY));
        assert!(!is(&own, b"a", libc::IN_DELETE), "somebody else's");
        assert!(!is(&own, b"b", libc::IN_MODIFY));

        // A round while it is under way: its event may come later.
        let round = own.begin_round();
        own.end(&spots, number);
        own.end_round(round);
        assert!(
            is(&own, b"a", libc::IN_MODIFY),
            "it may have come after the last look"
        );
        let round = own.begin_round();
        assert!(is(&own, b"a", libc::IN_MODIFY));
        own.end_round(round);
        assert!(!is(&own, b"a", libc::IN_MODIFY));
        assert!(own.table().spots.is_empty());
    }

    #[test]
    fn two_at_one_name_end_apart() {
        let own = Own::default();
        let spots = [spot(b"a")];
        let (first, _) = own.note(&spots, CONTENTS);
        let (_second, _) = own.note(&spots, libc::IN_CREATE);
        own.end(&spots, first);
        let round = own.begin_round();
        own.end_round(round);
        assert!(!is(&own, b"a", libc::IN_MODIFY));
        assert!(is(&own, b"a", libc::IN_CREATE));
    }

    #[test]
    fn many_that_raise_no_event_are_noticed() {
        let own = Own::default();
        let many = (0..2 * MANY).map(|number| {
            let spots = [spot(number.to_string().as_bytes())];
            let (number, many) = own.note(&spots, CONTENTS);
            own.end(&spots, number);
            many
        });
        assert!(many.last().unwrap());
        let round = own.begin_round();
        own.end_round(round);
        assert!(own.table().spots.is_empty());
    }
}
