//! `berth stop`.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::context::{CommandContext, block_on};
use super::follow::follow_stop;
use crate::api::client::ClientError;
use crate::api::types::StopRequest;
use crate::daemon::launch;
use crate::daemon::lock::Lock;

/// How long a daemon that was told to cut the power may take before it is killed itself.
const FORCED: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Default, Args)]
pub(super) struct StopArgs {
    /// Cut the power at once; what was not synced is lost, as on any machine
    #[arg(long, short = 'f')]
    force: bool,

    /// Seconds containers get to end before they are killed
    #[arg(long, short = 't', value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=86400))]
    time: Option<u32>,
}

/// Stops the machine and returns when nothing of it is left.
pub(super) fn run(context: &CommandContext, args: &StopArgs) -> Result<()> {
    let stopped = stop(context, args)?;
    let text = if stopped {
        format!("The machine {} is stopped.", context.name)
    } else {
        format!("The machine {} was not running.", context.name)
    };
    let value = serde_json::json!({ "machine": context.name, "state": "stopped", "was_running": stopped });
    context.output.result(&value, &text)
}

/// Stops the machine; whether there was anything to stop.
pub(super) fn stop(context: &CommandContext, args: &StopArgs) -> Result<bool> {
    let request = StopRequest {
        grace_seconds: args.time,
        force: args.force,
    };
    let asked = block_on(async {
        let ask = async {
            let client = context.client();
            let events = client.events().await?;
            client.stop(&request).await?;
            Ok::<_, ClientError>(follow_stop(events).await)
        };
        if args.force {
            match tokio::time::timeout(FORCED, ask).await {
                Ok(result) => Ok(result),
                Err(_) => Ok(Err(ClientError::Silent)),
            }
        } else {
            Ok(ask.await)
        }
    })?;
    match asked {
        Ok(followed) => {
            followed?;
            launch::wait_gone(&context.machine)?;
            Ok(true)
        }
        Err(ClientError::NoDaemon) => no_daemon(context, args.force),
        Err(_) if args.force => {
            context.output.remark("the daemon does not listen; it is killed");
            launch::kill(&context.machine)?;
            Ok(true)
        }
        Err(error) => Err(error.into()),
    }
}

/// Nobody listens: there is no daemon, or one without its socket. What a killed one left is cleared up.
fn no_daemon(context: &CommandContext, force: bool) -> Result<bool> {
    if !context.machine.runtime_dir.is_dir() {
        return Ok(false);
    }
    let _start = Lock::wait(&context.machine.start_lock())?;
    if !launch::is_there(&context.machine)? {
        launch::clear(&context.machine)?;
        return Ok(false);
    }
    anyhow::ensure!(
        force,
        "the machine's daemon does not listen on {}; `{}` ends it",
        context.machine.api_socket().display(),
        context.command("stop --force")
    );
    launch::kill(&context.machine)?;
    Ok(true)
}
