//! `berth logs`.

use std::io::Write;

use anyhow::{Context, Result};
use clap::Args;

use super::context::{CommandContext, block_on};
use crate::api::types::{LogSource, LogsQuery};
use crate::logs::{Follow, FollowError};
use crate::output::ignore_closed_pipe;

#[derive(Debug, Clone, Args)]
pub(super) struct LogsArgs {
    /// Which log
    #[arg(long, short = 's', value_enum, default_value = "daemon")]
    source: LogSource,

    /// Go on as the log grows
    #[arg(long, short = 'f')]
    follow: bool,

    /// Begin this many lines before the end
    #[arg(long, short = 'n', value_name = "LINES")]
    tail: Option<u64>,
}

/// Prints a log. Logs on the host can be read whether the machine runs or not.
pub(super) fn run(context: &CommandContext, args: &LogsArgs) -> Result<()> {
    let query = LogsQuery {
        source: args.source,
        tail: args.tail,
        follow: args.follow,
    };
    let path = match args.source {
        LogSource::Daemon => context.machine.daemon_log(),
        LogSource::Console => context.machine.console_log(),
        LogSource::Passt => context.machine.passt_log(),
        LogSource::Dockerd | LogSource::Kernel => return block_on(from_guest(context, &query)),
    };
    block_on(async {
        let mut follow = Follow::open(&path, query.tail, query.follow).map_err(|error| match error {
            FollowError::Missing(_) => anyhow::anyhow!(
                "the machine {} has no such log yet: {}",
                context.name,
                path.display()
            ),
            error @ FollowError::Read { .. } => error.into(),
        })?;
        while let Some(bytes) = follow.next().await? {
            if !write(&bytes)? {
                break;
            }
        }
        Ok(())
    })
}

async fn from_guest(context: &CommandContext, query: &LogsQuery) -> Result<()> {
    let mut stream = context
        .client()
        .logs(query)
        .await
        .map_err(|error| context.client_error(error))?;
    while let Some(bytes) = stream.next().await? {
        if !write(&bytes)? {
            break;
        }
    }
    Ok(())
}

/// Writes to standard output; false when nobody reads any more.
fn write(bytes: &[u8]) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    let open = written.is_ok();
    ignore_closed_pipe(written).context("cannot write to standard output")?;
    Ok(open)
}
