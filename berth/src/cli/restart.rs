//! `berth restart`.

use anyhow::Result;
use clap::Args;

use super::StartArgs;
use super::context::CommandContext;
use super::{start, stop};

#[derive(Debug, Clone, Args)]
pub(super) struct RestartArgs {
    #[command(flatten)]
    stop: stop::StopArgs,

    #[command(flatten)]
    start: StartArgs,
}

/// Stops the machine if it runs, and starts it.
pub(super) fn run(context: &CommandContext, args: &RestartArgs) -> Result<()> {
    // A configuration that would not let it start again is no reason to stop it.
    context.config()?;
    stop::stop(context, &args.stop)?;
    start::run(context, &args.start)
}
