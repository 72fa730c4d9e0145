//! The thread that reads events, has them replayed, and says when that is done.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};

use super::super::Passthrough;
use super::super::node::Node;
use super::action::{Action, Agent, Numbered};
use super::event::Event;
use super::inotify::Reader;
use super::report::Change;
use super::translate::Translator;
use super::{NotCoherent, Reached, Watcher};

/// Bytes of events read at once: a few hundred.
const BUFFER: usize = 64 * 1024;
/// Actions given to the agent at once. More would only make the first of them wait.
const BATCH: usize = 128;
/// Numbers of actions are group ids: they stay clear of those that mean "none".
const LAST_NUMBER: u32 = 0x7fff_ffff;
/// As many events as a queue holds are read before a barrier at most (`fs.fanotify.max_queued_events`): more came after it.
const QUEUE: usize = 16_384;

pub(super) struct Pump {
    fs: Arc<Passthrough>,
    watcher: Arc<Watcher>,
    agent: Option<Box<dyn Agent>>,
    /// The guest may have in its caches what is no longer so.
    stale: bool,
    number: u32,
    buffer: Vec<u8>,
    /// For inotify.
    reader: Reader,
    raw_buffer: Vec<MaybeUninit<u8>>,
    translator: Translator,
}

impl Pump {
    pub(super) fn new(fs: Arc<Passthrough>, watcher: Arc<Watcher>) -> Pump {
        Pump {
            fs,
            watcher,
            agent: None,
            stale: false,
            number: 0,
            buffer: vec![0; BUFFER],
            reader: Reader::default(),
            raw_buffer: vec![MaybeUninit::uninit(); BUFFER],
            translator: Translator::default(),
        }
    }

    /// Works until it is told to stop.
    pub(super) fn run(mut self) {
        let watcher = self.watcher.clone();
        let fanotify = watcher.watches.fanotify.iter().map(AsFd::as_fd);
        let inotify = watcher.watches.inotify.iter().map(AsFd::as_fd);
        let sources = fanotify.chain(inotify).chain([watcher.wake.as_fd()]);
        let mut sources: Vec<_> = sources
            .map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN))
            .collect();
        loop {
            match poll(&mut sources, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "changes on the host can no longer be waited for");
                    self.lose();
                    return;
                }
            }
            let mut count = [0; 8];
            // Nothing to be read says that there are no requests.
            let _ = rustix::io::read(&watcher.wake, &mut count);
            let (stop, forget, agent, barriers) = {
                let mut requests = watcher.requests();
                let barriers = std::mem::take(&mut requests.barriers);
                let forget = std::mem::take(&mut requests.forget);
                (requests.stop, forget, requests.agent.take(), barriers)
            };
            if stop {
                watcher.live.store(false, Ordering::Release);
                reach(barriers, Err(NotCoherent));
                return;
            }
            if let Some(agent) = agent {
                // What the one before had not done is not done.
                self.stale |= self.agent.replace(agent).is_some();
                if !self.stale {
                    watcher.live.store(true, Ordering::Release);
                }
            }
            self.drain();
            self.stale |= forget;
            if self.stale && self.agent.is_some() {
                self.invalidate();
            }
            let reached = if watcher.is_live() {
                Ok(())
            } else {
                Err(NotCoherent)
            };
            reach(barriers, reached);
        }
    }

    /// Reads and replays all that is there.
    fn drain(&mut self) {
        let watcher = self.watcher.clone();
        if let Some(group) = &watcher.watches.fanotify {
            self.drain_from(|pump, events| group.read(&mut pump.buffer, events));
        }
        if let Some(instance) = &watcher.watches.inotify {
            let round = watcher.own.begin_round();
            let all = self.drain_from(|pump, events| {
                pump.reader
                    .read(instance, &watcher.own, &mut pump.raw_buffer, events)
            });
            if all {
                watcher.own.end_round(round);
            }
        }
    }

    /// Returns whether nothing is left.
    fn drain_from(&mut self, mut read: impl FnMut(&mut Pump, &mut Vec<Event>) -> io::Result<bool>) -> bool {
        let mut count = 0;
        // The rest is for the next round, for which there is a poll already.
        while count <= QUEUE {
            let mut events = Vec::new();
            let more = read(self, &mut events);
            let read = Instant::now();
            match more {
                Ok(true) => {}
                Ok(false) => return true,
                Err(error) => {
                    tracing::error!(%error, "events of the host cannot be read");
                    self.stale = true;
                    return false;
                }
            }
            count += events.len();
            self.replay(events, read);
        }
        false
    }

    fn replay(&mut self, events: Vec<Event>, read: Instant) {
        let counts = &self.watcher.counts;
        if events.iter().any(Event::is_overflow) {
            tracing::warn!(
                "more changed on the host than could be told; the guest forgets what it has cached"
            );
            counts.overflows.fetch_add(1, Ordering::Relaxed);
            self.stale = true;
        }
        if self.stale || self.agent.is_none() {
            // A guest that will forget everything need not be told.
            let others = events.iter().filter(|event| !event.is_own()).count() as u64;
            counts.seen.fetch_add(others, Ordering::Relaxed);
            counts.dropped.fetch_add(others, Ordering::Relaxed);
            self.watcher.left.clear();
            return;
        }
        let mut events = VecDeque::from(events);
        while !events.is_empty() {
            let mut actions = Vec::new();
            let sums = self.translator.translate(&self.fs, &mut events, &mut actions);
            let counts = &self.watcher.counts;
            counts.seen.fetch_add(sums.seen, Ordering::Relaxed);
            counts.dropped.fetch_add(sums.dropped, Ordering::Relaxed);
            counts.coalesced.fetch_add(sums.coalesced, Ordering::Relaxed);
            for batch in actions.chunks(BATCH) {
                if !self.perform(batch, read) {
                    return;
                }
            }
        }
    }

    /// Has actions performed. False when the guest is to forget everything instead.
    fn perform(&mut self, actions: &[Action], read: Instant) -> bool {
        let Some(agent) = &mut self.agent else {
            return false;
        };
        let batch: Vec<Numbered> = actions
            .iter()
            .map(|action| {
                self.number = if self.number >= LAST_NUMBER {
                    1
                } else {
                    self.number + 1
                };
                Numbered {
                    number: self.number,
                    action: action.clone(),
                }
            })
            .collect();
        self.watcher.board.arm(&batch);
        let result = agent.perform(&batch);
        self.watcher.board.arm(&[]);
        let errors = match result {
            Ok(errors) if errors.len() == batch.len() => errors,
            Ok(errors) => {
                tracing::error!(
                    "the agent in the guest answered {} actions of {}",
                    errors.len(),
                    batch.len()
                );
                self.lose();
                return false;
            }
            Err(error) => {
                tracing::warn!(%error, "the agent in the guest is lost; the guest caches for a second at most until there is another");
                self.lose();
                return false;
            }
        };
        let count = errors.len() as u64;
        self.watcher.counts.replayed.fetch_add(count, Ordering::Relaxed);
        self.report(&batch, &errors, read);
        for (Numbered { action, .. }, error) in batch.iter().zip(&errors) {
            if !is_expected(*error) {
                tracing::warn!(
                    error,
                    ?action,
                    "a change could not be replayed; the guest forgets what it has cached"
                );
                self.stale = true;
            }
        }
        let missed: Vec<Action> = batch
            .iter()
            .zip(&errors)
            .filter_map(|(numbered, error)| self.missed(&numbered.action, *error))
            .collect();
        !self.stale && (missed.is_empty() || self.perform(&missed, read))
    }

    /// What has to be done still, should the guest have had the thing elsewhere when it was told of a change: it may be renaming
    /// it, or the answer that it was made may still be on its way.
    fn missed(&self, action: &Action, error: i32) -> Option<Action> {
        let Action::Touch {
            parent,
            name: Some(name),
            node: Some(node),
            ..
        } = action
        else {
            return None;
        };
        let known = self.fs.store.get(*node)?;
        let there = error == 0 && known.has_place(*parent, name);
        (!there).then_some(Action::Refresh { node: *node })
    }

    /// Makes the guest forget all it has cached.
    fn invalidate(&mut self) {
        self.watcher.live.store(false, Ordering::Release);
        self.watcher.counts.invalidations.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        // From here on what fails is stale again.
        self.stale = false;
        if !self.perform(&[Action::DropCaches], begun) {
            return;
        }
        // Those in use stay known: what is open, a working directory. Nearly all others are being forgotten.
        for nodes in self.fs.store.all_ids().chunks(BATCH) {
            let still = nodes.iter().filter_map(|node| self.fs.store.get(*node));
            let actions: Vec<Action> = still.flat_map(|node| anew(&node)).collect();
            if !actions.is_empty() && !self.perform(&actions, begun) {
                return;
            }
        }
        tracing::info!("the guest has forgotten what it had cached");
        self.watcher.live.store(true, Ordering::Release);
    }

    /// There is no agent any more.
    fn lose(&mut self) {
        self.watcher.live.store(false, Ordering::Release);
        self.agent = None;
        self.stale = true;
        let lost = self.watcher.requests().lost.clone();
        if let Some(lost) = lost {
            lost();
        }
    }

    /// Tells those who watch.
    fn report(&self, batch: &[Numbered], errors: &[i32], read: Instant) {
        let mut requests = self.watcher.requests();
        if requests.subscribers.is_empty() {
            return;
        }
        let latency = read.elapsed();
        let changes: Vec<Change> = batch
            .iter()
            .zip(errors)
            .flat_map(|(numbered, error)| self.fs.describe(&numbered.action, latency, *error))
            .collect();
        // One that is full misses some; one that is gone is forgotten.
        requests.subscribers.retain(|subscriber| {
            changes.iter().all(|change| {
                !matches!(
                    subscriber.try_send(change.clone()),
                    Err(std::sync::mpsc::TrySendError::Disconnected(_))
                )
            })
        });
    }
}

/// What makes the guest ask again for all there is to know of a node.
fn anew(node: &Node) -> Vec<Action> {
    let names = node.places().into_iter().map(|place| Action::Confirm {
        parent: place.parent.id,
        name: place.name,
    });
    std::iter::once(Action::Refresh { node: node.id })
        .chain(names)
        .collect()
}

/// Whether the guest is right all the same: what it does not know needs no change, and what it has is what it was to get.
fn is_expected(error: i32) -> bool {
    matches!(
        error,
        0 | libc::ENOENT | libc::EEXIST | libc::ESTALE | libc::ENOTDIR | libc::EISDIR | libc::ENOTEMPTY
    )
}

fn reach(barriers: Vec<Reached>, result: Result<(), NotCoherent>) {
    for reached in barriers {
        reached(result);
    }
}
