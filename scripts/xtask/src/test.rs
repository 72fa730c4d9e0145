//! `xtask test`: all tests, from formatting to end to end, in the order in which they are quickest to fail.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::cache::Cache;
use crate::progress::{Timings, note};
use crate::{command, host, install, paths, test_image};

/// A run in the lab that takes longer hangs.
const LAB_LIMIT: Duration = Duration::from_secs(85 * 60);

/// The cases that the lab runs unless everything is asked for, by the beginnings of their names: at least one for everything that an
/// engine does. What the others are about is on the host, in guest-init, in the file server and in Docker.
const IN_THE_LAB: &[&str] = &[
    "faults::a_full_host_disk_",
    "faults::a_kernel_panic_",
    "faults::a_killed_daemon_",
    "faults::a_power_cut_",
    "faults::an_image_damaged_",
    "faults::streams_under_way_",
    "giving_back::disk_",
    "giving_back::memory_",
    "images::push_and_pull_",
    "images::save_and_load_",
    "images::version_and_info_",
    "lifecycle::delete_",
    "lifecycle::restart_",
    "lifecycle::several_cpus_",
    "lifecycle::status_",
    "lifecycle::the_clock_",
    "network::a_container_reaches_",
    "ports::a_published_port_",
    "ports::a_slow_reader_",
    "ports::datagrams_",
    "ports::each_direction_",
    "ports::hundreds_of_connections_",
    "profiles::a_running_machine_",
    "refusals::a_missing_kvm_device_",
    "run::detached_",
    "run::foreground_",
    "run::options_",
    "shares::a_directory_",
    "shares::a_share_comes_",
    "shares::after_a_barrier_",
    "shares::what_was_synced_",
    "streams::a_megabyte_",
    "streams::attach_",
    "streams::interactive_run_",
    "streams::logs_",
    "streams::stdin_",
];

/// Cases that the lab never runs: it has no desktop.
const NEVER_IN_THE_LAB: &str = "tray::";

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
        Suites {
            root: &root,
            programs: &programs,
            full: args.full,
        }
        .run()
    })
}

/// As the unit tests were, so that little is left to compile.
fn build_suites(root: &Path) -> Result<()> {
    let words = "build --quiet --locked --package berth-tests --bins";
    cargo(root, &words.split(' ').collect::<Vec<_>>())
}

/// The end-to-end suite on both engines.
struct Suites<'a> {
    root: &'a Path,
    /// The archive of the image with programs.
    programs: &'a Path,
    full: bool,
}

impl Suites<'_> {
    /// Both, side by side: the lab's machine has one CPU, so another one of the host's would have nothing to do. When the lab is
    /// through, a second run on QEMU takes cases from the end of the first one's list.
    fn run(&self) -> Result<()> {
        let claims = tempfile::tempdir().context("cannot make a directory")?;
        if thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
            self.on_qemu(claims.path())?;
            return self.in_the_lab();
        }
        thread::scope(|scope| {
            let beside = scope.spawn(|| {
                let lab = self.in_the_lab();
                (lab, self.on_qemu_from_the_end(claims.path()))
            });
            let here = self.on_qemu(claims.path());
            if let Err(error) = &here {
                // It is said again at the end, which may be a while away.
                note(&format!("engine qemu: {error:#}"));
            }
            let (lab, second) = match beside.join() {
                Ok(results) => results,
                Err(_) => (Err(anyhow!("the thread of it panicked")), Ok(())),
            };
            let failures: Vec<_> = [
                ("engine qemu", here),
                ("engine qemu, from the end", second),
                ("engine kvm, in the lab", lab),
            ]
            .into_iter()
            .filter_map(|(suite, result)| Some(format!("{suite}: {:#}", result.err()?)))
            .collect();
            ensure!(failures.is_empty(), "{}", failures.join("\n"));
            Ok(())
        })
    }

    /// Against a machine under QEMU, with the berth that was just installed, as a user would run it.
    fn on_qemu(&self, claims: &Path) -> Result<()> {
        command::run(&mut self.qemu(claims)?)
    }

    /// What another run of it has not come to yet.
    fn on_qemu_from_the_end(&self, claims: &Path) -> Result<()> {
        command::run_beside(self.qemu(claims)?.arg("--reverse"), "second | ")
    }

    fn qemu(&self, claims: &Path) -> Result<Command> {
        let mut command = Command::new(paths::cargo_target_dir()?.join("debug/e2e"));
        command.current_dir(self.root).args(["--engine", "qemu"]);
        command.arg("--berth").arg(installed_berth()?);
        command.arg("--programs").arg(self.programs);
        command.arg("--claims").arg(claims);
        if self.full {
            command.arg("--full");
        }
        Ok(command)
    }

    /// Against a machine on our own hypervisor, where KVM is real.
    ///
    /// The machines have one virtual CPU: two take turns on the lab's one, and each waits for the other in loops meanwhile,
    /// which takes several times as long. The cases with a database and the like need many minutes in a machine in an emulated
    /// machine, and are tried only when everything is.
    fn in_the_lab(&self) -> Result<()> {
        let bin = tempfile::tempdir().context("cannot make a directory")?;
        for program in [installed_berth()?, paths::cargo_target_dir()?.join("debug/e2e")] {
            let name = program.file_name().context("a program has a name")?;
            symlink(&program, bin.path().join(name)).context("cannot make a link")?;
        }
        let mut lab = this_program(self.root);
        lab.args(["lab", "run", "--timeout", &LAB_LIMIT.as_secs().to_string()]);
        lab.arg("--bin-dir").arg(bin.path());
        if self.full {
            let mut payload = self.programs.as_os_str().to_owned();
            payload.push("=programs.tar");
            lab.arg("--payload").arg(payload);
        }
        lab.args(["--", "e2e", "--engine", "kvm", "--cpus", "1"]);
        if self.full {
            lab.args(["--programs", "/payload/programs.tar"]);
            lab.args(["--skip", NEVER_IN_THE_LAB]);
        } else {
            lab.args(IN_THE_LAB.iter().flat_map(|cases| ["--only", cases]));
        }
        command::run_beside(&mut lab, "lab | ")
    }
}

fn installed_berth() -> Result<PathBuf> {
    Ok(paths::data_dir()?.join("bin/berth"))
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
