//! `xtask bench-files`: builds what `bench files` needs, finds the rest, and runs it.
//!
//! QEMU and virtiofsd are those of the lab's Debian root, so that figures of different hosts are of the same programs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cache::Cache;
use crate::image::guest_init::build_static;
use crate::lab::clock::tsc_khz;
use crate::{Output, command, kernel, lab, paths, progress};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Options of the benchmark; `--help` after `--` shows them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    options: Vec<String>,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    let kernel = kernel::ensure(&Cache::open()?)?;
    let tools = lab::tools()?;
    let guest_program = build_static("berth-tests", "bench-guest")?;
    let programs = build()?;
    let mut bench = Command::new(programs.join("bench"));
    bench.arg("files").arg("--tools").arg(tools);
    bench.arg("--guest-dir").arg(kernel);
    bench.arg("--guest-program").arg(guest_program);
    bench.arg("--fileshare").arg(programs.join("berth-fileshare"));
    // What an emulated guest cannot measure itself.
    if let Some(khz) = tsc_khz() {
        bench.arg(format!("--append=tsc_early_khz={khz} tsc=reliable"));
    }
    if output.json {
        bench.arg("--json");
    }
    command::run(bench.args(&args.options))
}

/// Builds the benchmark and berth's server, and returns where they are.
fn build() -> Result<PathBuf> {
    progress::note("building bench and berth-fileshare");
    let mut cargo = Command::new(paths::cargo());
    cargo
        .args(["build", "--quiet", "--locked", "--release"])
        .args(["--package", "berth-tests", "--bin", "bench"])
        .args(["--package", "fileshare-virtio", "--bin", "berth-fileshare"])
        .current_dir(paths::workspace_root()?);
    command::run(&mut cargo)?;
    Ok(paths::cargo_target_dir()?.join("release"))
}
