//! Namespaces of a test's own: for a full disk, a missing device, low limits and the like, seen by one machine only.

use std::ffi::OsString;

use anyhow::{Context, Result};
use rustix::process::geteuid;

use crate::program::{Program, Running};

/// A process that holds namespaces open; they end with it.
pub struct Namespace {
    holder: Running,
    user: bool,
    network: bool,
}

impl Namespace {
    /// Makes a mount namespace and runs `script` in it, as root there (root outside, or mapped to this user).
    ///
    /// # Errors
    /// When the host does not allow it or the script fails.
    pub fn mounts(script: &str) -> Result<Namespace> {
        Self::make(&["--mount"], script)
    }

    /// Makes a network namespace without any network, not even a loopback that is up.
    ///
    /// # Errors
    /// When the host does not allow it.
    pub fn without_network() -> Result<Namespace> {
        Self::without_network_but("true")
    }

    /// Makes a network namespace as [`Namespace::without_network`] does, and runs `script` in it.
    ///
    /// # Errors
    /// When the host does not allow it or the script fails.
    pub fn without_network_but(script: &str) -> Result<Namespace> {
        Self::make(&["--mount", "--net"], script)
    }

    /// Makes a user namespace, also for root, whose limits for users are its own, and runs `script` in it.
    ///
    /// # Errors
    /// When the host does not allow it or the script fails.
    pub fn user(script: &str) -> Result<Namespace> {
        Self::make_as(true, &["--mount"], script)
    }

    fn make(kinds: &[&str], script: &str) -> Result<Namespace> {
        Self::make_as(!geteuid().is_root(), kinds, script)
    }

    /// `user`: in a user namespace.
    fn make_as(user: bool, kinds: &[&str], script: &str) -> Result<Namespace> {
        let mut program = Program::new("unshare");
        if user {
            program = program.args(["--user", "--map-root-user"]);
        }
        let holder = program
            .args(kinds)
            .args(["sh", "-ec", &format!("{script}\necho ready\nexec sleep 100000")])
            .spawn()
            .context("cannot make a namespace; on Debian: apt install util-linux")?;
        holder
            .prints("ready")
            .context("a namespace could not be set up")?;
        Ok(Namespace {
            holder,
            user,
            network: kinds.contains(&"--net"),
        })
    }

    /// What to put before a command that is to run in it.
    pub fn prefix(&self) -> Vec<OsString> {
        let mut prefix: Vec<OsString> = vec![
            "nsenter".into(),
            "--target".into(),
            self.holder.pid().to_string().into(),
        ];
        if self.user {
            prefix.extend(["--user".into(), "--preserve-credentials".into()]);
        }
        prefix.push("--mount".into());
        if self.network {
            prefix.push("--net".into());
        }
        prefix.push("--".into());
        prefix
    }

    /// A command in it.
    pub fn run(&self, script: &str) -> Program {
        Program::behind(&self.prefix(), "sh").args(["-ec", script])
    }
}
