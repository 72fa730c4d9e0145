//! `xtask test`: all tests, from formatting to end to end, in the order in which they are quickest to fail.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::progress::{Timings, note};
use crate::{command, host, install, paths, test_image};

/// A run in the lab that takes longer hangs.
const IN_THE_LAB: Duration = Duration::from_secs(85 * 60);

/// Cases that the lab leaves out unless everything is asked for: what they are about is on the host, in guest-init and in Docker,
/// and no engine has a part in it but devices that everything else uses too.
const NOT_IN_THE_LAB: [&str; 7] = [
    "api::",
    "names::",
    "ports::compose_",
    "ports::iperf3_",
    "ports::ports_survive_",
    "shares::shares_of_a_stopped_machine_",
    "shares::where_fanotify_may_watch_nothing_",
];

/// Cases that the lab never runs: it has no desktop.
const NEVER_IN_THE_LAB: [&str; 1] = ["tray::"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also the long end-to-end tests: hundreds of containers, and in the lab the cases that are the same on every engine
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// Only what needs no machine: formatting, lints, rules, unit tests
    #[arg(long)]
    quick: bool,
    /// Leave the host's packages alone
    #[arg(long)]
    no_packages: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut timings = Timings::default();
    let result = phases(args, &mut timings);
    note(&format!("\n{}", timings.table()));
    result?;
    note("all tests passed");
    Ok(())
}

fn phases(args: &Args, timings: &mut Timings) -> Result<()> {
    let root = paths::workspace_root()?;
    if !args.no_packages {
        timings.step("packages of this host", || {
            host::install_missing(&[&host::BUILD[..], &host::RUN, &host::TEST].concat())
        })?;
    }
    timings.step("formatting", || cargo(&root, &["fmt", "--all", "--check"]))?;
    timings.step("lints", || {
        cargo(
            &root,
            &[
                "clippy",
                "--quiet",
                "--locked",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        )
    })?;
    timings.step("rules of the tree", || xtask(&root, &["check"]))?;
    timings.step("unit tests", || unit_tests(&root))?;
    if args.quick {
        return Ok(());
    }
    let cache = Cache::open()?;
    timings.step("kernel, image, client, berth", || {
        install::install(&cache, &paths::data_dir()?, true)
    })?;
    let programs = timings.step("programs for the tests", || test_image::ensure(&cache))?;
    timings.step("programs of both suites", || build_suites(&root))?;
    timings.step("end to end, engine qemu, and engine kvm in the lab", || {
        end_to_end(&root, &programs, args.full)
    })
}

/// What the lab is given, and what runs here.
fn build_suites(root: &Path) -> Result<()> {
    let lab = "build --quiet --locked --release --package berth-tests --package berth --bins";
    let here = "build --quiet --locked --package berth-tests --bins";
    [lab, here]
        .into_iter()
        .try_for_each(|words| cargo(root, &words.split(' ').collect::<Vec<_>>()))
}

/// Both suites, side by side: the lab's machine has one CPU, so another one of the host's would have nothing to do.
fn end_to_end(root: &Path, programs: &PathBuf, full: bool) -> Result<()> {
    let in_the_lab = || end_to_end_in_the_lab(root, full.then_some(programs));
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
        end_to_end_on_qemu(root, programs, full)?;
        return in_the_lab();
    }
    thread::scope(|scope| {
        let lab = scope.spawn(in_the_lab);
        let here = end_to_end_on_qemu(root, programs, full);
        if let Err(error) = &here {
            // It is said again at the end, which is a while away.
            note(&format!("engine qemu: {error:#}"));
        }
        let lab = lab
            .join()
            .unwrap_or_else(|_| bail!("the run in the lab panicked"));
        match (here, lab) {
            (Err(here), Err(lab)) => bail!("engine qemu: {here:#}\nengine kvm, in the lab: {lab:#}"),
            (here, lab) => here
                .context("engine qemu")
                .and(lab.context("engine kvm, in the lab")),
        }
    })
}

/// All unit tests; with nextest where it is installed, because it runs the crates' tests side by side.
fn unit_tests(root: &Path) -> Result<()> {
    if command::on_path("cargo-nextest") {
        cargo(
            root,
            &[
                "nextest",
                "run",
                "--locked",
                "--workspace",
                "--no-tests=pass",
                "--status-level=fail",
            ],
        )?;
        // nextest does not run the examples in documentation.
        return cargo(root, &["test", "--quiet", "--locked", "--workspace", "--doc"]);
    }
    // guest-init's tests watch files and ports of their own process, and start programs: a child has all descriptors of the others
    // open from fork to exec, so what one test closes another may still hold.
    let one_by_one = "guest-init";
    let test = ["test", "--quiet", "--locked"];
    cargo(
        root,
        &[&test[..], &["--workspace", "--exclude", one_by_one]].concat(),
    )?;
    cargo(
        root,
        &[&test[..], &["--package", one_by_one, "--", "--test-threads=1"]].concat(),
    )
}

/// The end-to-end suite against a machine under QEMU. `programs` is the archive of the image with programs.
fn end_to_end_on_qemu(root: &Path, programs: &Path, full: bool) -> Result<()> {
    // The berth that was just installed, as a user would run it.
    let berth = paths::data_dir()?.join("bin/berth");
    let mut command = Command::new(paths::cargo());
    command.current_dir(root).args([
        "run",
        "--quiet",
        "--locked",
        "--package",
        "berth-tests",
        "--bin",
        "e2e",
        "--",
        "--engine",
        "qemu",
        "--berth",
    ]);
    command.arg(berth).arg("--programs").arg(programs);
    if full {
        command.arg("--full");
    }
    command::run(&mut command)
}

/// The same suite against a machine on our own hypervisor, where KVM is real.
///
/// The machines have one virtual CPU: two take turns on the lab's one, and each waits for the other in loops meanwhile, which
/// takes several times as long. Without `programs` it leaves out the cases that need them: a database in a machine in an
/// emulated machine takes many minutes.
fn end_to_end_in_the_lab(root: &Path, programs: Option<&PathBuf>) -> Result<()> {
    let mut lab = this_program(root);
    lab.args(["lab", "run", "--timeout", &IN_THE_LAB.as_secs().to_string()]);
    if let Some(programs) = programs {
        let mut payload = programs.as_os_str().to_owned();
        payload.push("=programs.tar");
        lab.arg("--payload").arg(payload);
    }
    lab.args(["--", "e2e", "--engine", "kvm", "--cpus", "1"]);
    let mut left_out = NEVER_IN_THE_LAB.to_vec();
    if programs.is_some() {
        lab.args(["--programs", "/payload/programs.tar"]);
    } else {
        left_out.extend(NOT_IN_THE_LAB);
    }
    lab.args(left_out.iter().flat_map(|cases| ["--skip", cases]));
    command::run_beside(&mut lab, "lab | ")
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    command::run(Command::new(paths::cargo()).args(arguments).current_dir(root))
}

/// This program again, for a command with its own way of printing.
fn xtask(root: &Path, arguments: &[&str]) -> Result<()> {
    command::run(this_program(root).args(arguments))
}

fn this_program(root: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| PathBuf::from("xtask")));
    command.current_dir(root);
    command
}
