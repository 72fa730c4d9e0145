//! What it is worth that the guest is told of the host's changes: `bench coherence`. On a machine of berth's, a program in a
//! container works on a shared directory, on a volume, which is ext4 on the guest's own disk, and, if there is one, on what
//! virtiofsd serves to the same machine, in turns; then it is measured how long a change of the host's takes to be in the guest.

mod beside;
mod worker;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::files::guest::trees;
use super::files::host::fixture::track;
use super::{median, percentile};
use crate::api::sync;
use crate::base_image::{self, IMAGE};
use crate::carried::{carry, carry_other};
use crate::docker::Conversation;
use crate::machine::Machine;
use crate::options::Setup;
use beside::Beside;
pub use worker::{ARGUMENT, serve};
use worker::{TRACKED, WORK, describe};

/// Where the container has the shared directory and the volume, and what virtiofsd serves.
const PLACES: [&str; 3] = ["/share", "/disk", "/virtiofsd"];
const TOOLS: &str = "/tools";
/// How often; the least counts, for what else the host does only ever adds.
const ROUNDS: usize = 40;
/// How often what asks the host: virtiofsd's part, and making files. It takes long, and the host adds little to it.
const SLOW_ROUNDS: usize = 7;
/// Changes that are timed one by one.
const CHANGES: usize = 200;
/// Files that are made at once.
const MANY: usize = 3000;

/// The figures.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Milliseconds on the share, on the volume, and with virtiofsd.
    work: Vec<(String, f64, f64, Option<f64>)>,
    /// Milliseconds, or what the name says.
    changes: Vec<(&'static str, f64)>,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:48}{:>10}{:>10}{:>8}{:>13}{:>8}\n",
            "", "share", "ext4", "ratio", "virtiofsd", "ratio"
        );
        for (work, share, disk, virtiofsd) in &self.work {
            text += &format!("{work:48}{share:>7.1} ms{disk:>7.1} ms{:>8.2}", share / disk);
            text += &match virtiofsd {
                Some(ms) => format!("{ms:>10.1} ms{:>8.2}\n", share / ms),
                None => "\n".to_owned(),
            };
        }
        for (what, figure) in &self.changes {
            text += &format!("{what:48}{figure:>10.2}\n");
        }
        text
    }
}

/// Measures on a machine of its own; beside virtiofsd when `tools` is a Debian root that has it.
///
/// # Errors
/// When the machine or what is done on it fails.
pub fn run(setup: &Setup, tools: Option<&Path>) -> Result<Report> {
    let beside = tools.map(Beside::start).transpose()?;
    let mut machine = Machine::new(setup)?;
    if let Some(beside) = &beside {
        machine = machine.with_env("PATH", beside.path()?);
    }
    let machine = Arc::new(machine);
    machine.start()?;
    base_image::import(&machine)?;
    let report = measure(&machine, beside.is_some())?;
    machine.stop()?;
    machine.delete()?;
    Ok(report)
}

fn measure(machine: &Arc<Machine>, with_virtiofsd: bool) -> Result<Report> {
    let dirs = ["share", "tools"].map(|dir| machine.home().join(dir));
    for dir in &dirs {
        std::fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let [share, tools] = dirs;
    trees::make_tracked(&share, TRACKED)?;
    track(&share.join(trees::TRACKED))?;
    let program = carry(&tools, TOOLS)?;
    let git = carry_other("git", &tools, TOOLS)?;
    let name = "worker".to_owned();
    let mut volumes = vec![
        format!("{}:{}", share.display(), PLACES[0]),
        format!("disk:{}", PLACES[1]),
        format!("{}:{TOOLS}:ro", tools.display()),
    ];
    if with_virtiofsd {
        Beside::make_volume(machine)?;
        volumes.push(format!("{}:{}", beside::TAG, PLACES[2]));
    }
    let places = &PLACES[..if with_virtiofsd { 3 } else { 2 }];
    let command = machine
        .docker(["run", "--rm", "-i", "--name", &name])
        .args(volumes.iter().flat_map(|volume| ["-v", volume]))
        .arg(IMAGE)
        .args(program)
        .arg(ARGUMENT)
        .args(git);
    let mut worker = Conversation::start(machine, name, command)?;
    let mut ask = |line: &str| -> Result<f64> {
        worker.tell(line)?;
        let answer = worker.answer()?;
        answer.parse().with_context(|| format!("{line}: {answer}"))
    };
    let mut report = Report::default();
    for place in places {
        eprintln!("making the trees in {place}");
        ask(&format!("make {place}"))?;
    }
    for place in &places[1..] {
        ask(&format!("copy {} {place}", places[0]))?;
    }
    for group in WORK {
        eprintln!("{}", group.join(", "));
        let mut least = vec![[f64::INFINITY; PLACES.len()]; group.len()];
        // What changes nothing is done more often.
        let rounds = if group.len() == 1 { ROUNDS } else { SLOW_ROUNDS };
        // The first round only brings everything into the guest's caches.
        for round in 0..=rounds {
            let places = if round > SLOW_ROUNDS { &PLACES[..2] } else { places };
            for (work, least) in group.iter().zip(&mut least) {
                for (place, least) in places.iter().zip(least) {
                    let ms = ask(&format!("{work} {place}"))?;
                    if round > 0 {
                        *least = least.min(ms);
                    }
                }
            }
        }
        for (work, [share, disk, virtiofsd]) in group.iter().zip(least) {
            let virtiofsd = with_virtiofsd.then_some(virtiofsd);
            report.work.push((describe(work), share, disk, virtiofsd));
        }
    }
    changes(machine, &share, &mut report)?;
    Ok(report)
}

fn changes(machine: &Machine, share: &Path, report: &mut Report) -> Result<()> {
    let timed = |work: &dyn Fn(usize) -> Result<()>| -> Result<Vec<Duration>> {
        (0..CHANGES)
            .map(|number| {
                work(number)?;
                let begin = Instant::now();
                sync(machine)?;
                Ok(begin.elapsed())
            })
            .collect()
    };
    let milliseconds = |duration: Option<Duration>| duration.map_or(f64::NAN, |d| d.as_secs_f64() * 1000.0);
    let idle = timed(&|_| Ok(()))?;
    let write = |number: usize| std::fs::write(share.join("changed"), number.to_string());
    let changed = timed(&|number| write(number).context("cannot write to the share"))?;
    let mut add = |what, figure| report.changes.push((what, figure));
    add(
        "barrier, nothing changed: median, ms",
        milliseconds(median(&idle)),
    );
    add(
        "a file written until the guest has it: median, ms",
        milliseconds(median(&changed)),
    );
    add("  99 of 100, ms", milliseconds(percentile(&changed, 99)));
    let many = share.join("many");
    std::fs::create_dir(&many).context("cannot make a directory")?;
    sync(machine)?;
    let begin = Instant::now();
    // Fewer at a time than the host's kernel keeps events.
    for number in 0..MANY {
        std::fs::write(many.join(number.to_string()), "x").context("cannot write to the share")?;
    }
    sync(machine)?;
    add(
        "files made and told of in a second",
        MANY as f64 / begin.elapsed().as_secs_f64(),
    );
    Ok(())
}
