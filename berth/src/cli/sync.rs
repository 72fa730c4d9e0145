//! `berth sync`.

use anyhow::Result;

use super::context::{CommandContext, block_on};

/// Returns when the machine has been told of everything that the host has changed in its shares so far. Says nothing then,
/// like sync(1): it stands in scripts.
pub(super) fn run(context: &CommandContext) -> Result<()> {
    let synced = block_on(async {
        let synced = context.client().sync().await;
        synced.map_err(|error| context.client_error(error))
    })?;
    context.output.result(&synced, &"")
}
