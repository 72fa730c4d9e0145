//! The status icon, in a desktop session with a real panel: with daemons that say what they are told to, and with a machine.

mod alone;
mod machine;

use std::ffi::OsStr;

use anyhow::Result;

use crate::desktop::{Desktop, Icon, Style};
use crate::machine::Machine;
use crate::program::{Program, Running};
use crate::suite::Case;

/// All cases, those without a machine first.
pub(super) const CASES: [&[Case]; 2] = [alone::CASES, machine::CASES];

/// A session of the machine's user with a panel, and what runs programs in it.
fn with_desktop<T>(machine: &Machine, test: impl FnOnce(&mut Desktop<'_>) -> Result<T>) -> Result<T> {
    let program = |name: &OsStr| -> Program { machine.program(name) };
    let mut desktop = Desktop::start(&program, &machine.dir().join("desktop"))?;
    desktop.start_panel(Style::default())?;
    test(&mut desktop)
}

/// `berth tray`, still to be started.
fn tray(machine: &Machine, desktop: &Desktop<'_>) -> Program {
    desktop.in_session(machine.berth(["tray"]))
}

/// The icon of a machine, once the panel has it.
fn show(machine: &Machine, desktop: &Desktop<'_>) -> Result<(Running, Icon)> {
    let running = tray(machine, desktop).spawn()?;
    let icon = desktop.icon(running.pid())?;
    Ok((running, icon))
}
