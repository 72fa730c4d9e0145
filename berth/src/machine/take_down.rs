//! Taking a machine down: in an orderly way when there is time for that, and always to the end.

use std::time::Duration;

use tokio::sync::mpsc;

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
        if tokio::time::timeout(KILL, live.exited()).await.is_err() {
            machine.warn("the virtual machine does not end; what is left of it is ended with its daemon");
        }
    }
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
    let end = async {
        loop {
            match live.next().await {
                Happening::Ended(_) => return,
                Happening::Guest(event) => tracing::info!(?event, "guest"),
                // Nothing of these is needed any more.
                Happening::Network(_) | Happening::ProxyEnded(_) => {}
            }
        }
    };
    if tokio::time::timeout(grace + SYNC, end).await.is_err() {
        machine.warn(format!(
            "the guest did not power off within {} seconds; the power is cut",
            (grace + SYNC).as_secs()
        ));
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
