//! Host changes in the shares, and whether the guest is told of them.

use std::io;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, SystemTime};

use fileshare::passthrough::Passthrough;
use fileshare::passthrough::coherence::{Agent, Change, Coherence, Figures, NotCoherent};
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use crate::api::types::CoherenceReport;
use crate::docker::barrier::Barrier;

/// Changes that wait to be sent to somebody who watches them. What does not fit is left out.
const QUEUE: usize = 4096;
/// And those that are on their way from one thread to another.
const IN_PASSING: usize = 64;
/// How soon it is noticed that whoever watched has left, when nothing changes.
const LOOK: Duration = Duration::from_millis(500);

/// Called when the guest has been told of everything, or will not be.
pub(super) type Done = Box<dyn FnOnce(Result<(), NotCoherent>) + Send>;

/// What does host changes once more in the guest: [`Coherence`], or what a test puts in its place.
pub(super) trait Replay: Send + Sync {
    /// [`Coherence::connect`]
    fn connect(&self, agent: Box<dyn Agent>);
    /// [`Coherence::on_lost`]
    fn on_lost(&self, lost: Box<dyn Fn() + Send + Sync>);
    /// [`Coherence::barrier`]
    fn barrier(&self, done: Done);
    /// [`Coherence::figures`]
    fn figures(&self) -> Figures;
    /// [`Coherence::subscribe`]
    fn subscribe(&self, queue: usize) -> std_mpsc::Receiver<Change>;
}

impl Replay for Coherence {
    fn connect(&self, agent: Box<dyn Agent>) {
        Coherence::connect(self, agent);
    }

    fn on_lost(&self, lost: Box<dyn Fn() + Send + Sync>) {
        Coherence::on_lost(self, lost);
    }

    fn barrier(&self, done: Done) {
        Coherence::barrier(self, done);
    }

    fn figures(&self) -> Figures {
        Coherence::figures(self)
    }

    fn subscribe(&self, queue: usize) -> std_mpsc::Receiver<Change> {
        Coherence::subscribe(self, queue)
    }
}

/// Why the guest is not told of host changes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotTold {
    /// Not on this host.
    #[error(
        "the machine is not told of host changes on this host: {0}; it sees them within a second, and programs there that watch \
         files are not told"
    )]
    Never(String),
    /// Not now.
    #[error(
        "the machine is not told of host changes at the moment; it sees them within a second, and programs there that watch \
         files are not told"
    )]
    Now,
}

impl From<NotCoherent> for NotTold {
    fn from(_: NotCoherent) -> NotTold {
        NotTold::Now
    }
}

/// A change, and when the daemon heard of it.
#[derive(Debug)]
pub struct Heard {
    /// When.
    pub at: SystemTime,
    /// What.
    pub change: Change,
}

/// The host changes of a machine's shares. Cheap to clone.
#[derive(Clone)]
pub struct HostChanges(Result<Arc<dyn Replay>, NotTold>);

impl HostChanges {
    /// Watches what the guest comes to know of `fs`. A kernel that cannot report changes is no reason to have no machine.
    pub(super) fn watch(fs: &Arc<Passthrough>) -> HostChanges {
        HostChanges(match Coherence::start(fs, protocol::replay::AGENT_UID) {
            Ok(coherence) => Ok(Arc::new(coherence)),
            Err(error) => {
                let why = NotTold::Never(error.to_string());
                tracing::info!("{why}");
                Err(why)
            }
        })
    }

    #[cfg(test)]
    pub(super) fn fake(replay: Result<Arc<dyn Replay>, NotTold>) -> HostChanges {
        HostChanges(replay)
    }

    pub(super) fn replay(&self) -> Result<&Arc<dyn Replay>, NotTold> {
        self.0.as_ref().map_err(Clone::clone)
    }

    /// Returns when the guest has been told of every change made before this call.
    ///
    /// # Errors
    /// When it will not be told of them.
    pub async fn reached(&self) -> Result<(), NotTold> {
        let (done, reached) = oneshot::channel();
        self.replay()?.barrier(Box::new(move |result| {
            // Whoever waited may have given up.
            let _ = done.send(result);
        }));
        // One that is dropped without a word has ended with its machine.
        Ok(reached.await.unwrap_or(Err(NotCoherent))?)
    }

    /// The figures; none when nothing is watched.
    pub fn report(&self) -> Option<CoherenceReport> {
        Some(self.0.as_ref().ok()?.figures().into())
    }

    /// What the user should know, of a machine that is `running` or not.
    pub fn warnings(&self, running: bool) -> Vec<String> {
        let figures = match self.replay() {
            Ok(replay) => replay.figures(),
            Err(why) => return vec![why.to_string()],
        };
        let mut warnings = Vec::new();
        if running && !figures.coherent {
            warnings.push(NotTold::Now.to_string());
        }
        if figures.unwatched > 0 {
            warnings.push(format!(
                "{} of the shares cannot be watched; the machine sees what the host changes there within a second, and programs \
                 there that watch files are not told",
                directories(figures.unwatched)
            ));
        }
        if figures.overflows > 0 {
            warnings.push(format!(
                "the host changed more at once than berth could follow, {}; the machine sees all of it, but programs there that \
                 watch files may have missed something",
                match figures.overflows {
                    1 => "once".into(),
                    times => format!("{times} times"),
                }
            ));
        }
        warnings
    }

    /// Changes from now on, until the receiver is dropped or the machine is gone.
    ///
    /// # Errors
    /// When nothing is watched, or there can be no thread to listen on.
    pub fn subscribe(&self) -> anyhow::Result<mpsc::Receiver<Heard>> {
        let changes = self.replay()?.subscribe(QUEUE);
        let (sender, receiver) = mpsc::channel(IN_PASSING);
        std::thread::Builder::new()
            .name("host-changes".into())
            .spawn(move || pass_on(&changes, &sender))
            .map_err(|error| io::Error::other(format!("cannot start a thread: {error}")))?;
        Ok(receiver)
    }
}

impl std::fmt::Debug for HostChanges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let figures = self.0.as_ref().map(|replay| replay.figures());
        f.debug_tuple("HostChanges").field(&figures).finish()
    }
}

impl Barrier for HostChanges {
    fn reach(&self) -> BoxFuture<'static, anyhow::Result<()>> {
        let changes = self.clone();
        Box::pin(async move { Ok(changes.reached().await?) })
    }
}

/// Passes changes on until either side has gone. Blocks, so it has a thread of its own.
fn pass_on(changes: &std_mpsc::Receiver<Change>, sender: &mpsc::Sender<Heard>) {
    while !sender.is_closed() {
        match changes.recv_timeout(LOOK) {
            Ok(change) => {
                let at = SystemTime::now();
                if sender.blocking_send(Heard { at, change }).is_err() {
                    return;
                }
            }
            Err(std_mpsc::RecvTimeoutError::Timeout) => {}
            Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// So many directories, in words.
pub fn directories(number: u64) -> String {
    match number {
        1 => "1 directory".into(),
        number => format!("{number} directories"),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Host changes that a test makes.

    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// In place of [`Coherence`].
    #[derive(Default)]
    pub(crate) struct FakeReplay {
        /// Said at every barrier; none: nothing is said until the test does.
        pub(crate) answer: Mutex<Option<Result<(), NotCoherent>>>,
        /// Barriers that wait.
        pub(super) waiting: Mutex<Vec<Done>>,
        /// What it tells of itself.
        pub(crate) figures: Mutex<Figures>,
        /// Whoever watches.
        pub(crate) watcher: Mutex<Option<std_mpsc::SyncSender<Change>>>,
        /// The agent that was connected last.
        pub(crate) agent: Mutex<Option<Box<dyn Agent>>>,
        /// Called when it is lost.
        pub(super) lost: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
    }

    fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    impl FakeReplay {
        /// One that answers barriers with `answer`.
        pub(crate) fn answering(answer: Result<(), NotCoherent>) -> Arc<FakeReplay> {
            let fake = FakeReplay::default();
            *lock(&fake.answer) = Some(answer);
            Arc::new(fake)
        }

        /// Loses the agent.
        pub(crate) fn lose(&self) {
            lock(&self.agent).take();
            if let Some(lost) = &*lock(&self.lost) {
                lost();
            }
        }
    }

    impl Replay for FakeReplay {
        fn connect(&self, agent: Box<dyn Agent>) {
            *lock(&self.agent) = Some(agent);
        }

        fn on_lost(&self, lost: Box<dyn Fn() + Send + Sync>) {
            *lock(&self.lost) = Some(lost);
        }

        fn barrier(&self, done: Done) {
            match *lock(&self.answer) {
                Some(answer) => done(answer),
                None => lock(&self.waiting).push(done),
            }
        }

        fn figures(&self) -> Figures {
            *lock(&self.figures)
        }

        fn subscribe(&self, queue: usize) -> std_mpsc::Receiver<Change> {
            let (sender, receiver) = std_mpsc::sync_channel(queue);
            *lock(&self.watcher) = Some(sender);
            receiver
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::testing::FakeReplay;
    use super::*;

    fn changes(fake: &Arc<FakeReplay>) -> HostChanges {
        HostChanges::fake(Ok(Arc::clone(fake) as Arc<dyn Replay>))
    }

    fn change(path: &str) -> Change {
        Change {
            kind: "modify",
            path: path.into(),
            new_path: None,
            latency: Duration::from_millis(1),
            error: 0,
        }
    }

    #[tokio::test]
    async fn a_barrier_is_reached_when_it_is_said_so_and_not_before() {
        let fake = Arc::new(FakeReplay::default());
        let host = changes(&fake);
        for said in [Ok(()), Err(NotCoherent)] {
            let mut reached = Box::pin(host.reached());
            assert!((&mut reached).now_or_never().is_none());
            let done = fake.waiting.lock().unwrap().pop().unwrap();
            done(said);
            assert_eq!(reached.await.is_ok(), said.is_ok());
        }
        // One that was forgotten is not waited for, and one that nobody waits for any more is no harm.
        let mut reached = Box::pin(host.reached());
        assert!((&mut reached).now_or_never().is_none());
        fake.waiting.lock().unwrap().clear();
        assert!(matches!(reached.await, Err(NotTold::Now)));
        drop(host.reached().now_or_never());
        let done = fake.waiting.lock().unwrap().pop().unwrap();
        done(Ok(()));
    }

    #[tokio::test]
    async fn a_host_that_cannot_watch_is_told_of_and_no_more() {
        let host = HostChanges::fake(Err(NotTold::Never("no fanotify".into())));
        assert!(matches!(host.reached().await, Err(NotTold::Never(_))));
        assert!(host.reach().await.is_err());
        assert!(host.subscribe().unwrap_err().to_string().contains("no fanotify"));
        assert_eq!(host.report(), None);
        for running in [true, false] {
            let warnings = host.warnings(running);
            assert_eq!(warnings.len(), 1);
            assert!(warnings[0].contains("within a second"), "{warnings:?}");
        }
    }

    #[test]
    fn what_is_not_as_it_should_be_is_a_warning() {
        let fake = Arc::new(FakeReplay::default());
        let host = changes(&fake);
        let set = |figures| *fake.figures.lock().unwrap() = figures;
        assert_eq!(host.warnings(false), [""; 0], "it starts, and has no agent yet");
        assert!(host.warnings(true)[0].contains("at the moment"));
        let well = Figures {
            coherent: true,
            watched: 10,
            replayed: 20,
            ..Figures::default()
        };
        set(well);
        assert_eq!(host.warnings(true), [""; 0]);
        set(Figures {
            unwatched: 1,
            overflows: 1,
            ..well
        });
        let warnings = host.warnings(true);
        assert!(warnings[0].starts_with("1 directory of the shares cannot be watched"));
        assert!(warnings[1].contains("follow, once;"), "{warnings:?}");
        set(Figures {
            unwatched: 2,
            overflows: 3,
            ..well
        });
        let warnings = host.warnings(true);
        assert!(warnings[0].starts_with("2 directories"));
        assert!(warnings[1].contains("3 times"));
    }

    #[tokio::test]
    async fn changes_are_passed_on_until_either_side_has_gone() {
        let fake = Arc::new(FakeReplay::default());
        let mut heard = changes(&fake).subscribe().unwrap();
        let watcher = fake.watcher.lock().unwrap().take().unwrap();
        for path in ["a", "b"] {
            watcher.send(change(path)).unwrap();
        }
        assert_eq!(heard.recv().await.unwrap().change, change("a"));
        assert_eq!(heard.recv().await.unwrap().change, change("b"));
        drop(watcher);
        assert!(heard.recv().await.is_none());

        // Whether something changes or not.
        let (_watcher, quiet) = std_mpsc::sync_channel(1);
        let (sender, heard) = mpsc::channel(1);
        let thread = std::thread::spawn(move || pass_on(&quiet, &sender));
        drop(heard);
        thread.join().unwrap();
    }
}
