//! `berth delete`.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;

use super::context::CommandContext;
use super::list;
use super::stop::{self, StopArgs};
use crate::daemon::launch;
use crate::daemon::lock::Lock;
use crate::docker::client;
use crate::docker::context::{self as docker_context, plugins};
use crate::exit::{Code, Failure, chain};
use crate::machine::bring_up::context_spec;
use crate::machine::disk;
use crate::output;

#[derive(Debug, Clone, Args)]
pub(super) struct DeleteArgs {
    /// Do not ask
    #[arg(long, short = 'f')]
    force: bool,
}

/// Deletes the machine, after asking.
pub(super) fn run(context: &CommandContext, args: &DeleteArgs) -> Result<()> {
    if !context.machine.data_dir.exists() {
        return Err(Failure::because(
            Code::Failed,
            format!(
                "there is no machine {}; `berth list` shows those there are",
                context.name
            ),
        ));
    }
    if !args.force && !confirm(context)? {
        return Err(Failure::because(Code::Failed, "nothing was deleted"));
    }
    stop::stop(context, &StopArgs::default())?;
    context.machine.make_runtime_dir()?;
    let start = Lock::wait(&context.machine.start_lock())?;
    anyhow::ensure!(
        !launch::is_there(&context.machine)?,
        "the machine {} was started again meanwhile; nothing was deleted",
        context.name
    );
    // A wrong configuration does not keep a machine from being deleted, only its context from being found.
    match context.config() {
        Ok(config) => {
            let spec = context_spec(&context.name, &context.machine, &config);
            let removed = docker_context::give_back(&spec).and_then(|()| docker_context::remove(&spec));
            if let Err(error) = removed {
                output::say(format_args!("berth: warning: {}", chain(&error.into())));
            }
        }
        Err(error) => output::say(format_args!("berth: warning: {}", chain(&error))),
    }
    for dir in [
        &context.machine.data_dir,
        &context.machine.state_dir,
        &context.machine.runtime_dir,
    ] {
        remove(dir)?;
    }
    drop(start);
    if list::names(context)?.is_empty() {
        withdraw_plugins();
    }
    let value = serde_json::json!({ "machine": context.name, "deleted": true });
    context
        .output
        .result(&value, &format!("The machine {} is deleted.", context.name))
}

/// With the last machine goes what berth has put into docker's own configuration for all of them.
fn withdraw_plugins() {
    let Some(own) = client::own_plugins() else {
        return;
    };
    if let Err(error) = plugins::withdraw(&own) {
        output::say(format_args!("berth: warning: {}", chain(&error.into())));
    }
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn confirm(context: &CommandContext) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Failure::because(
            Code::Usage,
            "deleting a machine has to be confirmed; use --force where nobody can be asked",
        ));
    }
    let takes = disk::usage(&context.machine.data_disk()).map_or_else(
        |_| String::new(),
        |(_, allocated)| format!(" ({allocated} on this host's disk)"),
    );
    let mut err = io::stderr();
    write!(
        err,
        "Delete the machine {} with all its images, containers and volumes{takes}? [y/N] ",
        context.name
    )?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
