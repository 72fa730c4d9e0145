//! The status icon of berth's machines, started by `berth tray`.
//!
//! It knows of a machine what its daemon's HTTP interface tells (`docs/api.md`), and runs `berth` for what has no daemon yet.
//! `tray/README.md` says what it shows and what it needs.

mod actions;
mod app;
mod berth;
mod daemon;
mod desktop;
mod directories;
mod icon;
mod item;
mod machines;
mod menu;
mod model;
mod paths;
mod session;
mod words;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::berth::Berth;
use crate::desktop::autostart;
use crate::paths::Paths;
use crate::session::SessionError;

/// The machine that is shown when none is named.
const DEFAULT_MACHINE: &str = "default";
/// The exit code for a host that lacks what the icon needs, as that of `berth`.
const UNAVAILABLE: u8 = 4;

/// The status icon: how the machine is, and what one does with it every day.
///
/// Runs until its menu's Quit, or the end of the desktop session.
#[derive(Debug, Parser)]
#[command(
    name = "berth-tray",
    version,
    max_term_width = 110,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 4 something it needs is missing: a D-Bus session, or berth"
)]
struct Cli {
    /// The machine that is shown at first
    #[arg(long, short = 'm', value_name = "NAME", default_value = DEFAULT_MACHINE, value_parser = machine_name)]
    machine: String,

    /// Have it started at login from now on, and do nothing else
    #[arg(long, conflicts_with = "uninstall")]
    install: bool,

    /// Have it started at login no longer, and do nothing else
    #[arg(long)]
    uninstall: bool,
}

fn machine_name(text: &str) -> Result<String, String> {
    if machines::is_name(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a machine name"))
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-tray: {error:#}");
            let lacks = matches!(error.downcast_ref(), Some(SessionError::NoBus(_))) || error.is::<NoBerth>();
            ExitCode::from(if lacks { UNAVAILABLE } else { 1 })
        }
    }
}

/// There is no berth to ask.
#[derive(Debug, thiserror::Error)]
#[error("there is no berth beside this program and none on the path; install it with `xtask install`")]
struct NoBerth;

fn run(cli: Cli) -> Result<()> {
    let paths = Paths::from_env()?;
    if cli.uninstall {
        match autostart::uninstall(&paths.autostart)? {
            Some(path) => eprintln!(
                "The icon is not started at login any more: {} is removed.",
                path.display()
            ),
            None => eprintln!("The icon was not started at login."),
        }
        return Ok(());
    }
    let berth = Berth::find().ok_or(NoBerth)?;
    if cli.install {
        let path = autostart::install(&paths.autostart, berth.path(), &cli.machine)?;
        eprintln!("The icon is started at login: {} is written.", path.display());
        return Ok(());
    }
    let filter =
        EnvFilter::try_from_env("BERTH_LOG").or_else(|_| EnvFilter::try_new("warn,berth_tray=info"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let ended = runtime.block_on(app::run(paths, berth, cli.machine));
    // What still runs may wait for somebody that does not answer.
    runtime.shutdown_background();
    match ended {
        Err(error) if matches!(error.downcast_ref(), Some(SessionError::Already)) => {
            eprintln!("berth-tray: {error}");
            Ok(())
        }
        ended => ended,
    }
}
