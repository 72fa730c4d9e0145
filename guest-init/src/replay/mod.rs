//! The agent that does the host's changes once more in the guest (`protocol::replay`), so that programs that watch files
//! see them and Linux's caches are right again.
//!
//! It is one thread, because what makes its requests known to the host are a thread's credentials, and because it wants a
//! mount namespace of its own. It starts with the first connection: the shared file system is mounted by then. From then
//! on it stays, and connections take turns in giving it work: a new one ends the one before.

mod agent;
mod directories;
mod mount;

use std::fmt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use protocol::replay::Numbered;
use protocol::shares::MOUNT_POINT;
use tokio::sync::oneshot;

use crate::lock::lock;
use agent::{Agent, System};
use mount::Mount;

/// For how long the agent keeps directories open when it has nothing to do. A directory that it has open and that somebody
/// in the guest removes is gone for its watchers only when the agent lets go of it.
const IDLE: Duration = Duration::from_millis(100);

/// How the thread gets hold of the shared file system; it runs on that thread.
type Prepare = dyn Fn() -> anyhow::Result<Box<dyn System>> + Send + Sync;

/// The way to the agent.
pub(crate) struct Replay {
    prepare: Arc<Prepare>,
    worker: tokio::sync::Mutex<Option<Worker>>,
    /// Dropped when another connection takes over.
    current: Mutex<Option<oneshot::Sender<()>>>,
}

impl fmt::Debug for Replay {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Replay").finish_non_exhaustive()
    }
}

struct Worker {
    jobs: Sender<Job>,
    thread: thread::JoinHandle<()>,
}

/// A batch, and where its results go. When nobody waits for them any more, the rest of it is left out.
struct Job {
    actions: Vec<Numbered>,
    done: oneshot::Sender<Vec<i32>>,
}

/// The time in which a connection may use the agent.
#[derive(Debug)]
pub(crate) struct Turn(oneshot::Receiver<()>);

impl Turn {
    /// Waits until another connection takes over.
    pub(crate) async fn over(self) {
        // Nothing is ever sent: the other end is dropped.
        let _ = self.0.await;
    }
}

impl Replay {
    /// The agent of the machine's shares; it does not run yet.
    pub(crate) fn new() -> Arc<Replay> {
        Replay::with(|| Ok(Box::new(Mount::enter(Path::new(MOUNT_POINT), mount::FUSE)?)))
    }

    fn with(prepare: impl Fn() -> anyhow::Result<Box<dyn System>> + Send + Sync + 'static) -> Arc<Replay> {
        Arc::new(Replay {
            prepare: Arc::new(prepare),
            worker: tokio::sync::Mutex::default(),
            current: Mutex::default(),
        })
    }

    /// Ends the turn of the connection before.
    pub(crate) fn take_over(&self) -> Turn {
        let (current, turn) = oneshot::channel();
        *lock(&self.current) = Some(current);
        Turn(turn)
    }

    /// Starts the agent when it does not run.
    ///
    /// # Errors
    /// When the shared file system is not mounted, or the thread cannot be made what it has to be. The next call tries
    /// again.
    pub(crate) async fn start(&self) -> anyhow::Result<()> {
        let mut worker = self.worker.lock().await;
        // It ends by itself only by a panic, which has been reported.
        if worker.as_ref().is_some_and(|worker| !worker.thread.is_finished()) {
            return Ok(());
        }
        *worker = None;
        let (jobs, receiver) = channel();
        let (ready, started) = oneshot::channel();
        let prepare = Arc::clone(&self.prepare);
        let thread = thread::Builder::new()
            .name("replay".into())
            .spawn(move || match prepare() {
                Ok(system) => {
                    // Nobody waits when the connection has ended meanwhile: the next one starts another thread.
                    if ready.send(Ok(())).is_ok() {
                        work(system, &receiver);
                    }
                }
                Err(e) => drop(ready.send(Err(e))),
            })
            .context("cannot start a thread")?;
        started.await.context("the agent has ended at its start")??;
        *worker = Some(Worker { jobs, thread });
        Ok(())
    }

    /// Performs `actions` in order and returns their results: 0 or an errno. When the future is dropped, the agent stops
    /// before the next action.
    ///
    /// # Errors
    /// When the agent does not run.
    pub(crate) async fn perform(&self, actions: Vec<Numbered>) -> anyhow::Result<Vec<i32>> {
        let ended = || anyhow!("the agent has ended");
        let (done, results) = oneshot::channel();
        let jobs = {
            let worker = self.worker.lock().await;
            worker.as_ref().ok_or_else(ended)?.jobs.clone()
        };
        jobs.send(Job { actions, done }).map_err(|_| ended())?;
        results.await.map_err(|_| ended())
    }
}

/// The thread's life.
fn work(system: Box<dyn System>, jobs: &Receiver<Job>) {
    let mut agent = Agent::new(system);
    loop {
        let job = if agent.is_idle() {
            jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            jobs.recv_timeout(IDLE)
        };
        match job {
            Ok(Job { actions, done }) => {
                if let Some(results) = agent.perform_all(&actions, || !done.is_closed()) {
                    // It was wanted a moment ago.
                    let _ = done.send(results);
                }
            }
            Err(RecvTimeoutError::Timeout) => agent.rest(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use anyhow::bail;
    use protocol::replay::Action;

    use super::*;
    pub(crate) use agent::tests::{Tree, make_file};

    /// An agent on the directories of `tree`.
    pub(crate) fn on_tree(tree: &Tree) -> Arc<Replay> {
        let system = tree.system();
        Replay::with(move || Ok(Box::new(system.clone())))
    }

    fn numbered(number: u32, action: Action) -> Vec<Numbered> {
        vec![Numbered { number, action }]
    }

    #[tokio::test]
    async fn without_the_shared_file_system_it_says_so_and_tries_again() {
        let tries = Arc::new(AtomicU32::new(0));
        let tree = Tree::new();
        let (system, counted) = (tree.system(), tries.clone());
        let replay = Replay::with(move || {
            if counted.fetch_add(1, Ordering::Relaxed) == 0 {
                bail!("nothing is mounted");
            }
            Ok(Box::new(system.clone()))
        });
        assert!(replay.perform(Vec::new()).await.is_err());
        let error = replay.start().await.unwrap_err();
        assert_eq!(format!("{error:#}"), "nothing is mounted");
        replay.start().await.unwrap();
        replay.start().await.unwrap();
        assert_eq!(tries.load(Ordering::Relaxed), 2);
        assert_eq!(replay.perform(Vec::new()).await.unwrap(), Vec::<i32>::new());
    }

    #[tokio::test]
    async fn an_agent_that_broke_down_is_replaced() {
        let tree = Tree::new();
        let replay = on_tree(&tree);
        replay.start().await.unwrap();
        let breaking = replay.perform(numbered(1, Action::Refresh { node: Tree::PANIC }));
        assert!(breaking.await.is_err());
        while replay
            .worker
            .lock()
            .await
            .as_ref()
            .is_some_and(|worker| !worker.thread.is_finished())
        {
            tokio::task::yield_now().await;
        }
        replay.start().await.unwrap();
        let results = replay.perform(numbered(1, make_file("again"))).await.unwrap();
        assert_eq!(results, [0]);
    }

    #[tokio::test]
    async fn the_last_to_take_over_has_the_turn() {
        let replay = on_tree(&Tree::new());
        let first = replay.take_over();
        let mut second = replay.take_over();
        first.over().await;
        assert!(
            second
                .0
                .try_recv()
                .is_err_and(|e| e == oneshot::error::TryRecvError::Empty)
        );
    }
}
