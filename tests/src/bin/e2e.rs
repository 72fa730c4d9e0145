//! Runs the end-to-end suite: `e2e [--engine qemu|kvm] [--full] [FILTER]`, with the options of cargo's own test programs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use berth_tests::options::{Options, Setup};
use berth_tests::{cases, name_server, suite, watcher};
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
    let first = arguments.next().unwrap_or_default();
    if first == watcher::ARGUMENT {
        return watch(&PathBuf::from(arguments.next().unwrap_or_default()));
    }
    if first == name_server::ARGUMENT {
        let address = arguments.next().unwrap_or_default();
        let file = PathBuf::from(arguments.next().unwrap_or_default());
        return serve_names(&address.to_string_lossy(), &file);
    }
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let cases = suite::only(cases::all(), &cli.options.only)?;
    Ok(suite::run(Setup::find(cli.options)?, cli.arguments, cases).exit_code())
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

/// Is the name server of one of the cases.
fn serve_names(address: &str, file: &Path) -> ExitCode {
    let served = address
        .parse()
        .map_err(anyhow::Error::from)
        .and_then(|address| name_server::serve(address, file));
    if let Err(error) = served {
        eprintln!("error: {error:#}");
    }
    ExitCode::from(2)
}
