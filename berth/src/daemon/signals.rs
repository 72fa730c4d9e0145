//! What signals mean to a daemon: TERM and INT stop its machine in an orderly way, a second one cuts its power.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::machine::handle::{Command, Handle};

/// Turns signals into commands until the runtime ends. Containers get `grace` to end.
pub(super) fn listen(machine: Arc<Handle>, grace: Duration) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // The terminal it was started from is none of its business.
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        let mut asked = false;
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = hangup.recv() => continue,
            };
            tracing::info!(signal = name, again = asked, "asked to stop");
            let grace = (!asked).then_some(grace);
            asked = true;
            if !machine.command(Command::Stop { grace }).await {
                return;
            }
        }
    });
    Ok(())
}
