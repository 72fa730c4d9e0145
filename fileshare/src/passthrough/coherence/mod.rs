//! Host changes, told to the guest, so that it may cache what it likes.
//!
//! Every directory the guest knows is watched ([`watches`], by [`fanotify`]). What happens there by other processes is
//! translated into actions ([`translate`]) that an agent in the guest performs with real system calls on the mounted file
//! system. Their FUSE requests come back here, and are answered from what the host is by now without touching it
//! ([`answers`]): so the guest's own kernel refreshes its caches and tells its own watchers. The agent's requests are known by
//! their user id, and the action they belong to by their group id ([`armed`]); whatever the agent asks beyond its actions is
//! refused.
//!
//! What this process does itself, on behalf of the guest, is in the events as its own and is left out. What fanotify cannot
//! watch, [`inotify`] does, with less to rely on ([`own`]).
//!
//! Names in watched directories, attributes of what lies there and contents are cached without limit while an agent is
//! connected. What cannot be watched (other file systems below a share, file systems that others change too, files with
//! several links) is cached for a second at most, as everything is without an agent. When events were lost, or an agent was,
//! the guest is made to forget everything ([`Action::DropCaches`], [`Action::Refresh`]) before it may cache again.

mod action;
mod answers;
mod armed;
mod event;
mod fanotify;
mod inotify;
mod left;
mod own;
mod pump;
mod report;
mod translate;
mod watches;

#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::EventfdFlags;

pub use action::{Action, Agent, Numbered, STAGING, STAGING_PARENT, What};
pub use report::{Change, Figures};

use super::Passthrough;
use super::node::Node;
use armed::Board;
use fanotify::Group;
use inotify::Instance;
use left::Left;
use own::Own;
pub(super) use own::OwnFd;
use watches::Watches;

/// Keeps the caches of the guest right. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Coherence {
    running: Arc<Running>,
}

/// Why a barrier was not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("host changes are not told to the guest at the moment; they are seen there within a second")]
pub struct NotCoherent;

/// Called when a barrier is reached, or cannot be.
type Reached = Box<dyn FnOnce(Result<(), NotCoherent>) + Send>;

/// A directory, a name in it, and what the guest has there.
type Leaving<'a> = (&'a Arc<Node>, &'a CStr, Option<&'a Arc<Node>>);

impl Passthrough {
    /// Runs what moves nodes away from names, on behalf of the guest.
    pub(super) fn leaving<T>(
        &self,
        places: &[Leaving<'_>],
        rename: impl FnOnce() -> crate::filesystem::Result<T>,
    ) -> crate::filesystem::Result<T> {
        // Where names do not last, no event need come.
        let lasting = places.iter().filter(|(dir, ..)| self.names_last(dir));
        let noted: Vec<_> = lasting
            .filter_map(|(dir, name, node)| Some((dir.id, name.to_bytes(), node.as_ref()?.id)))
            .collect();
        let left = self.watcher.get().map(|watcher| &watcher.left);
        for (dir, name, node) in &noted {
            left.inspect(|left| left.note(*dir, name, *node));
        }
        let result = rename();
        if result.is_err() {
            for (dir, name, node) in &noted {
                left.inspect(|left| left.take_back(*dir, name, *node));
            }
        }
        result
    }
}

/// The thread, which ends when this is dropped.
struct Running {
    watcher: Arc<Watcher>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and the file system share.
pub(super) struct Watcher {
    watches: Watches,
    own: Own,
    left: Left,
    /// The user id of the agent's requests.
    agent_uid: u32,
    /// The guest may cache without limit.
    live: AtomicBool,
    board: Board,
    counts: Counts,
    requests: Mutex<Requests>,
    /// Written to when there are requests.
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct Counts {
    seen: AtomicU64,
    replayed: AtomicU64,
    coalesced: AtomicU64,
    dropped: AtomicU64,
    overflows: AtomicU64,
    invalidations: AtomicU64,
}

/// What the thread is asked for.
#[derive(Default)]
struct Requests {
    stop: bool,
    /// The guest is to forget what it has cached.
    forget: bool,
    agent: Option<Box<dyn Agent>>,
    barriers: Vec<Reached>,
    subscribers: Vec<SyncSender<Change>>,
    lost: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Coherence {
    /// Begins to watch what the guest comes to know of `fs`, on a thread of its own that ends with the last `Coherence`.
    /// `agent_uid` is the user id by which the agent's requests are told from others'. Nothing is replayed, and the guest caches
    /// for a second at most, until [`Coherence::connect`]. To be called once, before the guest's session starts.
    ///
    /// # Errors
    /// When the kernel reports changes neither by fanotify nor by inotify, when this has been called before, or when the
    /// thread cannot be started.
    pub fn start(fs: &Arc<Passthrough>, agent_uid: u32) -> io::Result<Coherence> {
        Coherence::start_with(fs, agent_uid, Group::new())
    }

    fn start_with(
        fs: &Arc<Passthrough>,
        agent_uid: u32,
        fanotify: io::Result<Group>,
    ) -> io::Result<Coherence> {
        let (fanotify, inotify) = match (fanotify, Instance::new()) {
            (Ok(group), Ok(instance)) => (Some(group), Some(instance)),
            (Ok(group), Err(error)) => {
                tracing::info!(%error, "inotify cannot be used in place of fanotify");
                (Some(group), None)
            }
            (Err(error), Ok(instance)) => {
                fs.warn(format!(
                    "this host's kernel does not tell by fanotify what changes (Linux 5.17 does): {error}. inotify tells programs \
                     in the machine that watch; what changes on the host is seen within a second"
                ));
                (None, Some(instance))
            }
            (Err(error), Err(other)) => {
                let why = format!(
                    "this kernel tells of changes neither by fanotify (Linux 5.17 does): {error}; nor by inotify: {other}"
                );
                return Err(io::Error::new(error.kind(), why));
            }
        };
        let watcher = Arc::new(Watcher {
            watches: Watches::new(fanotify, inotify),
            own: Own::default(),
            left: Left::default(),
            agent_uid,
            live: AtomicBool::new(false),
            board: Board::default(),
            counts: Counts::default(),
            requests: Mutex::default(),
            wake: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        fs.watcher
            .set(watcher.clone())
            .map_err(|_| io::Error::new(io::ErrorKind::AlreadyExists, "changes are being watched already"))?;
        fs.store.index_names();
        fs.watch_roots();
        let pump = pump::Pump::new(fs.clone(), watcher.clone());
        let thread = std::thread::Builder::new()
            .name("coherence".into())
            .spawn(move || pump.run())?;
        let thread = Some(thread);
        Ok(Coherence {
            running: Arc::new(Running { watcher, thread }),
        })
    }

    /// The agent is there, in place of one that was there before. From now on the guest may cache without limit.
    pub fn connect(&self, agent: Box<dyn Agent>) {
        self.ask(|requests| requests.agent = Some(agent));
    }

    /// Calls `lost` (on the watching thread; it must not block) whenever the agent is lost, and another is to be connected.
    pub fn on_lost(&self, lost: Box<dyn Fn() + Send + Sync>) {
        self.running.watcher.requests().lost = Some(lost.into());
    }

    /// Calls `done` (on the watching thread; it must not block) when every host change made before this call has been
    /// replayed, or when that cannot be.
    pub fn barrier(&self, done: Box<dyn FnOnce(Result<(), NotCoherent>) + Send>) {
        self.ask(|requests| requests.barriers.push(done));
    }

    /// What has happened so far.
    pub fn figures(&self) -> Figures {
        let watcher = &self.running.watcher;
        let counts = &watcher.counts;
        let (watched, by_inotify, unwatched) = watcher.watches.counts();
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Figures {
            coherent: watcher.is_live(),
            watched,
            by_inotify,
            unwatched,
            seen: get(&counts.seen),
            replayed: get(&counts.replayed),
            coalesced: get(&counts.coalesced),
            dropped: get(&counts.dropped),
            overflows: get(&counts.overflows),
            invalidations: get(&counts.invalidations),
        }
    }

    /// Changes from now on, as they are replayed. The queue holds so many; what does not fit is left out.
    pub fn subscribe(&self, queue: usize) -> Receiver<Change> {
        let (sender, receiver) = sync_channel(queue);
        self.running.watcher.requests().subscribers.push(sender);
        receiver
    }

    fn ask(&self, change: impl FnOnce(&mut Requests)) {
        change(&mut self.running.watcher.requests());
        self.running.watcher.wake();
    }
}

impl Watcher {
    /// Whether the guest may cache without limit.
    pub(super) fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    /// Has the guest forget what it has cached: it may be of a share that is gone. Barriers wait for it.
    pub(super) fn forget(&self) {
        self.requests().forget = true;
        self.wake();
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        // Fields are only ever replaced whole, so a panic elsewhere leaves nothing half done.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails only when it has been written to 2^64 times without being read.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.watcher.requests().stop = true;
        self.watcher.wake();
        if let Some(thread) = self.thread.take()
            // The last one may be dropped by a callback, on the thread itself.
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running")
            .field("watcher", &self.watcher)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("live", &self.live)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}
