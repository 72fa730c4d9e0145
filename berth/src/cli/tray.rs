//! `berth tray`: the status icon, a program of its own that stands beside this one.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::exit::{Code, Failure};
use crate::name::MachineName;

/// The program.
const PROGRAM: &str = "berth-tray";

#[derive(Debug, Clone, Default, Args)]
pub(super) struct TrayArgs {
    /// Have it started at login from now on, and do nothing else
    #[arg(long, conflicts_with = "uninstall")]
    install: bool,

    /// Have it started at login no longer, and do nothing else
    #[arg(long)]
    uninstall: bool,
}

/// Becomes the status icon, which shows `machine` at first.
pub(super) fn run(machine: &MachineName, args: &TrayArgs) -> Result<()> {
    let own = std::env::current_exe().context("cannot tell where berth's own program is")?;
    let beside = own.with_file_name(PROGRAM);
    let program = if beside.is_file() {
        beside
    } else {
        PathBuf::from(PROGRAM)
    };
    let mut command = Command::new(&program);
    command.args(["--machine", machine.as_str()]);
    command.args(args.install.then_some("--install"));
    command.args(args.uninstall.then_some("--uninstall"));
    let error = command.exec();
    Err(if error.kind() == std::io::ErrorKind::NotFound {
        Failure::because(
            Code::Unavailable,
            format!(
                "there is no {PROGRAM} beside {} and none on the path; install it with `xtask install`",
                own.display()
            ),
        )
    } else {
        anyhow::Error::from(error).context(format!("cannot start {}", program.display()))
    })
}
