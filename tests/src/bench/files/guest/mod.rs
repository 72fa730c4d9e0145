//! The guest's half: the only program of the machine, its init.
//!
//! Every piece of work checks that it found what must be there, so that a server that loses files is not a fast one.

pub(in crate::bench) mod changes;
pub(in crate::bench) mod git;
mod large;
pub(in crate::bench) mod modules;
pub(in crate::bench) mod small;
mod system;

pub mod trees;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use super::message::Message;
use super::plan::{Contender, Group, Plan};
use system::Port;

/// Where the plan is in the guest.
pub const PLAN: &str = "/plan.json";
/// Where the archive that is unpacked is in the guest.
pub const ARCHIVE: &str = "/source.tar";

/// Does everything, tells the host, and ends the machine.
pub fn run() {
    let result = system::prepare().and_then(|mut port| {
        let result = measure(&mut port);
        if let Err(error) = &result {
            port.send(&Message::Failed {
                message: format!("{error:#}"),
            })?;
        }
        result
    });
    if let Err(error) = result {
        // The console is all there is left.
        eprintln!("bench-guest: {error:#}");
    }
    system::power_off();
}

fn measure(port: &mut Port) -> Result<()> {
    let plan = std::fs::read(PLAN).context("cannot read the plan")?;
    let plan: Plan = serde_json::from_slice(&plan).context("cannot understand the plan")?;
    let begin = Instant::now();
    port.send(&Message::Ready {
        kernel: system::kernel(),
        git: git::version(),
    })?;
    for group in &plan.groups {
        for round in 0..plan.rounds {
            port.send(&Message::Began { round, group: *group })?;
            // Everyone is first, second, … once: what the one before leaves behind meets all.
            let mut contenders = plan.contenders.clone();
            contenders.rotate_left(round as usize % plan.contenders.len().max(1));
            for contender in contenders {
                let mut bench = Bench {
                    plan: &plan,
                    contender,
                    round,
                    root: system::mount_point(contender),
                    port: &mut *port,
                };
                bench
                    .run(*group)
                    .with_context(|| format!("{group:?} on {}", contender.name()))?;
            }
        }
    }
    port.send(&Message::Done {
        ms: begin.elapsed().as_secs_f64() * 1000.0,
    })
}

/// Measures one file system in one round.
struct Bench<'a> {
    plan: &'a Plan,
    contender: Contender,
    round: u32,
    root: PathBuf,
    port: &'a mut Port,
}

impl Bench<'_> {
    fn run(&mut self, group: Group) -> Result<()> {
        self.cold()?;
        match group {
            Group::Small => self.small(),
            Group::Changes => self.changes(),
            Group::Unpack => self.unpack(),
            Group::Git => self.git(),
            Group::Packages => self.packages(),
            Group::Large => self.large(),
        }
    }

    /// Makes the guest forget all it knows of the file system.
    fn cold(&self) -> Result<()> {
        system::remount(self.contender, &self.root)
    }

    /// Measures a row.
    fn time(&mut self, row: &str, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let begin = Instant::now();
        work(&self.root).with_context(|| row.to_owned())?;
        let ms = begin.elapsed().as_secs_f64() * 1000.0;
        self.port.send(&Message::Sample {
            contender: self.contender,
            row: row.to_owned(),
            round: self.round,
            ms,
        })
    }

    fn small(&mut self) -> Result<()> {
        let files = self.plan.small_files;
        let names = trees::small(files);
        type Work = fn(&Path, &[PathBuf]) -> Result<()>;
        let rows: [(&str, Work); 3] = [
            ("find", |root, names| small::find(root, names.len())),
            ("stat", small::stat),
            ("cat", small::cat),
        ];
        for (row, work) in rows {
            self.cold()?;
            for state in ["cold", "warm"] {
                self.time(&format!("{row}-{state}"), |root| {
                    work(&root.join(trees::SMALL), &names)
                })?;
            }
        }
        // Nothing is kept of these: each is one request, and nothing but that.
        self.time("missing", |root| {
            small::missing(&root.join(trees::SMALL), names.len())
        })
    }

    fn changes(&mut self) -> Result<()> {
        let count = self.plan.changes;
        let dir = self.root.join("changes");
        std::fs::create_dir(&dir).context("cannot make a directory")?;
        self.time("create", |_| changes::create(&dir, count))?;
        self.time("rename", |_| changes::rename(&dir, count))?;
        self.time("remove", |_| changes::remove(&dir, count))?;
        std::fs::remove_dir(&dir).context("the directory is not empty")
    }

    fn unpack(&mut self) -> Result<()> {
        let dir = self.root.join("unpacked");
        std::fs::create_dir(&dir).context("cannot make a directory")?;
        let files = self.plan.source_files as usize;
        self.time("untar", |_| changes::unpack(Path::new(ARCHIVE), &dir))?;
        small::find(&dir, files)?;
        self.time("remove-tree", |_| changes::remove_tree(&dir))
    }

    fn git(&mut self) -> Result<()> {
        for row in ["git-status-cold", "git-status-warm"] {
            self.time(row, |root| git::status(&root.join(trees::TRACKED)))?;
        }
        Ok(())
    }

    fn packages(&mut self) -> Result<()> {
        let packages = self.plan.packages;
        for row in ["modules-cold", "modules-warm"] {
            self.time(row, |root| {
                modules::resolve(&root.join(trees::PACKAGES), packages)
            })?;
        }
        Ok(())
    }

    fn large(&mut self) -> Result<()> {
        let (mib, operations) = (self.plan.large_mib, self.plan.random_operations);
        for threads in [1, 4] {
            let path = self.root.join(format!("large-{threads}"));
            let file = large::Large { path, mib, threads };
            self.time(&format!("write-{threads}"), |_| file.write())?;
            self.cold()?;
            for row in ["read", "reread"] {
                self.time(&format!("{row}-{threads}"), |_| file.read())?;
            }
            self.cold()?;
            self.time(&format!("random-read-{threads}"), |_| {
                file.read_random(operations)
            })?;
            self.cold()?;
            self.time(&format!("random-write-{threads}"), |_| {
                file.write_random(operations)
            })?;
            std::fs::remove_file(&file.path).context("cannot remove the large file")?;
        }
        Ok(())
    }
}
