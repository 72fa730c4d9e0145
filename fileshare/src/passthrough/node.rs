//! A node: one inode of the host that the guest knows, and where it was last seen.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::exclusions::{OFF, Position};
use super::shares::Share;
use super::sys::FileHandle;
use crate::filesystem::NodeId;

/// As many places of one file are remembered; a file may have more hard links.
const MOST_PLACES: usize = 8;

/// What makes an inode itself, for as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    /// Number of the share: in two shares that overlap, a file is two nodes, for its rules differ.
    pub(super) share: u32,
    /// Number of the mount.
    pub(super) mount: u32,
    /// Inode number on the host.
    pub(super) ino: u64,
    /// Tells inodes apart that had the same number one after the other: from the time of birth, or the handle's
    /// generation.
    pub(super) stamp: u64,
}

/// What is known of setuid, setgid and capabilities of a file, so that writes need not look each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Privileges {
    Unknown,
    None,
    Some,
}

/// Whether the host's changes in a directory are told (see [`super::coherence`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Watch {
    /// Nobody has asked for it yet.
    Unasked,
    Watched,
    Refused,
    /// By inotify, which does not tell who did something: the guest is told, and caches as if it was not.
    ByInotify,
}

impl Watch {
    fn of(number: u8) -> Watch {
        match number {
            1 => Watch::Watched,
            2 => Watch::Refused,
            3 => Watch::ByInotify,
            _ => Watch::Unasked,
        }
    }
}

/// A name in a directory.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) parent: Arc<Node>,
    pub(super) name: Box<[u8]>,
}

impl Place {
    fn is(&self, parent: &Arc<Node>, name: &[u8]) -> bool {
        Arc::ptr_eq(&self.parent, parent) && *self.name == *name
    }
}

/// One inode.
#[derive(Debug)]
pub(super) struct Node {
    /// Never used again.
    pub(super) id: NodeId,
    pub(super) identity: Identity,
    pub(super) share: Arc<Share>,
    /// For open_by_handle_at, where that is permitted.
    pub(super) handle: Option<FileHandle>,
    /// S_IF*.
    pub(super) kind: u32,
    /// The root of a share: always there.
    pub(super) permanent: bool,
    /// On another device than its parent.
    pub(super) submount: bool,
    privileges: AtomicU8,
    exclusion: AtomicU16,
    watch: AtomicU8,
    /// What the contents were at the last open; see [`super::contents`].
    pub(super) contents: AtomicU64,
    /// The stamp of the last change at which there was no ownership record; see [`super::contents`].
    pub(super) unrecorded: AtomicU64,
    state: Mutex<State>,
}

/// What changes together.
#[derive(Debug, Default)]
pub(super) struct State {
    /// How many lookups the guest holds.
    pub(super) lookups: u64,
    /// How many places have this node as their parent. They keep it alive.
    pub(super) children: u32,
    /// Out of the store.
    pub(super) dead: bool,
    /// Its last name was removed by the guest.
    pub(super) removed: bool,
    /// The place last seen.
    place: Option<Place>,
    /// Of a file with several links, the others that are known. Boxed: nearly no node has any, and each would pay for
    /// it.
    #[allow(clippy::box_collection)]
    others: Option<Box<Vec<Place>>>,
    /// Of a removed node.
    pinned: Option<Arc<OwnedFd>>,
}

/// What a node is made of.
pub(super) struct Seed {
    pub(super) identity: Identity,
    pub(super) share: Arc<Share>,
    pub(super) kind: u32,
    pub(super) submount: bool,
    pub(super) exclusion: Position,
    pub(super) handle: Option<FileHandle>,
}

impl Node {
    /// A node with one lookup and no place.
    pub(super) fn new(id: NodeId, seed: Seed, permanent: bool) -> Node {
        let Seed {
            identity,
            share,
            kind,
            submount,
            exclusion,
            handle,
        } = seed;
        Node {
            id,
            identity,
            share,
            handle,
            kind,
            permanent,
            submount,
            privileges: AtomicU8::new(Privileges::Unknown as u8),
            exclusion: AtomicU16::new(exclusion),
            watch: AtomicU8::new(Watch::Unasked as u8),
            contents: AtomicU64::new(0),
            unrecorded: AtomicU64::new(0),
            state: Mutex::new(State {
                lookups: 1,
                ..State::default()
            }),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    pub(super) fn is_file(&self) -> bool {
        self.kind == libc::S_IFREG
    }

    pub(super) fn exclusion(&self) -> Position {
        self.exclusion.load(Ordering::Relaxed)
    }

    /// Of a directory, which has one place at a time.
    pub(super) fn set_exclusion(&self, position: Position) {
        self.exclusion.store(position, Ordering::Relaxed);
    }

    /// Whether it is an ancestor of an exclusion.
    pub(super) fn holds_exclusions(&self) -> bool {
        self.exclusion() != OFF
    }

    pub(super) fn watch(&self) -> Watch {
        Watch::of(self.watch.load(Ordering::Acquire))
    }

    /// Returns what it was before.
    pub(super) fn set_watch(&self, watch: Watch) -> Watch {
        Watch::of(self.watch.swap(watch as u8, Ordering::AcqRel))
    }

    pub(super) fn privileges(&self) -> Privileges {
        match self.privileges.load(Ordering::Acquire) {
            1 => Privileges::None,
            2 => Privileges::Some,
            _ => Privileges::Unknown,
        }
    }

    pub(super) fn set_privileges(&self, privileges: Privileges) {
        self.privileges.store(privileges as u8, Ordering::Release);
    }

    /// Notes that something new has no privileges, unless somebody has been quick to give it some.
    pub(super) fn presume_unprivileged(&self) {
        let (unknown, none) = (Privileges::Unknown as u8, Privileges::None as u8);
        // Otherwise more is known already.
        let _ = self
            .privileges
            .compare_exchange(unknown, none, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The place last seen.
    pub(super) fn place(&self) -> Option<Place> {
        self.state().place.clone()
    }

    /// All places known, the last seen first.
    pub(super) fn places(&self) -> Vec<Place> {
        let state = self.state();
        state
            .place
            .iter()
            .chain(state.others.iter().flat_map(|others| others.iter()))
            .cloned()
            .collect()
    }

    /// Whether it is known to be at a name in the directory of that id.
    pub(super) fn has_place(&self, parent: NodeId, name: &[u8]) -> bool {
        let state = self.state();
        let others = state.others.iter().flat_map(|others| others.iter());
        let mut places = state.place.iter().chain(others);
        places.any(|place| place.parent.id == parent && *place.name == *name)
    }

    /// The descriptor of a removed node.
    pub(super) fn pinned(&self) -> Option<Arc<OwnedFd>> {
        self.state().pinned.clone()
    }
}

impl State {
    /// Puts a place first. `only`: it is the only one there is. Returns the places that are no longer known, which may
    /// be the new one when it was known already.
    pub(super) fn put_place(&mut self, place: Place, only: bool) -> Vec<Place> {
        let mut gone = Vec::new();
        match &self.place {
            Some(first) if first.is(&place.parent, &place.name) => {
                gone.push(place);
                if !only {
                    return gone;
                }
            }
            _ => {
                let first = self.place.replace(place);
                let Some(new) = &self.place else { return gone };
                let others = self.others.get_or_insert_default();
                gone.extend(others.extract_if(.., |other| other.is(&new.parent, &new.name)));
                others.extend(first);
            }
        }
        if let Some(others) = &mut self.others {
            let surplus = if only {
                others.len()
            } else {
                others.len().saturating_sub(MOST_PLACES - 1)
            };
            gone.extend(others.drain(..surplus));
            if others.is_empty() {
                self.others = None;
            }
        }
        gone
    }

    /// Forgets a place. Returns it when it was known.
    pub(super) fn take_place(&mut self, parent: &Arc<Node>, name: &[u8]) -> Option<Place> {
        if self.place.as_ref().is_some_and(|place| place.is(parent, name)) {
            let next = self.others.as_mut().and_then(|others| others.pop());
            return std::mem::replace(&mut self.place, next);
        }
        let others = self.others.as_mut()?;
        let at = others.iter().position(|place| place.is(parent, name))?;
        Some(others.remove(at))
    }

    /// Forgets all places.
    pub(super) fn take_places(&mut self) -> Vec<Place> {
        let others = self.others.take().map(|others| *others).unwrap_or_default();
        self.place.take().into_iter().chain(others).collect()
    }

    /// Keeps `fd` until the node is forgotten, when there is room for one more among `pins`.
    pub(super) fn pin(&mut self, fd: &Arc<OwnedFd>, pins: &Pins) -> bool {
        if self.pinned.is_some() {
            return true;
        }
        let room = pins
            .count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < pins.most).then_some(count + 1)
            });
        if room.is_ok() {
            self.pinned = Some(fd.clone());
        }
        room.is_ok()
    }

    /// Lets go of what [`State::pin`] keeps.
    pub(super) fn unpin(&mut self, pins: &Pins) -> Option<Arc<OwnedFd>> {
        let pinned = self.pinned.take()?;
        pins.count.fetch_sub(1, Ordering::Relaxed);
        Some(pinned)
    }
}

/// Bounds the descriptors of removed nodes.
#[derive(Debug)]
pub(super) struct Pins {
    count: AtomicUsize,
    most: usize,
}

impl Pins {
    /// At most `most`.
    pub(super) fn new(most: usize) -> Pins {
        Pins {
            count: AtomicUsize::new(0),
            most,
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

// A guest may know a million of them: with its name, its places in the maps and the allocator's own, a node is to stay
// below 300 bytes (measured by examples/passthrough_figures.rs).
const _: () = assert!(size_of::<Node>() <= 160);
