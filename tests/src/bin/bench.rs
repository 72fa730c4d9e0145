//! Measures berth where KVM is real: `scripts/lab run -- bench`, and `scripts/lab run --icount -- bench --boot-only` for
//! boot figures that repeat. `bench files` compares file sharing, under emulation; `scripts/bench-files` runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth_tests::bench::boot::{Boot, Hypervisor, initramfs};
use berth_tests::bench::files::host::{FilesArgs, run as files};
use berth_tests::bench::machine;
use berth_tests::bench::report::{Report, Row};
use berth_tests::bench::{coherence, median, network, percentile, resources};
use berth_tests::machine::Machine;
use berth_tests::name_server;
use berth_tests::options::{Options, Setup, on_path};
use clap::{Parser, Subcommand};
use serde::Serialize;

#[derive(Parser)]
#[command(
    name = "bench",
    about = "Measures berth beside QEMU, where KVM is real",
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    options: Options,
    /// How often each boot is measured; the middle is reported
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only the boots of a tiny guest, no whole machine
    #[arg(long)]
    boot_only: bool,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// MiB sent each way to measure the stream's throughput
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    stream_mib: u32,
}

#[derive(Subcommand)]
enum Other {
    /// Compares berth's file sharing with virtiofsd and ext4 in one emulated guest
    Files(FilesArgs),
    /// Measures what is cached of a share beside ext4, and how long changes of the host take to be in the guest
    Coherence(CoherenceArgs),
    /// Measures what published ports carry and how soon they are there, and names, beside Docker's own proxy and name server
    Network(MachineArgs),
    /// Measures what an idle machine takes of the processors, what switching profiles takes, and what goes back to the host
    Resources(ResourcesArgs),
}

/// For what is measured on one machine of berth's.
#[derive(clap::Args)]
struct MachineArgs {
    #[command(flatten)]
    options: Options,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(clap::Args)]
struct CoherenceArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// A Debian root whose virtiofsd serves a directory to the same machine (engine qemu) [default: none is compared with]
    #[arg(long, value_name = "DIR")]
    tools: Option<PathBuf>,
}

#[derive(clap::Args)]
struct ResourcesArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// MiB of memory that a container fills; with more than the default, the guest has 1 GiB beyond it
    #[arg(long, value_name = "MIB", default_value_t = resources::BURST, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    burst_mib: u64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [coherence::ARGUMENT, ref git @ ..] => {
            return end(coherence::serve(
                git,
                std::io::stdin().lock(),
                std::io::stdout().lock(),
            ));
        }
        [network::SERVER] => return end(network::serve()),
        [network::names::ASKER, ref asked @ ..] => {
            return end(network::names::ask(asked, std::io::stdout().lock()));
        }
        [name_server::ARGUMENT, address, file] => return end(serve_names(address, file)),
        [network::CLIENT, address] => return end(network::client(address, std::io::stdout().lock())),
        _ => {}
    }
    let cli = Cli::parse();
    end(match &cli.other {
        None => run(&cli),
        Some(Other::Files(args)) => files(args),
        Some(Other::Coherence(args)) => {
            let run = |setup: &Setup| coherence::run(setup, args.tools.as_deref());
            on_a_machine(&args.machine, run, coherence::Report::table)
        }
        Some(Other::Network(args)) => on_a_machine(args, network::run, network::Report::table),
        Some(Other::Resources(args)) => {
            let run = |setup: &Setup| resources::run(setup, args.burst_mib);
            on_a_machine(&args.machine, run, resources::Report::table)
        }
    })
}

/// Is the name server of the host whose names are asked for.
fn serve_names(address: &str, file: &str) -> Result<()> {
    let address = address
        .parse()
        .with_context(|| format!("{address:?} is no address"))?;
    name_server::serve(address, Path::new(file))
}

fn end(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn on_a_machine<R: Serialize>(
    args: &MachineArgs,
    run: impl FnOnce(&Setup) -> Result<R>,
    table: fn(&R) -> String,
) -> Result<()> {
    let report = run(&Setup::find(args.options.clone())?)?;
    print!("{}", table(&report));
    match &args.output {
        Some(path) => write_json(&report, path),
        None => Ok(()),
    }
}

fn write_json(report: &impl Serialize, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(report).context("cannot write the figures as JSON")?;
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn run(cli: &Cli) -> Result<()> {
    if !Path::new("/dev/kvm").exists() {
        bail!("there is no /dev/kvm here; run this in the lab: scripts/lab run -- bench");
    }
    let setup = Setup::find(cli.options.clone())?;
    let mut report = Report::default();
    boots(&setup, cli.runs, &mut report)?;
    if !cli.boot_only {
        machines(&setup, cli, &mut report)?;
    }
    print!("{}", report.table());
    let output = match (&cli.output, std::env::var_os("LAB_ARTIFACTS")) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(dir)) => Some(PathBuf::from(dir).join("bench.json")),
        (None, None) => None,
    };
    output.map_or(Ok(()), |path| write_json(&report, &path))
}

/// One vCPU, 128 MiB, a tiny initramfs.
fn boots(setup: &Setup, runs: u32, report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let kernel = setup.guest_dir.join("vmlinux");
    let initramfs = initramfs(&setup.busybox, dir.path())?;
    let runner = setup.berth.with_file_name("vmm-run");
    let runner = if runner.is_file() {
        runner
    } else {
        on_path("vmm-run")
            .context("there is no vmm-run; build it with `cargo build --release -p vmm --bins`")?
    };
    let qemu = on_path("qemu-system-x86_64").context("there is no QEMU to compare with")?;
    let (mut berth, mut other) = (Vec::new(), Vec::new());
    // Alternating, so that what else the host does meets both. The first pair warms the page cache and is not counted.
    for run in 0..=runs {
        let pair = (
            Hypervisor::Berth(runner.clone())
                .boot(&kernel, &initramfs)
                .context("berth's hypervisor")?,
            Hypervisor::Qemu(qemu.clone())
                .boot(&kernel, &initramfs)
                .context("QEMU's microvm")?,
        );
        eprintln!(
            "run {run}: berth {} ms, QEMU {} ms",
            pair.0.to_init.as_millis(),
            pair.1.to_init.as_millis()
        );
        if run > 0 {
            berth.push(pair.0);
            other.push(pair.1);
        }
    }
    let times =
        |boots: &[Boot]| median(&boots.iter().map(|boot| boot.to_init).collect::<Vec<_>>()).map(milliseconds);
    let least = |boots: &[Boot]| boots.iter().map(|boot| boot.resident.own).min().map(mebibytes);
    let private = |boots: &[Boot]| {
        boots
            .iter()
            .map(|boot| boot.resident.private)
            .min()
            .map(mebibytes)
    };
    report.add(Row {
        what: "process start to init, 1 vCPU, 128 MiB".into(),
        unit: "ms",
        berth: times(&berth),
        qemu: times(&other),
        bar: Some(600.0),
    });
    report.add(Row {
        what: "  resident memory beyond the guest's".into(),
        unit: "MiB",
        berth: least(&berth),
        qemu: least(&other),
        bar: Some(4.0),
    });
    report.add(Row {
        what: "  of it shared with nobody".into(),
        unit: "MiB",
        berth: private(&berth),
        qemu: private(&other),
        bar: None,
    });
    Ok(())
}

/// A whole machine, with all its devices, the daemon and Docker.
fn machines(setup: &Setup, cli: &Cli, report: &mut Report) -> Result<()> {
    const MEMORY_MIB: u64 = 1024;
    let machine = Machine::new(setup)?;
    // The first start makes the disk's file system and Docker's directories.
    machine::start(&machine, "kvm", MEMORY_MIB).context("the first start")?;
    machine.stop()?;
    let berth = machine::start(&machine, "kvm", MEMORY_MIB)?;
    let stream = |figure: fn(&Machine, u32) -> Result<f64>| {
        figure(&machine, cli.stream_mib).map(|rate| rate / 1_048_576.0)
    };
    let (out, into) = (stream(machine::throughput_out)?, stream(machine::throughput_in)?);
    let echo = machine::echo_round_trips(&machine, 200)?;
    let ping = machine::docker_round_trips(&machine, 200)?;
    machine.stop()?;
    let qemu = machine::start(&machine, "qemu", MEMORY_MIB).context("on QEMU")?;
    eprintln!("compared: {} with {}", berth.engine, qemu.engine);
    let qemu_stream = |figure: fn(&Machine, u32) -> Result<f64>| {
        figure(&machine, cli.stream_mib).map(|rate| rate / 1_048_576.0)
    };
    let (qemu_out, qemu_into) = (
        qemu_stream(machine::throughput_out)?,
        qemu_stream(machine::throughput_in)?,
    );
    let qemu_echo = machine::echo_round_trips(&machine, 200)?;
    let qemu_ping = machine::docker_round_trips(&machine, 200)?;
    machine.delete()?;

    let mut add = |what: &str, unit, berth, qemu, bar| {
        report.add(Row {
            what: what.to_owned(),
            unit,
            berth,
            qemu,
            bar,
        });
    };
    let ms = |duration| Some(milliseconds(duration));
    add(
        "berth start to a Docker answer",
        "ms",
        ms(berth.to_docker),
        ms(qemu.to_docker),
        None,
    );
    add(
        "  kernel start to guest-init's call",
        "ms",
        ms(berth.to_init),
        ms(qemu.to_init),
        None,
    );
    add(
        "  resident memory beyond the guest's (berth: with the daemon)",
        "MiB",
        Some(mebibytes(berth.resident.own)),
        Some(mebibytes(qemu.resident.own)),
        Some(8.0),
    );
    add(
        "stream out of the guest",
        "MiB/s",
        Some(out),
        Some(qemu_out),
        None,
    );
    add(
        "stream into the guest",
        "MiB/s",
        Some(into),
        Some(qemu_into),
        None,
    );
    for (what, per_cent) in [("round trip of one byte, median", 50), ("  99 of 100", 99)] {
        let figure = |times: &[Duration]| percentile(times, per_cent).map(milliseconds);
        add(what, "ms", figure(&echo), figure(&qemu_echo), None);
    }
    for (what, per_cent) in [("docker ping, median", 50), ("  99 of 100", 99)] {
        let figure = |times: &[Duration]| percentile(times, per_cent).map(milliseconds);
        add(what, "ms", figure(&ping), figure(&qemu_ping), None);
    }
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}
