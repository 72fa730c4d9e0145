//! `berth list`.

use std::fmt;
use std::fs;
use std::io;

use anyhow::{Context, Result};
use serde::Serialize;

use super::context::CommandContext;
use super::status::status;
use crate::machine::state::State;
use crate::name::MachineName;
use crate::size::Size;

/// One machine.
#[derive(Debug, Serialize)]
struct Line {
    machine: MachineName,
    #[serde(flatten)]
    state: State,
    engine: Option<String>,
    cpus: Option<u8>,
    memory: Option<Size>,
    /// What its disk takes of the host's.
    disk: Option<Size>,
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Lines(Vec<Line>);

/// Lists the machines there are.
pub(super) fn run(context: &CommandContext) -> Result<()> {
    let lines = names(context)?
        .into_iter()
        .map(|name| line(&context.other(name)))
        .collect::<Result<Vec<_>>>()?;
    let lines = Lines(lines);
    if lines.0.is_empty() {
        context
            .output
            .remark("there is no machine yet; `berth start` makes one");
    }
    context.output.result(&lines, &lines)
}

/// The names of all machines, in order.
pub(super) fn names(context: &CommandContext) -> Result<Vec<MachineName>> {
    let dir = context.paths.machines_dir();
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot read {}", dir.display()))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", dir.display()))?;
        let name = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(name) = name.filter(|_| entry.path().join("machine.json").is_file()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn line(context: &CommandContext) -> Result<Line> {
    let status = status(context).with_context(|| format!("machine {}", context.name))?;
    let given = status.engine.is_some();
    Ok(Line {
        machine: context.name.clone(),
        engine: status
            .engine
            .map(|engine| format!("{}/{}", engine.description.engine, engine.description.accelerator)),
        cpus: given.then_some(status.settings.cpus),
        memory: given.then_some(status.settings.memory),
        disk: status.disk.map(|disk| disk.allocated),
        state: status.state,
    })
}

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .0
            .iter()
            .map(|line| line.machine.as_str().len())
            .max()
            .unwrap_or(0)
            .max("MACHINE".len());
        writeln!(
            f,
            "{:<width$}  {:<8}  {:<8}  {:>4}  {:>9}  {:>9}",
            "MACHINE", "STATE", "ENGINE", "CPUS", "MEMORY", "DISK"
        )?;
        for line in &self.0 {
            let state = match &line.state {
                State::Starting { .. } => "starting".to_owned(),
                State::Failed { .. } => "failed".to_owned(),
                state => state.to_string(),
            };
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
            writeln!(
                f,
                "{:<width$}  {state:<8}  {:<8}  {:>4}  {:>9}  {:>9}",
                line.machine,
                or_dash(line.engine.clone()),
                or_dash(line.cpus.map(|cpus| cpus.to_string())),
                or_dash(line.memory.map(|memory| memory.to_string())),
                or_dash(line.disk.map(|disk| disk.to_string())),
            )?;
        }
        Ok(())
    }
}
