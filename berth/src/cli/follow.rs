//! Following a machine's start or stop as its daemon tells it.

use anyhow::Result;

use super::context::CommandContext;
use crate::api::client::{ClientError, Events};
use crate::daemon::launch;
use crate::exit::{Code, Failure};
use crate::machine::events::Event;
use crate::machine::failure::Failure as MachineFailure;
use crate::machine::state::State;
use crate::output;
use crate::progress::{Progress, seconds};

/// How a start went.
#[derive(Debug)]
pub(super) enum Followed {
    /// Docker answers.
    Running,
    /// Somebody stopped it on the way.
    Stopped,
    /// It failed.
    Failed(MachineFailure),
}

/// Shows the machine's start until it is done.
pub(super) async fn follow_start(context: &CommandContext) -> Result<Followed> {
    let mut progress = Progress::new();
    let mut events = match context.client().events().await {
        Ok(events) => events,
        // It was quicker to fail than this to listen.
        Err(ClientError::NoDaemon | ClientError::Broken(_)) => return ended_early(context),
        Err(error) => return Err(error.into()),
    };
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut failure = None;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = interrupt.recv() => {
                progress.end();
                return Err(Failure::because(
                    Code::Command(130),
                    format!("the machine goes on starting; `{}` ends it", context.command("stop")),
                ));
            }
        };
        match event {
            Ok(Some(Event::Phase { phase, at_ms })) => progress.phase(phase.to_string(), at_ms),
            Ok(Some(Event::Warning { message })) => progress.line(&format!("warning: {message}")),
            Ok(Some(Event::Note { message })) => {
                if !context.output.json {
                    progress.line(&message);
                }
            }
            // Of a machine that runs; see `docker_wait`.
            Ok(Some(
                Event::Docker { .. }
                | Event::Settings { .. }
                | Event::Containers { .. }
                | Event::Ports { .. }
                | Event::Usage(_),
            )) => {}
            Ok(Some(Event::Failed(why))) => {
                progress.end();
                failure = Some(why);
            }
            Ok(Some(Event::State { state, at_ms })) => match state {
                State::Running | State::Paused => {
                    progress.done(at_ms);
                    progress.end();
                    output::say(format_args!("ready after {}", seconds(at_ms)));
                    return Ok(Followed::Running);
                }
                State::Stopped => return Ok(Followed::Stopped),
                State::Failed { reason } => {
                    return Ok(Followed::Failed(
                        failure.unwrap_or_else(|| MachineFailure::now(reason, None)),
                    ));
                }
                _ => {}
            },
            Ok(None) | Err(ClientError::Broken(_)) => {
                progress.end();
                return ended_early(context);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The daemon has ended and did not say why, or nobody listened yet: it left a record, unless it was killed.
fn ended_early(context: &CommandContext) -> Result<Followed> {
    launch::wait_gone(&context.machine)?;
    match MachineFailure::load(&context.machine.last_failure()) {
        Some(failure) => Ok(Followed::Failed(failure)),
        None => Err(Failure::because(
            Code::Failed,
            format!(
                "the machine's daemon ended on the way; its log is {}",
                context.machine.daemon_log().display()
            ),
        )),
    }
}

/// Shows what a machine that is being stopped does until its daemon has ended. `events` were asked for before the stop.
pub(super) async fn follow_stop(mut events: Events) -> Result<State> {
    let mut progress = Progress::new();
    let mut last = State::Stopping;
    let mut stopping = false;
    loop {
        match events.next().await {
            Ok(Some(Event::State { state, at_ms })) => {
                match state {
                    State::Stopping => {
                        stopping = true;
                        progress.phase("stopping the machine", at_ms);
                    }
                    State::Stopped => progress.done(at_ms),
                    _ => {}
                }
                last = state;
            }
            // What came before the stop is no news.
            Ok(Some(Event::Warning { message } | Event::Note { message })) if stopping => {
                progress.line(&message);
            }
            Ok(Some(_)) => {}
            // A daemon that is killed on the way has ended too.
            Ok(None) | Err(ClientError::Broken(_)) => return Ok(last),
            Err(error) => return Err(error.into()),
        }
    }
}
