//! Runs the end-to-end suite: `e2e [--engine qemu|kvm] [--full] [FILTER]`, with the options of cargo's own test programs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use berth_tests::options::{Options, Setup};
use berth_tests::{cases, suite, watcher};
use clap::Parser;

#[derive(Parser)]
#[command(
    name = "e2e",
    about = "End-to-end tests of berth through the real docker client"
)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    arguments: libtest_mimic::Arguments,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == watcher::ARGUMENT) {
        return watch(&PathBuf::from(arguments.next().unwrap_or_default()));
    }
    let cli = Cli::parse();
    match Setup::find(cli.options) {
        Ok(setup) => suite::run(setup, cli.arguments, cases::all()).exit_code(),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Watches files in a container, for one of the cases.
fn watch(root: &Path) -> ExitCode {
    match watcher::serve(root, std::io::stdin().lock(), std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
