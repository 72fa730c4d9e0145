//! From events of the host to actions in the guest.
//!
//! Events that came close together are one event with several bits when they are of one name and one inode; then they
//! happened in the order of a file's life. What an event says is not looked up again where that can be avoided: the name may
//! stand for something else by now, which a later event tells.

use std::collections::VecDeque;
use std::ffi::CString;
use std::sync::Arc;
use std::time::Duration;

use super::super::Passthrough;
use super::super::discovery::kind;
use super::super::exclusions::Step;
use super::super::node::Node;
use super::super::resolve::check_name;
use super::action::{Action, STAGING_PARENT, What};
use super::event::{Event, Key};
use super::report::Change;
use crate::filesystem::NodeId;

/// What became of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sums {
    pub(super) seen: u64,
    pub(super) dropped: u64,
    pub(super) coalesced: u64,
}

/// Translates; remembers how it has named what passes through the staging directory.
#[derive(Debug, Default)]
pub(super) struct Translator {
    staged: u64,
}

/// A name in a directory that the guest knows.
struct Place {
    dir: Arc<Node>,
    name: Box<[u8]>,
}

impl Translator {
    /// Adds the actions of `events` to `actions`. Stops before an event of a directory that the guest may know only when
    /// these actions have been performed.
    pub(super) fn translate(
        &mut self,
        fs: &Passthrough,
        events: &mut VecDeque<Event>,
        actions: &mut Vec<Action>,
    ) -> Sums {
        let mut sums = Sums::default();
        while let Some(event) = events.front() {
            if !actions.is_empty() && is_of_unknown(fs, event) {
                break;
            }
            let Some(event) = events.pop_front() else { break };
            if event.is_own() {
                settle(fs, &event);
                continue;
            }
            if event.is_overflow() {
                continue;
            }
            sums.seen += 1;
            let (before, mut merged) = (actions.len(), 0);
            if event.mask & libc::FAN_RENAME != 0 {
                // An exchange is two renames, one after the other.
                let is_back = |next: &Event| {
                    next.mask & libc::FAN_RENAME != 0
                        && event.at.is_some()
                        && next.at == event.to
                        && next.to == event.at
                        && next.target != event.target
                };
                let exchange = events.front().is_some_and(is_back);
                if exchange {
                    events.pop_front();
                    sums.seen += 1;
                }
                self.rename(fs, &event, exchange, actions);
            } else if let Some((key, name)) = &event.at {
                for place in places(fs, key, name) {
                    merged += u64::from(!happen(fs, &place, event.mask, actions));
                }
            }
            sums.coalesced += merged;
            sums.dropped += u64::from(merged == 0 && actions.len() == before);
        }
        sums
    }

    fn rename(&mut self, fs: &Passthrough, event: &Event, exchange: bool, actions: &mut Vec<Action>) {
        let known = |place: &Option<(Key, Box<[u8]>)>| {
            place
                .as_ref()
                .map(|(key, name)| places(fs, key, name))
                .unwrap_or_default()
        };
        let (from, mut to) = (known(&event.at), known(&event.to));
        let confirm = |place: &Place| Action::Confirm {
            parent: place.dir.id,
            name: place.name.clone(),
        };
        let confirmed: Vec<Action> = to.iter().chain(&from).map(confirm).collect();
        for from in from {
            let other = to
                .iter()
                .position(|to| to.dir.share.number == from.dir.share.number)
                .map(|at| to.swap_remove(at));
            let (to, new_name) = match other {
                Some(to) => (to.dir.id, to.name),
                None => (STAGING_PARENT, self.stage()),
            };
            actions.push(Action::Rename {
                from: from.dir.id,
                name: from.name,
                to,
                new_name,
                exchange: exchange && to != STAGING_PARENT,
            });
        }
        for to in to {
            actions.push(Action::Rename {
                from: STAGING_PARENT,
                name: self.stage(),
                to: to.dir.id,
                new_name: to.name,
                exchange: false,
            });
        }
        // Should this have been only half of something (an exchange whose other half was not to be read yet), that shows it.
        actions.extend(confirmed);
    }

    /// A name in the staging directory that was not used before.
    fn stage(&mut self) -> Box<[u8]> {
        self.staged += 1;
        self.staged.to_string().into_bytes().into()
    }
}

/// What was done before a rename of the guest's own has been told by now.
fn settle(fs: &Passthrough, event: &Event) {
    let renamed = event.mask & libc::FAN_RENAME != 0;
    if let (true, Some((key, name)), Some(watcher)) = (renamed, &event.at, fs.watcher.get()) {
        for dir in watcher.watches.nodes(key) {
            watcher.left.settle(dir, name);
        }
    }
}

/// Whether what happened to a directory is told by a name for it that nobody knows: one that is new, most likely.
fn is_of_unknown(fs: &Passthrough, event: &Event) -> bool {
    event
        .at
        .as_ref()
        .is_some_and(|(key, name)| **name == *b"." && places(fs, key, name).is_empty())
}

/// The directories of the guest's that an event is of, if the guest may see the name there.
fn places(fs: &Passthrough, key: &Key, name: &[u8]) -> Vec<Place> {
    let Some(watcher) = fs.watcher.get() else {
        return Vec::new();
    };
    let visible = |dir: &Arc<Node>| {
        name == b"."
            || CString::new(name).is_ok_and(|name| check_name(&name).is_ok())
                && dir.share.exclusions.step(dir.exclusion(), name) != Step::Hidden
    };
    watcher
        .watches
        .nodes(key)
        .into_iter()
        .filter_map(|id| fs.node(id).ok())
        .filter(visible)
        .map(|dir| Place {
            dir,
            name: name.into(),
        })
        .collect()
}

/// Adds what happened at one name. False when it went into an action that was there.
fn happen(fs: &Passthrough, place: &Place, mask: u64, actions: &mut Vec<Action>) -> bool {
    let parent = place.dir.id;
    let is = |bit: u64| mask & bit != 0;
    let directory = is(libc::FAN_ONDIR);
    let (open, modified, attributes) = (
        is(libc::FAN_CLOSE_WRITE),
        is(libc::FAN_MODIFY),
        is(libc::FAN_ATTRIB),
    );
    if &*place.name == b"." {
        if !modified && !attributes {
            return true;
        }
        // What happens to a directory is told by its own name for itself, also to who watches the one above.
        let flags = (false, modified, attributes);
        let node = Some(parent);
        return match place.dir.place() {
            Some(above) => touch(actions, (above.parent.id, Some(&above.name), node), flags),
            None => touch(actions, (parent, None, node), flags),
        };
    }
    if is(libc::FAN_CREATE) {
        let (what, known) = fs.what_is_at(&place.dir, &place.name, directory);
        actions.push(Action::Make {
            parent,
            name: place.name.clone(),
            what,
        });
        // Another name of a file that the guest knows: it has one link more.
        actions.extend(known.map(|node| Action::Refresh { node }));
    }
    let mut added = true;
    if open || modified || attributes {
        let node = fs.store.named(parent, &place.name).map(|node| node.id);
        added = touch(
            actions,
            (parent, Some(&place.name), node),
            (open, modified, attributes),
        );
        // It may have happened to what the guest has moved elsewhere since.
        let left = fs
            .watcher
            .get()
            .map(|watcher| watcher.left.of(parent, &place.name));
        let refresh = |node| Action::Refresh { node };
        actions.extend(left.into_iter().flatten().map(refresh));
    }
    if is(libc::FAN_DELETE) {
        actions.push(Action::Remove {
            parent,
            name: place.name.clone(),
            directory,
        });
        added = true;
    }
    added
}

/// Adds a change of contents or attributes. False when it went into the one before, of a file that has not been closed
/// since.
fn touch(
    actions: &mut Vec<Action>,
    (in_parent, of, known): (NodeId, Option<&[u8]>, Option<NodeId>),
    (now_open, now_modified, now_attributes): (bool, bool, bool),
) -> bool {
    if let Some(Action::Touch {
        parent,
        name,
        node,
        open,
        modified,
        attributes,
    }) = actions.last_mut()
        && *parent == in_parent
        && name.as_deref() == of
        && *node == known
        && !*open
    {
        *open = now_open;
        *modified |= now_modified;
        *attributes |= now_attributes;
        return false;
    }
    actions.push(Action::Touch {
        parent: in_parent,
        name: of.map(Into::into),
        node: known,
        open: now_open,
        modified: now_modified,
        attributes: now_attributes,
    });
    true
}

impl Passthrough {
    /// What is at a name by now, as far as that agrees with an event that it was made there, and the node when the guest
    /// knows it.
    fn what_is_at(&self, dir: &Arc<Node>, name: &[u8], directory: bool) -> (What, Option<NodeId>) {
        // Made and gone again: a file, as most are.
        let gone = if directory { What::Directory } else { What::File };
        let Some(found) = CString::new(name)
            .ok()
            .and_then(|name| self.find(dir, &name).ok())
        else {
            return (gone, None);
        };
        let what = match kind(&found.st) {
            libc::S_IFDIR => What::Directory,
            libc::S_IFIFO => What::Fifo,
            libc::S_IFSOCK => What::Socket,
            libc::S_IFLNK => match rustix::fs::readlinkat(&found.fd, c"", Vec::new()) {
                Ok(target) => What::Symlink {
                    target: target.into_bytes().into(),
                },
                Err(_) => return (gone, None),
            },
            _ => What::File,
        };
        if (what == What::Directory) != directory {
            return (gone, None);
        }
        let node = self.store.find(&self.identity_of(dir, &found));
        (what, node.map(|node| node.id))
    }

    /// An action in words. None for one that is nobody's business.
    pub(super) fn describe(&self, action: &Action, latency: Duration, error: i32) -> Vec<Change> {
        let change = |kind, path, new_path| Change {
            kind,
            path,
            new_path,
            latency,
            error,
        };
        match action {
            Action::Make { parent, name, .. } => {
                vec![change("create", self.way_to(*parent, Some(name)), None)]
            }
            Action::Remove { parent, name, .. } => {
                vec![change("remove", self.way_to(*parent, Some(name)), None)]
            }
            Action::Rename {
                from,
                name,
                to,
                new_name,
                ..
            } => match (*from, *to) {
                (STAGING_PARENT, to) => vec![change("move_in", self.way_to(to, Some(new_name)), None)],
                (from, STAGING_PARENT) => vec![change("move_out", self.way_to(from, Some(name)), None)],
                (from, to) => {
                    let new = self.way_to(to, Some(new_name));
                    vec![change("rename", self.way_to(from, Some(name)), Some(new))]
                }
            },
            Action::Touch {
                parent,
                name,
                open,
                modified,
                attributes,
                ..
            } => [
                (*modified, "modify"),
                (*attributes, "attributes"),
                (*open, "close_write"),
            ]
            .into_iter()
            .filter(|(happened, _)| *happened)
            .map(|(_, kind)| change(kind, self.way_to(*parent, name.as_deref()), None))
            .collect(),
            Action::DropCaches => vec![change("invalidate", Vec::new(), None)],
            Action::Refresh { .. } | Action::Confirm { .. } => Vec::new(),
        }
    }

    /// The way from the root of all to a name in a directory, as the guest knows it.
    fn way_to(&self, dir: NodeId, name: Option<&[u8]>) -> Vec<u8> {
        let mut names: Vec<Box<[u8]>> = name.map(Into::into).into_iter().collect();
        let mut at = self.store.get(dir);
        while let Some(node) = at {
            if node.permanent {
                let all = self.shares.all();
                let id = all
                    .iter()
                    .find(|(_, listed)| listed.share.number == node.share.number)
                    .map(|(id, _)| id.as_bytes());
                names.extend(id.filter(|id| !id.is_empty()).map(Into::into));
                break;
            }
            let Some(place) = node.place().filter(|_| names.len() < 4096) else {
                break;
            };
            names.push(place.name);
            at = Some(place.parent);
        }
        names.reverse();
        names.join(&b'/')
    }
}
