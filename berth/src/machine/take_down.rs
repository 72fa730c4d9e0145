//! Taking a machine down: in an orderly way when there is time for that, and always to the end.

use std::time::Duration;

use protocol::boot::GuestEvent;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::control::Control;
use super::handle::{Command, Handle};
use super::live::{Happening, Live};
use super::state::State;
use super::supervisor::{Surroundings, asked_to_stop};
use crate::docker::context;
use crate::exit::chain;

/// How long guest-init may take to answer the request.
const ANSWER: Duration = Duration::from_secs(10);
/// What the guest gets beyond the containers' grace: to stop dockerd, to write its caches and to power off. Much on a slow
/// disk, and nothing when it is done earlier.
const SYNC: Duration = Duration::from_secs(90);
/// What it gets to be gone when it has said that it powers off: everything is synced then.
const POWER_OFF: Duration = Duration::from_secs(30);
/// How long a killed machine may take to be gone.
const KILL: Duration = Duration::from_secs(15);

/// Ends everything of the machine. With `grace`, the guest is asked first; a second stop on the way cuts it short.
pub(super) async fn take_down(
    machine: &Handle,
    around: &Surroundings,
    commands: &mut mpsc::Receiver<Command>,
    mut live: Live,
    grace: Option<Duration>,
) {
    // It goes with the guest, which is no loss from now on.
    live.leave_agent();
    if live.engine().is_some() {
        if let Some(grace) = grace {
            tokio::select! {
                () = shut_down(machine, &mut live, grace) => {}
                () = cut_short(commands, grace) => machine.note("the power is cut, as asked"),
            }
        }
        if let Some(engine) = live.engine() {
            engine.kill();
        }
        match tokio::time::timeout(KILL, live.exited()).await {
            Ok(exit) => {
                if let Some(stuck) = exit.stuck() {
                    machine.warn(format!("{stuck}. It ends with the daemon"));
                }
            }
            Err(_) => {
                machine.warn("the virtual machine does not end; what is left of it is ended with its daemon");
            }
        }
    }
    live.leave_containers();
    // Only now, so that clients that are attached to containers see these end.
    if let Err(error) = live.close_proxy().await {
        machine.warn(format!("could not remove the Docker socket: {error}"));
    }
    give_back_context(machine, around);
    live.stop_passt();
}

/// Asks the guest to power off and waits for it.
async fn shut_down(machine: &Handle, live: &mut Live, grace: Duration) {
    let Some(dial) = machine.dial() else {
        // Not booted that far: there is nothing to lose.
        return;
    };
    if let Some(engine) = live.engine().filter(|_| machine.state() == State::Paused)
        && let Err(error) = engine.resume().await
    {
        machine.warn(chain(&error.into()));
    }
    let control = Control::new(dial);
    tokio::select! {
        result = control.shutdown(grace, ANSWER) => {
            if let Err(error) = result {
                machine.warn(format!("{}; the power is cut instead", chain(&error.into())));
                return;
            }
        }
        _ = live.exited() => return,
    }
    if let Err(late) = power_off(async || live.next().await, grace + SYNC).await {
        machine.warn(late);
    }
}

/// Returns when the machine has ended, or why that is not waited for any longer.
async fn power_off(mut next: impl AsyncFnMut() -> Happening, limit: Duration) -> Result<(), String> {
    let start = Instant::now();
    let mut deadline = start + limit;
    let mut synced = false;
    loop {
        match tokio::time::timeout_at(deadline, next()).await {
            Ok(Happening::Ended(_)) => return Ok(()),
            Ok(Happening::Guest(event)) => {
                tracing::info!(?event, "guest");
                if event == GuestEvent::PoweringOff {
                    synced = true;
                    deadline = deadline.min(Instant::now() + POWER_OFF);
                }
            }
            // Nothing of these is needed any more.
            Ok(Happening::Network(_) | Happening::ProxyEnded(_)) => {}
            Err(_) if synced => {
                return Err(
                    "the guest has powered off and the virtual machine does not end; the power is cut, and nothing is lost by \
                     that. A shared directory of the host that does not answer can be the cause"
                        .into(),
                );
            }
            Err(_) => {
                return Err(format!(
                    "the guest did not power off within {} seconds; the power is cut",
                    limit.as_secs()
                ));
            }
        }
    }
}

/// Returns when the power is to be cut; a further stop with a grace of its own changes nothing.
async fn cut_short(commands: &mut mpsc::Receiver<Command>, grace: Duration) {
    let mut asked = Some(grace);
    while asked.is_some() {
        asked = asked_to_stop(commands).await;
    }
}

/// Gives the docker context back that was current before.
fn give_back_context(machine: &Handle, around: &Surroundings) {
    if machine.facts().context.is_none() || !around.config.switch_context() {
        return;
    }
    let spec = super::bring_up::context_spec(&machine.name, &machine.paths, &around.config);
    if let Err(error) = context::give_back(&spec) {
        machine.warn(chain(&error.into()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::engine::EngineExit;

    /// How the wait for these, and then nothing, ends, and how long it takes.
    async fn wait_for(happenings: impl IntoIterator<Item = Happening>) -> (Result<(), String>, Duration) {
        let mut happenings: VecDeque<Happening> = happenings.into_iter().collect();
        let start = Instant::now();
        let next = async || match happenings.pop_front() {
            Some(happening) => happening,
            None => std::future::pending().await,
        };
        let result = power_off(next, Duration::from_secs(100)).await;
        (result, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_has_powered_off_is_not_waited_for_as_one_that_has_not() {
        let off = || Happening::Guest(GuestEvent::PoweringOff);
        let ended = Happening::Ended(EngineExit::GuestReset);
        assert_eq!(wait_for([off(), ended]).await, (Ok(()), Duration::ZERO));

        let (late, took) = wait_for([Happening::Guest(GuestEvent::ShuttingDown)]).await;
        assert!(late.unwrap_err().contains("within 100 seconds"));
        assert_eq!(took.as_secs(), 100);

        let (late, took) = wait_for([off()]).await;
        assert!(late.unwrap_err().contains("nothing is lost"));
        assert_eq!(took.as_secs(), POWER_OFF.as_secs());
    }
}
