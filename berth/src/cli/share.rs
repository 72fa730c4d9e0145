//! `berth share`: which directories of the host the machine has.
//!
//! On a running machine its daemon does it, at once; on a stopped one it is written down for the next start. Either way it
//! is kept in the machine's record, as what was chosen with `berth start` is.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::context::{CommandContext, block_on};
use super::status::describe_share;
use crate::api::client::ClientError;
use crate::api::types::{ShareQuery, ShareRequest, SharesReport};
use crate::daemon::launch;
use crate::daemon::lock::Lock;
use crate::exit::{Code, Failure};
use crate::host::Host;
use crate::machine::settings::{Settings, base_shares};
use crate::machine::shares::{ChangeError, ShareReport, command, keep};
use crate::shares::{Share, rules};

#[derive(Debug, Clone, Args)]
pub(super) struct ShareArgs {
    #[command(subcommand)]
    command: ShareCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum ShareCommand {
    /// Tell which directories the machine has, and how they are
    #[command(visible_alias = "ls")]
    List,
    /// Share a directory with the machine; a running one has it at once
    Add(AddArgs),
    /// Take a share away from the machine
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
}

#[derive(Debug, Clone, Args)]
struct AddArgs {
    /// The directory
    path: PathBuf,

    /// Where the machine is to have it; the same path without
    #[arg(long, value_name = "PATH")]
    target: Option<PathBuf>,

    /// Containers may only read it
    #[arg(long)]
    read_only: bool,

    /// Something in it that the machine does not see, relative to the directory; may be given again
    #[arg(long, value_name = "PATH")]
    exclude: Vec<PathBuf>,
}

#[derive(Debug, Clone, Args)]
struct RemoveArgs {
    /// The directory, as `berth share list` has it
    path: PathBuf,

    /// Also when running containers use it; they get errors
    #[arg(long, short = 'f')]
    force: bool,
}

pub(super) fn run(context: &CommandContext, args: &ShareArgs) -> Result<()> {
    match &args.command {
        ShareCommand::List => list(context),
        ShareCommand::Add(args) => add(context, args),
        ShareCommand::Remove(args) => remove(context, args),
    }
}

impl fmt::Display for SharesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shares
            .iter()
            .try_for_each(|report| writeln!(f, "{}", describe_share(report)))
    }
}

fn list(context: &CommandContext) -> Result<()> {
    let report = match live(context, async |client| client.shares().await)? {
        Some(report) => report,
        None => SharesReport {
            shares: settings(context)?
                .shares
                .into_iter()
                .map(ShareReport::without_machine)
                .collect(),
        },
    };
    if report.shares.is_empty() {
        context.output.remark(format_args!(
            "the machine {} has no shares; `{} add DIRECTORY` adds one",
            context.name,
            command(&context.name)
        ));
    }
    context.output.result(&report, &report)
}

/// What `berth share add` prints.
#[derive(Debug, Serialize)]
struct Added {
    /// Whether a running machine has it; if not, its next start will.
    live: bool,
    #[serde(flatten)]
    share: ShareReport,
}

fn add(context: &CommandContext, args: &AddArgs) -> Result<()> {
    let path = absolute(&args.path)?;
    let share = Share::new(&path, args.target.as_deref(), args.read_only, &args.exclude)
        .map_err(|error| Failure::wrap(Code::Usage, error))?;
    // A typing error is more likely than a directory that is made later.
    if !share.path.is_dir() {
        let message = format!("{} is not there; make it first", share.path.display());
        return Err(Failure::because(Code::Usage, message));
    }
    let request = ShareRequest {
        path: share.path.clone(),
        target: Some(share.target.clone()),
        read_only: share.read_only,
        exclude: share.exclude.clone(),
    };
    let added = match live(context, async |client| client.add_share(&request).await)? {
        Some(share) => Added { live: true, share },
        None => {
            in_record(context, |context| add_to_record(context, &share))?;
            Added {
                live: false,
                share: ShareReport::without_machine(share),
            }
        }
    };
    let text = format!("Shared{}: {}.", when(added.live), describe_share(&added.share));
    context.output.result(&added, &text)
}

fn add_to_record(context: &CommandContext, share: &Share) -> Result<()> {
    let others = settings(context)?.shares;
    if let Some(same) = others.iter().find(|other| other.path == share.path) {
        if same == share {
            return Ok(());
        }
        return Err(usage(ChangeError::SharedOtherwise {
            path: share.path.clone(),
            command: command(&context.name),
        }));
    }
    rules::no_overlap(share, &others).map_err(|error| usage(error.into()))?;
    let base = base_shares(&context.machine_config()?);
    Ok(keep(&context.machine.record(), |changes| {
        changes.add(share.clone(), &base);
    })?)
}

fn remove(context: &CommandContext, args: &RemoveArgs) -> Result<()> {
    let path = rules::path(&absolute(&args.path)?).map_err(|error| usage(error.into()))?;
    let query = ShareQuery {
        path: path.clone(),
        force: args.force,
    };
    let live = live(context, async |client| client.remove_share(&query).await)?.is_some();
    if !live {
        in_record(context, |context| remove_from_record(context, &path))?;
    }
    let value = serde_json::json!({ "path": path, "removed": true, "live": live });
    let text = format!("No longer shared{}: {}.", when(live), path.display());
    context.output.result(&value, &text)
}

fn remove_from_record(context: &CommandContext, path: &Path) -> Result<()> {
    if !settings(context)?.shares.iter().any(|share| share.path == path) {
        return Err(ChangeError::NoSuchShare {
            path: path.to_owned(),
            command: command(&context.name),
        }
        .into());
    }
    let base = base_shares(&context.machine_config()?);
    Ok(keep(&context.machine.record(), |changes| {
        changes.remove(path, &base);
    })?)
}

fn when(live: bool) -> &'static str {
    if live { "" } else { " from the next start on" }
}

fn usage(error: ChangeError) -> anyhow::Error {
    Failure::wrap(Code::Usage, error)
}

/// Asks the daemon; none when there is none.
fn live<T>(
    context: &CommandContext,
    ask: impl AsyncFnOnce(crate::api::client::Client) -> Result<T, ClientError>,
) -> Result<Option<T>> {
    block_on(async {
        match ask(context.client()).await {
            Ok(answer) => Ok(Some(answer)),
            Err(ClientError::NoDaemon) => Ok(None),
            Err(error @ ClientError::Refused { status, .. }) if status == hyper::StatusCode::BAD_REQUEST => {
                Err(Failure::wrap(Code::Usage, error))
            }
            Err(error) => Err(context.client_error(error)),
        }
    })
}

/// Changes the record of a machine that does not run, and is kept from being started meanwhile.
pub(super) fn in_record<T>(
    context: &CommandContext,
    change: impl FnOnce(&CommandContext) -> Result<T>,
) -> Result<T> {
    if context.record()?.is_none() {
        return Err(Failure::because(
            Code::NotRunning,
            format!(
                "there is no machine {} yet; start it with `{}`, or say in {} what it is to be like",
                context.name,
                context.command("start"),
                context.paths.config_file().display()
            ),
        ));
    }
    context.machine.make_runtime_dir()?;
    let _start = Lock::wait(&context.machine.start_lock())?;
    anyhow::ensure!(
        !launch::is_there(&context.machine)?,
        "the machine {} was started or stopped meanwhile; try again",
        context.name
    );
    change(context)
}

/// What the machine will be started with.
fn settings(context: &CommandContext) -> Result<Settings> {
    let chosen = context.record()?.map(|record| record.chosen).unwrap_or_default();
    Settings::resolve(&chosen, &context.config()?, &Host::detect())
        .map_err(|error| Failure::wrap(Code::Usage, error))
}

/// The path a user means: with `..`, which names cannot say of links, the one the file system means.
fn absolute(path: &Path) -> Result<PathBuf> {
    let cannot = || format!("cannot tell where {} is", path.display());
    if path.components().any(|part| part == Component::ParentDir) {
        return path.canonicalize().with_context(cannot);
    }
    std::path::absolute(path).with_context(cannot)
}
