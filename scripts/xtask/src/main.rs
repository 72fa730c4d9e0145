//! The project's own build tool: what cargo cannot build (kernel, guest image, docker client, lab), and the checks that
//! hold the tree together. `scripts/` holds the thin entry points that call it.
//!
//! One module per subcommand. What a command makes is printed on stdout; everything else goes to stderr.

mod bench_files;
mod cache;
mod check;
mod client;
mod command;
mod debian;
mod demo;
mod digest;
mod host;
mod image;
mod install;
mod kernel;
mod lab;
mod paths;
mod progress;
mod test;
mod test_image;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about, version, disable_help_subcommand = true)]
struct Cli {
    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the guest kernel
    Kernel(kernel::Args),
    /// Build the guest image
    Image(image::Args),
    /// Fetch the docker client and its plugins
    Client(client::Args),
    /// Make the container image with the programs of the end-to-end tests
    TestImage(test_image::Args),
    /// Put everything a machine needs into the data directory
    Install(install::Args),
    /// Check the rules of the tree
    Check(check::Args),
    /// Run a command in a virtual machine where KVM is real
    Lab(lab::LabArgs),
    /// Compare berth's file sharing with virtiofsd and ext4 in one emulated guest
    BenchFiles(bench_files::Args),
    /// Build, install and start berth, and run a container in it
    Demo(demo::Args),
    /// Run all tests
    Test(test::Args),
}

/// How results are printed.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// Prints JSON with `--json`, and nothing without.
    fn json(self, json: impl FnOnce() -> serde_json::Value) {
        if self.json {
            println!("{:#}", json());
        }
    }

    /// Prints what a command made: its path, or the JSON with `--json`.
    fn result(self, path: &Path, json: impl FnOnce() -> serde_json::Value) {
        if self.json {
            println!("{:#}", json());
        } else {
            println!("{}", path.display());
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output { json: cli.json };
    let result = match &cli.task {
        Task::Kernel(args) => kernel::run(args, output).map(|()| ExitCode::SUCCESS),
        Task::Image(args) => image::run(args, output).map(|()| ExitCode::SUCCESS),
        Task::Client(args) => client::run(args, output).map(|()| ExitCode::SUCCESS),
        Task::TestImage(args) => test_image::run(args, output).map(|()| ExitCode::SUCCESS),
        Task::Install(args) => install::run(args, output).map(|()| ExitCode::SUCCESS),
        Task::Check(args) => check::run(args, output).map(|()| ExitCode::SUCCESS),
        Task::Lab(args) => lab::run(args, output),
        Task::BenchFiles(args) => bench_files::run(args, output).map(|()| ExitCode::SUCCESS),
        Task::Demo(args) => demo::run(args).map(|()| ExitCode::SUCCESS),
        Task::Test(args) => test::run(args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
