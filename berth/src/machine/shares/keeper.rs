//! Keeping the guest's agent connected while a machine runs.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use protocol::ports;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::LiveShares;
use super::agent::{GuestAgent, PATIENCE, WhyLost};
use super::coherence::Replay;
use crate::exit::chain;
use crate::guest::{DialError, GuestDial};
use crate::machine::handle::Handle;
use crate::machine::state::State;

/// How long a machine that starts waits for its agent. It is nearly always there at once.
const AT_START: Duration = Duration::from_secs(5);
/// How long to wait before an agent that was lost is connected again, and how long at most when that fails again and again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// An agent that has been there for this long was lost by chance, and its successor has as good a chance.
const STEADY: Duration = Duration::from_secs(60);

/// Why the agent is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("the guest's agent could not be reached")]
    Dial(#[from] DialError),
    #[error("the connection to the guest's agent cannot be used")]
    Stream(#[from] std::io::Error),
    #[error("the guest's agent did not answer within {AT_START:?}")]
    Timeout,
}

/// Connects to the agent, once.
type Connect = dyn Fn() -> BoxFuture<'static, Result<(), ConnectError>> + Send + Sync;

/// Sees to it that the agent is connected again when it is lost. Dropping it ends that; an agent that is there stays.
#[derive(Debug)]
pub(in crate::machine) struct AgentKeeper(JoinHandle<()>);

impl Drop for AgentKeeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl LiveShares {
    /// Connects the agent of a guest that has mounted its shares, from now on and again whenever it is lost. That it cannot
    /// be connected is a warning and no more; what the host changes is then seen a little later.
    pub(in crate::machine) async fn connect_agent(&self, machine: &Handle) -> Option<AgentKeeper> {
        let replay = Arc::clone(self.tree.changes().replay().ok()?);
        let dial = machine.dial()?;
        let lost = Arc::new(Notify::new());
        replay.on_lost(Box::new({
            let lost = Arc::clone(&lost);
            move || lost.notify_one()
        }));
        let why_lost = WhyLost::default();
        let connect: Box<Connect> = {
            let (states, why_lost) = (machine.states(), Arc::clone(&why_lost));
            Box::new(move || {
                let connected = connect(
                    Arc::clone(&replay),
                    dial.clone(),
                    states.clone(),
                    Arc::clone(&why_lost),
                );
                connected.boxed()
            })
        };
        let first = tokio::time::timeout(AT_START, connect()).await;
        let connected = match first.unwrap_or(Err(ConnectError::Timeout)) {
            Ok(()) => true,
            Err(error) => {
                machine.warn(format!(
                    "the machine is not told of host changes yet, and sees them within a second: {}; berth goes on trying",
                    chain(&error.into())
                ));
                false
            }
        };
        Some(AgentKeeper(tokio::spawn(keep(
            lost, why_lost, connect, connected,
        ))))
    }
}

async fn connect(
    replay: Arc<dyn Replay>,
    dial: GuestDial,
    mut states: watch::Receiver<State>,
    why_lost: WhyLost,
) -> Result<(), ConnectError> {
    // A guest that stands still takes no connection. That the sender is gone is not for this to deal with.
    let _ = states.wait_for(|state| *state != State::Paused).await;
    let stream = dial.connect(ports::REPLAY).await?.into_std()?;
    let paused = move || *states.borrow() == State::Paused;
    let agent = GuestAgent::new(stream, PATIENCE, paused, why_lost)?;
    replay.connect(Box::new(agent));
    Ok(())
}

/// Connects the agent again whenever it is lost, for ever.
async fn keep(lost: Arc<Notify>, why_lost: WhyLost, connect: Box<Connect>, mut connected: bool) {
    let mut pause = FIRST_PAUSE;
    let mut told = !connected;
    loop {
        if connected {
            let since = Instant::now();
            lost.notified().await;
            let why = why_lost.lock().unwrap_or_else(PoisonError::into_inner).take();
            let why = why.unwrap_or_else(|| "no reason was given".into());
            tracing::warn!("the guest's agent for host changes was lost: {why}; it is connected again");
            if since.elapsed() >= STEADY {
                pause = FIRST_PAUSE;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        connected = match connect().await {
            Ok(()) => {
                tracing::info!("the guest's agent for host changes is connected");
                told = false;
                true
            }
            Err(error) => {
                let error = chain(&error.into());
                if told {
                    tracing::debug!("{error}");
                } else {
                    tracing::warn!("{error}; berth goes on trying");
                }
                told = true;
                false
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::mpsc;

    use super::*;

    /// A keeper of an agent that the test plays, and the times at which it is connected.
    struct Kept {
        lost: Arc<Notify>,
        refuses: Arc<Mutex<u32>>,
        attempts: mpsc::UnboundedReceiver<Instant>,
        _keeper: AgentKeeper,
    }

    impl Kept {
        fn new(connected: bool) -> Kept {
            let lost = Arc::new(Notify::new());
            let refuses = Arc::new(Mutex::new(0_u32));
            let (sender, attempts) = mpsc::unbounded_channel();
            let connect = {
                let refuses = Arc::clone(&refuses);
                move || {
                    sender.send(Instant::now()).unwrap();
                    let mut refuses = refuses.lock().unwrap();
                    let refused = *refuses > 0;
                    *refuses = refuses.saturating_sub(1);
                    let result = if refused {
                        Err(DialError::Refused(ports::REPLAY).into())
                    } else {
                        Ok(())
                    };
                    std::future::ready(result).boxed()
                }
            };
            let keep = keep(
                Arc::clone(&lost),
                WhyLost::default(),
                Box::new(connect),
                connected,
            );
            Kept {
                lost,
                refuses,
                attempts,
                _keeper: AgentKeeper(tokio::spawn(keep)),
            }
        }

        /// How long it takes from now until the next attempt.
        async fn attempt(&mut self) -> Duration {
            let now = Instant::now();
            self.attempts.recv().await.unwrap() - now
        }

        async fn is_quiet(&mut self) -> bool {
            tokio::time::sleep(LONGEST_PAUSE * 3).await;
            self.attempts.try_recv().is_err()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_agent_is_connected_again_and_one_that_is_there_left_alone() {
        let mut kept = Kept::new(true);
        assert!(kept.is_quiet().await);
        for _ in 0..3 {
            kept.lost.notify_one();
            assert_eq!(kept.attempt().await, FIRST_PAUSE);
            assert!(kept.is_quiet().await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_that_fail_become_rare_and_never_end() {
        let mut kept = Kept::new(false);
        *kept.refuses.lock().unwrap() = 20;
        let mut pauses = Vec::new();
        for _ in 0..20 {
            pauses.push(kept.attempt().await);
        }
        assert_eq!(pauses[..3], [1, 2, 4].map(|n| FIRST_PAUSE * n));
        assert_eq!(pauses[19], LONGEST_PAUSE);
        // The 21st succeeds.
        kept.attempt().await;
        assert!(kept.is_quiet().await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_lost_at_once_is_not_connected_all_the_time() {
        let mut kept = Kept::new(true);
        let mut pauses = Vec::new();
        for _ in 0..20 {
            kept.lost.notify_one();
            pauses.push(kept.attempt().await);
        }
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert_eq!(pauses[19], LONGEST_PAUSE);
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_keeper_that_is_dropped() {
        let Kept {
            lost,
            mut attempts,
            _keeper: keeper,
            ..
        } = Kept::new(true);
        drop(keeper);
        lost.notify_one();
        assert_eq!(attempts.recv().await, None);
    }
}
