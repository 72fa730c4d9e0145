//! What it is worth that the guest is told of the host's changes: `bench coherence`. On a machine of berth's, a program in a
//! container works on a shared directory and on a volume, which is ext4 on the guest's own disk, in turns; then it is measured
//! how long a change of the host's takes to be in the guest.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::files::guest::{modules, small, trees};
use super::{median, percentile};
use crate::api::sync;
use crate::base_image::{self, IMAGE};
use crate::carried::carry;
use crate::docker::Conversation;
use crate::machine::Machine;
use crate::options::Setup;

/// The argument that makes a program of this crate the one in the container ([`serve`]).
pub const ARGUMENT: &str = "--serve-as-worker";

/// Where the container has the shared directory and the volume.
const PLACES: [&str; 2] = ["/share", "/disk"];
const TOOLS: &str = "/tools";
const FILES: u32 = 3000;
const PACKAGES: u32 = 100;
/// What is done, on files that the guest has seen before.
const WORK: [&str; 5] = ["find", "stat", "cat", "missing", "modules"];
/// How often; the least counts, for what else the host does only ever adds.
const ROUNDS: usize = 7;
/// Changes that are timed one by one.
const CHANGES: usize = 200;
/// Files that are made at once.
const MANY: usize = 3000;

/// The figures.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Milliseconds on the share and on the volume.
    work: Vec<(&'static str, f64, f64)>,
    /// Milliseconds, or what the name says.
    changes: Vec<(&'static str, f64)>,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:44}{:>10}{:>10}{:>8}\n",
            "on files seen before", "share", "ext4", "ratio"
        );
        for (work, share, disk) in &self.work {
            text += &format!("{work:44}{share:>7.1} ms{disk:>7.1} ms{:>8.2}\n", share / disk);
        }
        for (what, figure) in &self.changes {
            text += &format!("{what:44}{figure:>10.2}\n");
        }
        text
    }
}

/// Measures on a machine of its own.
///
/// # Errors
/// When the machine or what is done on it fails.
pub fn run(setup: &Setup) -> Result<Report> {
    let machine = Arc::new(Machine::new(setup)?);
    machine.start()?;
    base_image::import(&machine)?;
    let report = measure(&machine)?;
    machine.stop()?;
    machine.delete()?;
    Ok(report)
}

fn measure(machine: &Arc<Machine>) -> Result<Report> {
    let dirs = ["share", "tools"].map(|dir| machine.home().join(dir));
    for dir in &dirs {
        std::fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let [share, tools] = dirs;
    let program = carry(&tools, TOOLS)?;
    let name = "worker".to_owned();
    let command = machine
        .docker(["run", "--rm", "-i", "--name", &name])
        .args(["-v", &format!("{}:{}", share.display(), PLACES[0])])
        .args(["-v", &format!("disk:{}", PLACES[1])])
        .args(["-v", &format!("{}:{TOOLS}:ro", tools.display())])
        .arg(IMAGE)
        .args(program)
        .arg(ARGUMENT);
    let mut worker = Conversation::start(machine, name, command)?;
    let mut ask = |line: &str| -> Result<f64> {
        worker.tell(line)?;
        let answer = worker.answer()?;
        answer.parse().with_context(|| format!("{line}: {answer}"))
    };
    let mut report = Report::default();
    for place in PLACES {
        ask(&format!("make {place}"))?;
    }
    for work in WORK {
        let mut least = [f64::INFINITY; 2];
        // The first round only brings everything into the guest's caches.
        for round in 0..=ROUNDS {
            for (place, least) in PLACES.iter().zip(&mut least) {
                let ms = ask(&format!("{work} {place}"))?;
                if round > 0 {
                    *least = least.min(ms);
                }
            }
        }
        report.work.push((work, least[0], least[1]));
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

/// Does what lines of `input` say, until they end: a kind of work and a directory, answered by milliseconds.
///
/// # Errors
/// When something cannot be done, or a file is not what it must be.
pub fn serve(input: impl BufRead, mut output: impl Write) -> Result<()> {
    let names = trees::small(FILES);
    for line in input.lines() {
        let line = line.context("cannot read what to do")?;
        let (work, place) = line.split_once(' ').context("no directory")?;
        let place = Path::new(place);
        let (small_tree, packages) = (place.join(trees::SMALL), place.join(trees::PACKAGES));
        let begin = Instant::now();
        match work {
            "make" => {
                trees::make_small(place, FILES)?;
                trees::make_packages(place, PACKAGES)?;
            }
            "find" => small::find(&small_tree, names.len())?,
            "stat" => small::stat(&small_tree, &names)?,
            "cat" => small::cat(&small_tree, &names)?,
            "missing" => small::missing(&small_tree, names.len())?,
            "modules" => modules::resolve(&packages, PACKAGES)?,
            _ => bail!("{work:?} is nothing to do"),
        }
        let ms = begin.elapsed().as_secs_f64() * 1000.0;
        writeln!(output, "{ms:.3}")
            .and_then(|()| output.flush())
            .context("cannot answer")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_in_the_container_does_all_that_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let lines: String = ["make"]
            .iter()
            .chain(&WORK)
            .map(|work| format!("{work} {}\n", dir.path().display()))
            .collect();
        let mut answers = Vec::new();
        serve(lines.as_bytes(), &mut answers).unwrap();
        let answers = String::from_utf8(answers).unwrap();
        assert_eq!(
            answers.lines().filter(|line| line.parse::<f64>().is_ok()).count(),
            1 + WORK.len()
        );
        assert!(serve(&b"dance /tmp\n"[..], Vec::new()).is_err());
    }
}
