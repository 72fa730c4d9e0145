//! `berth daemon`: what `berth start` starts.

use anyhow::{Context, Result};
use clap::Args;

use crate::exit::{Code, Failure};
use crate::machine::settings::Chosen;
use crate::name::MachineName;

#[derive(Debug, Clone, Args)]
pub(super) struct DaemonArgs {
    /// What was chosen for the machine, as JSON
    #[arg(long, default_value = "{}")]
    chosen: String,
}

/// Runs the daemon of `name`.
pub(super) fn run(name: &MachineName, args: &DaemonArgs) -> Result<()> {
    let chosen: Chosen = serde_json::from_str(&args.chosen)
        .context("--chosen does not hold a machine's settings")
        .map_err(|error| Failure::wrap(Code::Usage, error))?;
    crate::daemon::run(name, &chosen)
}
