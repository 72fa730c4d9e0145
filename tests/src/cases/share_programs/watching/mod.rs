//! Programs in containers that watch a directory whose files are edited on the host: the libraries that most of them stand on,
//! and the servers that developers leave running while they edit.
//!
//! All of them are left to watch by inotify. What they are told is what they themselves print.

mod libraries;
mod servers;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use super::Shared;
use crate::api::sync;
use crate::docker::{Conversation, STATE_LIMIT};
use crate::machine::Machine;
use crate::processes::wait_until;
use crate::suite::Context;
pub(super) use libraries::{
    chokidar_is_told_of_edits_on_the_host, watchdog_is_told_of_edits_on_the_host,
    watchfiles_is_told_of_edits_on_the_host,
};
pub(super) use servers::{
    nodemon_restarts_on_edits_on_the_host, vite_replaces_modules_edited_on_the_host,
    watchexec_restarts_a_command_on_edits_on_the_host, webpack_bundles_anew_on_edits_on_the_host,
};

/// Prints a line for each directory and file that a program of the container watches by inotify.
const WATCHES: &str = "for file in /proc/[0-9]*/fdinfo/*; do \
    while read -r word rest; do if [ $word = inotify ]; then echo \"$rest\"; fi; done < $file; done 2>/dev/null; exit 0";

/// A program in a container, working in the directory and printing lines.
struct Watching {
    machine: Arc<Machine>,
    name: String,
    container: Conversation,
    /// What it has said, for the message of a failure.
    heard: Vec<String>,
}

impl Watching {
    /// Starts it and waits until it says that it watches; it is to do so by inotify.
    fn start(shared: &Shared, name: String, command: &[&str], ready: &str) -> Result<Watching> {
        let mut watching = Self::run(shared, name, command)?;
        watching.says(&[ready])?;
        let watches = watching.watches()?;
        ensure!(watches > 0, "{} does not watch by inotify", watching.name);
        Ok(watching)
    }

    /// Starts it.
    fn run(shared: &Shared, name: String, command: &[&str]) -> Result<Watching> {
        let run = shared.run(&["-i", "--name", &name]).args(command);
        Ok(Watching {
            machine: Arc::clone(&shared.machine),
            container: Conversation::start(&shared.machine, name.clone(), run)?,
            name,
            heard: Vec::new(),
        })
    }

    /// Waits until it watches so many directories and files, for what says less about that.
    fn comes_to_watch(&self, count: usize) -> Result<()> {
        let what = format!("{} to watch {count} directories by inotify", self.name);
        wait_until(&what, STATE_LIMIT, || Ok(self.watches()? >= count))
    }

    /// How many files and directories it watches by inotify.
    fn watches(&self) -> Result<usize> {
        let exec = self.machine.docker(["exec", &self.name, "sh", "-c", WATCHES]);
        let lines = exec.ok().context("cannot ask what it watches")?;
        Ok(lines.lines().count())
    }

    /// Its next line.
    fn line(&mut self) -> Result<String> {
        let line = self.container.answer().with_context(|| {
            let heard = self.heard.join("\n  ");
            format!("so far it has said:\n  {heard}\n")
        })?;
        self.heard.push(line.clone());
        Ok(line)
    }

    /// Waits until it has said all these lines, in whatever order, and others between them.
    fn says(&mut self, expected: &[&str]) -> Result<()> {
        let mut missing = expected.to_vec();
        while !missing.is_empty() {
            let line = self.line().with_context(|| format!("waiting for {missing:?}"))?;
            missing.retain(|expected| line != *expected);
        }
        Ok(())
    }

    /// Waits until it has said `told`, and then answers `path` by what is expected.
    ///
    /// What it is told of may be half of an edit, or the other half of the one before; then it is to be told again.
    fn serves(&mut self, told: &str, path: &str, expected: &str) -> Result<()> {
        self.says(&[told])?;
        loop {
            // The other half of the edit must not be news any more when the next edit is made: that may be dropped then.
            sync(&self.machine)?;
            self.container.tell(path)?;
            let mut told_again = false;
            let answer = loop {
                let line = self.line()?;
                if line.starts_with("got ") {
                    break line;
                }
                told_again |= line == told;
            };
            if answer == expected {
                return Ok(());
            }
            if !told_again {
                self.says(&[told])
                    .with_context(|| format!("{path}: expected {expected:?}, found {answer:?}"))?;
            }
        }
    }
}

/// The directory, with these files in it.
fn directory(context: &Context, stem: &str, files: &[(&str, &str)]) -> Result<Option<Shared>> {
    let Some(shared) = Shared::new(context, stem)? else {
        return Ok(None);
    };
    for (name, text) in files {
        let path = shared.dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        write(&path, text)?;
    }
    Ok(Some(shared))
}

/// Writes a file in place.
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Puts another file in its place, as editors do that must not leave half of it.
fn save(path: &Path, text: &str) -> Result<()> {
    let mut other = path.as_os_str().to_owned();
    other.push(".new");
    write(Path::new(&other), text)?;
    fs::rename(&other, path).with_context(|| format!("cannot replace {}", path.display()))
}
