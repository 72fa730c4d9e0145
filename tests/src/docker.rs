//! Short words for what many cases do with the docker client.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::base_image::IMAGE;
use crate::machine::Machine;
use crate::processes::wait_until;
use crate::program::Program;

/// How long a state may take to come after the command that asked for it.
pub const STATE_LIMIT: Duration = Duration::from_secs(120);

/// `docker run --rm OPTIONS base-image sh -c SCRIPT`.
pub fn run_script(machine: &Machine, options: &[&str], script: &str) -> Program {
    machine
        .docker(["run", "--rm"])
        .args(options)
        .args([IMAGE, "sh", "-c", script])
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
