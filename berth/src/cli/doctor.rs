//! `berth doctor`.

use anyhow::Result;

use super::context::{CommandContext, block_on};
use crate::doctor::{self, Outcome, Subject};
use crate::exit::{Code, Failure};

/// Runs all checks. Its exit code is 4 when one of them failed.
pub(super) fn run(context: &CommandContext) -> Result<()> {
    // A damaged record is what `start` complains of; here the rest is worth knowing.
    let chosen = context
        .record()
        .ok()
        .flatten()
        .map(|record| record.chosen)
        .unwrap_or_default();
    let subject = Subject {
        name: &context.name,
        paths: &context.paths,
        machine: &context.machine,
        chosen,
    };
    let report = block_on(async { Ok(doctor::run(&subject).await) })?;
    context.output.result(&report, &report)?;
    match report.worst() {
        Outcome::Failed => Err(Failure::silent(Code::Unavailable)),
        Outcome::Skipped | Outcome::Ok | Outcome::Warning => Ok(()),
    }
}
