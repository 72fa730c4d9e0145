//! What a machine takes of the host's processors when it is idle, what switching profiles takes, and what of memory and disk goes
//! back to the host: `bench resources`, on a machine of berth's, with either engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::median;
use super::memory::resident;
use crate::base_image::{self, IMAGE};
use crate::docker::{Container, Conversation, run_script, write_mib};
use crate::machine::{Machine, START_LIMIT};
use crate::options::Setup;
use crate::processes::{family, processor_time};

/// What a container fills when nothing else is asked for, in MiB.
pub const BURST: u64 = 384;
/// The guest's memory with that much, in MiB. With more, it is so much beyond the burst.
const MEMORY: u64 = 1024;
/// The memory that it is switched to and from, in MiB.
const LESS_MEMORY: u64 = 512;
/// How often each switch is timed; the middle is reported.
const ROUNDS: usize = 5;
/// How long an idle machine is left alone before it is looked at, for what follows its start, and how long then.
const SETTLED: Duration = Duration::from_secs(20);
const IDLE: Duration = Duration::from_secs(60);
/// What it fills at a time, in MiB.
const PART: u64 = 64;
/// What is written to a volume and to an image, in MiB.
const WRITTEN: u64 = 128;
/// How long memory and disk get to go back to the host.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked meanwhile.
const LOOK: Duration = Duration::from_millis(500);

/// The figures, each with its unit.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    figures: Vec<(String, f64, &'static str)>,
}

impl Report {
    fn add(&mut self, what: impl Into<String>, figure: f64, unit: &'static str) {
        self.figures.push((what.into(), figure, unit));
    }

    /// For people.
    pub fn table(&self) -> String {
        self.figures
            .iter()
            .map(|(what, figure, unit)| format!("{what:64}{figure:>10.1}  {unit}\n"))
            .collect()
    }
}

/// The guest's memory for a burst, both in MiB.
fn memory_for(burst: u64) -> u64 {
    if burst <= BURST { MEMORY } else { burst + MEMORY }
}

/// Profiles that differ in one thing each.
fn config(memory: u64) -> String {
    let profile = |name, cpus, memory| format!("  {name}:\n    cpus: {cpus}\n    memory: {memory}MiB\n");
    format!(
        "profiles:\n{}{}{}",
        profile("all", 2, memory),
        profile("less-cpus", 1, memory),
        profile("less-memory", 2, LESS_MEMORY)
    )
}

/// Measures on a machine of its own, in which a container fills `burst` MiB of memory.
///
/// # Errors
/// When the machine or what is done on it fails.
pub fn run(setup: &Setup, burst: u64) -> Result<Report> {
    let machine = Arc::new(Machine::new(setup)?);
    machine.write_config(&config(memory_for(burst)))?;
    let engine = setup.options.engine.to_string();
    machine
        .berth(["start", "--engine", &engine, "--profile", "all"])
        .limit(START_LIMIT)
        .ok()?;
    base_image::import(&machine)?;
    let mut report = Report::default();
    idle(&machine, "idle", &mut report)?;
    let container = Container::idle(&machine, "idle".into(), &[])?;
    idle(&machine, "idle, with a container that is", &mut report)?;
    drop(container);
    switches(&machine, memory_for(burst), &mut report)?;
    memory(&machine, burst, &mut report)?;
    page_cache(&machine, memory_for(burst), &mut report)?;
    disk(&machine, &mut report)?;
    machine.stop()?;
    machine.delete()?;
    Ok(report)
}

/// What each of the machine's processes takes of the host's processors in a while in which nobody asks anything.
fn idle(machine: &Machine, what: &str, report: &mut Report) -> Result<()> {
    std::thread::sleep(SETTLED);
    let processes = family(machine.daemon()?.pid)?;
    let times =
        || -> Result<Vec<Duration>> { processes.iter().map(|(pid, _)| processor_time(*pid)).collect() };
    let (begin, before) = (Instant::now(), times()?);
    std::thread::sleep(IDLE);
    let after = times()?;
    let seconds = begin.elapsed().as_secs_f64();
    report.add(format!("machine {what}: looked at for"), seconds, "s");
    let mut total = 0.0;
    for ((pid_and_name, before), after) in processes.iter().zip(before).zip(after) {
        let taken = (after - before).as_secs_f64();
        report.add(format!("  CPU time of {}", pid_and_name.1), taken * 1000.0, "ms");
        total += taken;
    }
    report.add("  of all, of one CPU", total / seconds * 100.0, "%");
    Ok(())
}

fn switches(machine: &Machine, memory: u64, report: &mut Report) -> Result<()> {
    let timed = |profile: &str| -> Result<Duration> {
        let begin = Instant::now();
        machine.berth(["profile", "use", profile]).ok()?;
        Ok(begin.elapsed())
    };
    let amounts = |from, to| format!("{from} MiB of memory to {to}");
    for (profile, down, up) in [
        ("less-cpus", "2 CPUs to 1".into(), "1 CPU to 2".into()),
        (
            "less-memory",
            amounts(memory, LESS_MEMORY),
            amounts(LESS_MEMORY, memory),
        ),
    ] {
        let (mut downs, mut ups) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            downs.push(timed(profile)?);
            ups.push(timed("all")?);
        }
        for (what, times) in [(down, downs), (up, ups)] {
            let middle = median(&times).context("some rounds")?;
            report.add(
                format!("profile use: {what}"),
                middle.as_secs_f64() * 1000.0,
                "ms",
            );
        }
    }
    Ok(())
}

/// A container fills memory and ends.
fn memory(machine: &Arc<Machine>, burst: u64, report: &mut Report) -> Result<()> {
    let pid = machine.vmm()?.pid;
    let guest = || Ok::<_, anyhow::Error>(mib(resident(pid, memory_for(burst) << 20)?.guest));
    report.add(
        "memory of the host's: before a burst in a container",
        guest()?,
        "MiB",
    );
    let shm = format!("--shm-size={}m", burst + 16);
    // It tells of each part, as all of a large one may take longer than an answer may.
    let script = format!(
        "left={burst}; while [ $left -gt 0 ]; do part=$((left < {PART} ? left : {PART})); \
         dd if=/dev/zero bs=1M count=$part 2> /dev/null >> /dev/shm/x || exit; left=$((left - part)); echo $left; done; read x"
    );
    let command = machine.docker([
        "run", "--rm", "-i", "--name", "burst", &shm, IMAGE, "sh", "-c", &script,
    ]);
    let mut container = Conversation::start(machine, "burst".into(), command)?;
    let mut left = burst.to_string();
    while left != "0" {
        left = container
            .answer()
            .with_context(|| format!("of {burst} MiB, {left} were left to be filled"))?;
    }
    report.add(format!("  {burst} MiB in use"), guest()?, "MiB");
    container.tell("enough")?;
    drop(container);
    let (least, after) = least_of(guest)?;
    report.add("  at least, in the minute after", least, "MiB");
    report.add("    which took", after.as_secs_f64(), "s");
    Ok(())
}

/// A container writes a file that fills half of the guest's `memory` MiB, and it stays there.
fn page_cache(machine: &Machine, memory: u64, report: &mut Report) -> Result<()> {
    let pid = machine.vmm()?.pid;
    let guest = || Ok::<_, anyhow::Error>(mib(resident(pid, memory << 20)?.guest));
    let written = memory / 2;
    let write = write_mib("zero", "/data/x", written) + "; sync";
    run_script(machine, &["-v", "file:/data"], &write).ok()?;
    report.add(
        format!("  with a file of {written} MiB in the page cache"),
        guest()?,
        "MiB",
    );
    let (least, after) = least_of(guest)?;
    report.add("  at least, in the minute after", least, "MiB");
    report.add("    which took", after.as_secs_f64(), "s");
    machine.docker(["volume", "rm", "file"]).ok()?;
    Ok(())
}

/// What a volume and an image took goes back when they are removed.
fn disk(machine: &Machine, report: &mut Report) -> Result<()> {
    let allocated = || {
        let status = machine.status()?;
        let bytes = status
            .pointer("/disk/allocated")
            .and_then(serde_json::Value::as_u64);
        Ok(mib(bytes.context("status tells no disk")?))
    };
    let write = write_mib("urandom", "/data/x", WRITTEN) + "; sync";
    report.add("disk of the host's: before a volume", allocated()?, "MiB");
    run_script(machine, &["-v", "bench:/data"], &write).ok()?;
    report.add(format!("  with {WRITTEN} MiB in it"), allocated()?, "MiB");
    machine.docker(["volume", "rm", "bench"]).ok()?;
    let (least, after) = least_of(allocated)?;
    report.add("  at least, in the minute after its removal", least, "MiB");
    report.add("    which took", after.as_secs_f64(), "s");

    let write = write_mib("urandom", "/x", WRITTEN) + "; sync";
    machine
        .docker(["run", "--name", "bench", IMAGE, "sh", "-c", &write])
        .ok()?;
    machine.docker(["commit", "bench", "bench:image"]).ok()?;
    machine.docker(["rm", "bench"]).ok()?;
    report.add(format!("  with an image of {WRITTEN} MiB"), allocated()?, "MiB");
    machine.docker(["rmi", "bench:image"]).ok()?;
    let (least, after) = least_of(allocated)?;
    report.add("  at least, in the minute after `docker rmi`", least, "MiB");
    report.add("    which took", after.as_secs_f64(), "s");
    Ok(())
}

/// The least that a figure falls to in [`PATIENCE`], and when it was within a tenth of the way of that.
fn least_of(figure: impl Fn() -> Result<f64>) -> Result<(f64, Duration)> {
    let begin = Instant::now();
    let mut seen = Vec::new();
    while begin.elapsed() < PATIENCE {
        seen.push((begin.elapsed(), figure()?));
        std::thread::sleep(LOOK);
    }
    let first = seen.first().map_or(0.0, |(_, figure)| *figure);
    let least = seen.iter().map(|(_, figure)| *figure).fold(first, f64::min);
    let near = least + (first - least) / 10.0;
    let when = seen.iter().find(|(_, figure)| *figure <= near);
    Ok((least, when.map_or(PATIENCE, |(when, _)| *when)))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}
