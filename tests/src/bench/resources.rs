//! What switching profiles takes, and what of memory and disk goes back to the host: `bench resources`, on a machine of
//! berth's, with either engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::median;
use super::memory::resident;
use crate::base_image::{self, IMAGE};
use crate::docker::{Conversation, run_script};
use crate::machine::{Machine, START_LIMIT};
use crate::options::Setup;

/// Profiles that differ in one thing each.
const CONFIG: &str = "\
profiles:
  all:
    cpus: 2
    memory: 1GiB
  less-cpus:
    cpus: 1
    memory: 1GiB
  less-memory:
    cpus: 2
    memory: 512MiB
";
const MEMORY: u64 = 1 << 30;
/// How often each switch is timed; the middle is reported.
const ROUNDS: usize = 5;
/// What a container fills, in MiB.
const BURST: u64 = 384;
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

/// Measures on a machine of its own.
///
/// # Errors
/// When the machine or what is done on it fails.
pub fn run(setup: &Setup) -> Result<Report> {
    let machine = Arc::new(Machine::new(setup)?);
    machine.write_config(CONFIG)?;
    let engine = setup.options.engine.to_string();
    machine
        .berth(["start", "--engine", &engine, "--profile", "all"])
        .limit(START_LIMIT)
        .ok()?;
    base_image::import(&machine)?;
    let mut report = Report::default();
    switches(&machine, &mut report)?;
    memory(&machine, &mut report)?;
    disk(&machine, &mut report)?;
    machine.stop()?;
    machine.delete()?;
    Ok(report)
}

fn switches(machine: &Machine, report: &mut Report) -> Result<()> {
    let timed = |profile: &str| -> Result<Duration> {
        let begin = Instant::now();
        machine.berth(["profile", "use", profile]).ok()?;
        Ok(begin.elapsed())
    };
    for (profile, down, up) in [
        ("less-cpus", "2 CPUs to 1", "1 CPU to 2"),
        (
            "less-memory",
            "1 GiB of memory to 512 MiB",
            "512 MiB of memory to 1 GiB",
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
fn memory(machine: &Arc<Machine>, report: &mut Report) -> Result<()> {
    let pid = machine.vmm()?.pid;
    let guest = || Ok::<_, anyhow::Error>(mib(resident(pid, MEMORY)?.guest));
    report.add(
        "memory of the host's: before a burst in a container",
        guest()?,
        "MiB",
    );
    let shm = format!("--shm-size={}m", BURST + 16);
    let script = format!(
        "head -c {} /dev/zero > /dev/shm/x; echo full; read x",
        BURST << 20
    );
    let command = machine.docker([
        "run", "--rm", "-i", "--name", "burst", &shm, IMAGE, "sh", "-c", &script,
    ]);
    let mut burst = Conversation::start(machine, "burst".into(), command)?;
    burst.answer()?;
    report.add(format!("  {BURST} MiB in use"), guest()?, "MiB");
    burst.tell("enough")?;
    drop(burst);
    let (least, after) = least_of(guest)?;
    report.add("  at least, in the minute after", least, "MiB");
    report.add("    which took", after.as_secs_f64(), "s");
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
    let write = format!("head -c {} /dev/urandom > /data/x; sync", WRITTEN << 20);
    report.add("disk of the host's: before a volume", allocated()?, "MiB");
    run_script(machine, &["-v", "bench:/data"], &write).ok()?;
    report.add(format!("  with {WRITTEN} MiB in it"), allocated()?, "MiB");
    machine.docker(["volume", "rm", "bench"]).ok()?;
    let (least, after) = least_of(allocated)?;
    report.add("  at least, in the minute after its removal", least, "MiB");
    report.add("    which took", after.as_secs_f64(), "s");

    let write = format!("head -c {} /dev/urandom > /x; sync", WRITTEN << 20);
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
