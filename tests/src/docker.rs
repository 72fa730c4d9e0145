//! Short words for what many cases do with the docker client.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::base_image::IMAGE;
use crate::machine::Machine;
use crate::processes::wait_until;
use crate::program::{Program, Running};

/// How long a state may take to come after the command that asked for it.
pub const STATE_LIMIT: Duration = Duration::from_secs(120);

/// `docker run --rm OPTIONS base-image sh -c SCRIPT`.
pub fn run_script(machine: &Machine, options: &[&str], script: &str) -> Program {
    machine
        .docker(["run", "--rm"])
        .args(options)
        .args([IMAGE, "sh", "-c", script])
}

/// The shell's command that writes this many MiB from `/dev/FROM` to a file; busybox's `head -c` would do it byte by byte.
pub fn write_mib(from: &str, to: &str, mib: u64) -> String {
    format!("dd if=/dev/{from} of={to} bs=1M count={mib} 2> /dev/null")
}

/// What `docker inspect` says of one object.
///
/// # Errors
/// When there is none.
pub fn inspect(machine: &Machine, name: &str) -> Result<Value> {
    let text = machine.docker(["inspect", name]).ok()?;
    let mut all: Vec<Value> = serde_json::from_str(&text).context("docker inspect did not print JSON")?;
    all.pop().context("docker inspect printed an empty list")
}

/// Checks that two things are equal.
///
/// # Errors
/// When they are not; the message has both.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<()> {
    if found != expected {
        bail!("{what}: expected {expected:?}, found {found:?}");
    }
    Ok(())
}

/// Checks that a text has a part.
///
/// # Errors
/// When it does not.
pub fn has(what: &str, text: &str, part: &str) -> Result<()> {
    if !text.contains(part) {
        bail!("{what}: expected {part:?} in:\n{text}");
    }
    Ok(())
}

/// A container that is removed, running or not, when this is dropped.
pub struct Container {
    machine: Arc<Machine>,
    name: String,
}

impl Container {
    /// `docker run -d --name NAME OPTIONS base-image COMMAND`.
    ///
    /// # Errors
    /// When docker refuses.
    pub fn start(
        machine: &Arc<Machine>,
        name: String,
        options: &[&str],
        command: &[&str],
    ) -> Result<Container> {
        Self::of(IMAGE, machine, name, options, command)
    }

    /// As [`Container::start`], of another image.
    ///
    /// # Errors
    /// When docker refuses.
    pub fn of(
        image: &str,
        machine: &Arc<Machine>,
        name: String,
        options: &[&str],
        command: &[&str],
    ) -> Result<Container> {
        machine
            .docker(["run", "-d", "--name", &name])
            .args(options)
            .arg(image)
            .args(command)
            .ok()?;
        Ok(Container {
            machine: Arc::clone(machine),
            name,
        })
    }

    /// One that does nothing until it is told to end, and then ends at once.
    ///
    /// # Errors
    /// When docker refuses.
    pub fn idle(machine: &Arc<Machine>, name: String, options: &[&str]) -> Result<Container> {
        Self::start(
            machine,
            name,
            options,
            &[
                "sh",
                "-c",
                "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done",
            ],
        )
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `docker exec NAME sh -c SCRIPT`.
    pub fn exec(&self, script: &str) -> Program {
        self.machine.docker(["exec", &self.name, "sh", "-c", script])
    }

    /// What `docker inspect` says at this JSON pointer.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn at(&self, pointer: &str) -> Result<Value> {
        Ok(inspect(&self.machine, &self.name)?
            .pointer(pointer)
            .cloned()
            .unwrap_or(Value::Null))
    }

    /// Waits until docker inspect says this.
    ///
    /// # Errors
    /// When it does not in [`STATE_LIMIT`].
    pub fn wait_for(&self, pointer: &str, expected: &Value) -> Result<()> {
        let mut found = Value::Null;
        wait_until(
            &format!("{pointer} of {} to be {expected}", self.name),
            STATE_LIMIT,
            || {
                found = self.at(pointer)?;
                Ok(found == *expected)
            },
        )
        .with_context(|| format!("last it was {found}"))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may be gone already, or the machine may.
        drop(
            self.machine
                .docker(["rm", "-f", "-v", &self.name])
                .limit(Duration::from_secs(60))
                .run(),
        );
    }
}

/// A container that is told something by lines, and answers by lines. It is removed when this is dropped.
pub struct Conversation {
    machine: Arc<Machine>,
    name: String,
    running: Running,
    /// How much of what it has answered is known.
    heard: usize,
}

impl Conversation {
    /// Runs `command`, which is a `docker run -i --name NAME …`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(machine: &Arc<Machine>, name: String, command: Program) -> Result<Conversation> {
        Ok(Conversation {
            machine: Arc::clone(machine),
            name,
            running: command.piped().spawn()?,
            heard: 0,
        })
    }

    /// Tells it something, without waiting for the answer.
    ///
    /// # Errors
    /// When it listens no more.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        self.running.write(format!("{line}\n").as_bytes())
    }

    /// Its next line.
    ///
    /// # Errors
    /// When it ends instead, or says nothing in [`STATE_LIMIT`].
    pub fn answer(&mut self) -> Result<String> {
        let end = self
            .running
            .stdout
            .wait_for("\n", self.heard, STATE_LIMIT)
            .with_context(|| {
                let errors = self.running.stderr.bytes();
                format!("{}: {}", self.name, String::from_utf8_lossy(&errors))
            })?;
        let bytes = self.running.stdout.part(self.heard, end);
        self.heard = end;
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }

    /// Tells it something and expects an answer.
    ///
    /// # Errors
    /// When there is another one, or none.
    pub fn does(&mut self, line: &str, expected: &str) -> Result<()> {
        self.tell(line)?;
        let found = self.answer()?;
        same(
            &format!("{} was told {line:?}", self.name),
            &found.as_str(),
            &expected,
        )
    }

    /// Ends the container as a power cut would.
    ///
    /// # Errors
    /// When it has ended before.
    pub fn kill(&self) -> Result<()> {
        self.machine.docker(["kill", &self.name]).ok().map(drop)
    }

    /// Ends it as [`Conversation::kill`] does and says with which code its client ended.
    ///
    /// # Errors
    /// When it has ended before, or its client does not end.
    pub fn killed(&mut self) -> Result<Option<i32>> {
        self.kill()?;
        self.running.ends(STATE_LIMIT)
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        // It is gone already after a kill, and ends by itself when its stdin does.
        self.running.close_stdin();
        drop(
            self.machine
                .docker(["rm", "--force", &self.name])
                .limit(Duration::from_secs(60))
                .run(),
        );
    }
}
