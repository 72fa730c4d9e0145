//! A machine under test: a berth with a home of its own.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::options::{Engine, Setup};
use crate::processes::{MARK, Process, marked, wait_until};
use crate::program::{Finished, Program, end};

/// How long a start may take: several times what it takes emulated on a busy host.
pub const START_LIMIT: Duration = Duration::from_secs(420);

/// What every machine's configuration says: the tests' registry is on the host's loopback and speaks plain HTTP.
const CONFIG: &str = "docker:\n  daemon:\n    insecure-registries: [\"192.168.127.0/24\"]\n";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A berth with directories, machine and processes of its own; all of it ends when this is dropped.
pub struct Machine {
    setup: Setup,
    mark: String,
    dir: TempDir,
    /// What stands before every command of this machine, to run it elsewhere (`nsenter …`).
    prefix: Vec<OsString>,
    /// Environment on top of the machine's own.
    environment: Vec<(OsString, OsString)>,
    memory: &'static str,
    cpus: u8,
}

impl Machine {
    /// Makes the directories; nothing is started.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn new(setup: &Setup) -> Result<Machine> {
        // Short: sockets lie in it, and a socket's path is limited to 107 bytes.
        let dir = tempfile::Builder::new()
            .prefix("bt-")
            .tempdir()
            .context("cannot make a directory")?;
        let mark = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let machine = Machine {
            setup: setup.clone(),
            mark,
            dir,
            prefix: Vec::new(),
            environment: Vec::new(),
            memory: "1536MiB",
            cpus: setup.options.cpus,
        };
        for path in [
            machine.runtime_dir(),
            machine.home().join(".config/berth"),
            machine.home().join(".docker"),
        ] {
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        fs::set_permissions(machine.runtime_dir(), fs::Permissions::from_mode(0o700))
            .context("cannot make the runtime directory private")?;
        machine.write_config(CONFIG)?;
        machine.install_docker_plugins()?;
        Ok(machine)
    }

    /// Gives its guest this much memory, as `berth start --memory` takes it.
    #[must_use]
    pub fn with_memory(mut self, memory: &'static str) -> Machine {
        self.memory = memory;
        self
    }

    /// Gives its guest this many virtual CPUs, whatever the options of the run say.
    #[must_use]
    pub fn with_cpus(mut self, cpus: u8) -> Machine {
        self.cpus = cpus;
        self
    }

    /// Lets every command run behind this prefix, for example in another mount namespace.
    #[must_use]
    pub fn behind(mut self, prefix: Vec<OsString>) -> Machine {
        self.prefix = prefix;
        self
    }

    /// Sets an environment variable for every command.
    #[must_use]
    pub fn with_env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Machine {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// What is under test.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The directory everything of this machine is in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its user's home directory.
    pub fn home(&self) -> PathBuf {
        self.dir().join("home")
    }

    /// Where its data are (`docs/seams.md`, "Host paths").
    pub fn data_dir(&self) -> PathBuf {
        self.home().join(".local/share/berth/machines/default")
    }

    /// Where its logs are.
    pub fn state_dir(&self) -> PathBuf {
        self.home().join(".local/state/berth/machines/default")
    }

    /// Where its sockets are.
    pub fn socket_dir(&self) -> PathBuf {
        self.runtime_dir().join("berth/default")
    }

    /// The socket `docker` talks to.
    pub fn docker_socket(&self) -> PathBuf {
        self.socket_dir().join("docker.sock")
    }

    /// The socket of the daemon's HTTP interface.
    pub fn api_socket(&self) -> PathBuf {
        self.socket_dir().join("api.sock")
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.home().join(".config/berth/config.yaml")
    }

    /// Replaces the configuration.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config(&self, text: &str) -> Result<()> {
        fs::write(self.config_file(), text).context("cannot write the configuration")
    }

    fn runtime_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// Any program, in this machine's environment.
    pub fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Program {
        let mut program = Program::behind(&self.prefix, program)
            .env("HOME", self.home())
            .env("XDG_RUNTIME_DIR", self.runtime_dir())
            .env("BERTH_GUEST_DIR", &self.setup.guest_dir)
            .env(MARK, &self.mark);
        for foreign in [
            "XDG_CONFIG_HOME",
            "XDG_DATA_HOME",
            "XDG_STATE_HOME",
            "XDG_CACHE_HOME",
            "DOCKER_HOST",
            "DOCKER_CONTEXT",
            "DOCKER_CONFIG",
            "DOCKER_BUILDKIT",
            "BERTH_MACHINE",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "NO_PROXY",
            "http_proxy",
            "https_proxy",
            "no_proxy",
        ] {
            program = program.without_env(foreign);
        }
        for (name, value) in &self.environment {
            program = program.env(name, value);
        }
        program
    }

    /// `berth ARGUMENTS`.
    pub fn berth<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Program {
        self.program(&self.setup.berth).args(arguments)
    }

    /// `docker ARGUMENTS`, talking to this machine's socket.
    pub fn docker<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Program {
        let mut host = OsString::from("unix://");
        host.push(self.docker_socket());
        self.program(&self.setup.docker)
            .env("DOCKER_HOST", host)
            .args(arguments)
    }

    /// `berth start` with the engine under test, still to be run.
    pub fn start_command(&self) -> Program {
        let engine = self.setup.options.engine.to_string();
        let cpus = self.cpus.to_string();
        self.berth([
            "start",
            "--engine",
            &engine,
            "--cpus",
            &cpus,
            "--memory",
            self.memory,
        ])
        .limit(START_LIMIT)
    }

    /// Starts the machine, or sees that it runs.
    ///
    /// # Errors
    /// When it does not start, or docker does not answer after it.
    pub fn start(&self) -> Result<Finished> {
        let finished = self.start_command().run()?;
        if finished.code() != Some(0) {
            bail!("the machine did not start: {}", finished.describe());
        }
        self.docker(["version", "--format", "{{.Server.Version}}"])
            .ok()
            .context("`berth start` succeeded, but docker does not answer")?;
        Ok(finished)
    }

    /// Stops the machine.
    ///
    /// # Errors
    /// When that fails.
    pub fn stop(&self) -> Result<()> {
        self.berth(["stop"]).ok().map(drop)
    }

    /// `berth exec -- sh -c SCRIPT`: in the guest, beside dockerd.
    pub fn in_guest(&self, script: &str) -> Program {
        self.berth(["exec", "--", "/bin/sh", "-c", script])
    }

    /// What `berth status --json` says.
    ///
    /// # Errors
    /// When it fails otherwise than with "not running", or does not print JSON.
    pub fn status(&self) -> Result<Value> {
        let finished = self.berth(["status", "--json"]).run()?;
        if !matches!(finished.code(), Some(0 | 3)) {
            bail!("{}", finished.describe());
        }
        serde_json::from_slice(&finished.stdout).with_context(|| format!("not JSON: {}", finished.describe()))
    }

    /// Waits until `berth status` says by its exit code that the machine does not run.
    ///
    /// # Errors
    /// When it goes on running.
    pub fn wait_stopped(&self, limit: Duration) -> Result<()> {
        wait_until("berth status to say that the machine is stopped", limit, || {
            Ok(self.berth(["status"]).run()?.code() == Some(3))
        })
    }

    /// All processes of this machine, those of commands that a test runs included.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn processes(&self) -> Result<Vec<Process>> {
        marked(&self.mark)
    }

    /// The daemon.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn daemon(&self) -> Result<Process> {
        let berth = &self.setup.berth;
        // Commands that a test runs are the same program, but not detached.
        self.only(
            |process| process.program.as_ref() == Some(berth) && process.leads_session,
            "daemon",
        )
    }

    /// The process that runs the virtual CPUs: QEMU, or the daemon itself on the kvm engine.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn vmm(&self) -> Result<Process> {
        match self.setup.options.engine {
            Engine::Kvm => self.daemon(),
            Engine::Qemu => self.only(|process| process.name.starts_with("qemu-system"), "QEMU"),
        }
    }

    fn only(&self, is: impl Fn(&Process) -> bool, what: &str) -> Result<Process> {
        let all = self.processes()?;
        let mut found: Vec<_> = all.iter().filter(|process| is(process)).cloned().collect();
        match found.pop() {
            Some(process) if found.is_empty() => Ok(process),
            _ => bail!("expected exactly one {what} among the machine's processes: {all:?}"),
        }
    }

    /// The ends of the machine's logs, for the message of a failed test.
    pub fn diagnostics(&self) -> String {
        let mut text = String::new();
        for name in ["daemon.log", "console.log"] {
            let path = self.state_dir().join(name);
            let content = fs::read(&path).map_or_else(
                |error| format!("(cannot read {}: {error})", path.display()),
                |bytes| end(&String::from_utf8_lossy(&bytes)),
            );
            text.push_str(&format!("--- {name}\n{content}\n"));
        }
        let processes = self
            .processes()
            .map_or_else(|error| error.to_string(), |all| format!("{all:?}"));
        text.push_str(&format!("--- processes\n{processes}\n"));
        text
    }

    /// Leaves the machine's directory where it is, for somebody to look at, and returns it.
    pub fn keep(&mut self) -> &Path {
        self.dir.disable_cleanup(true);
        self.dir.path()
    }

    /// Deletes the machine and checks that nothing of it is left.
    ///
    /// # Errors
    /// When deleting fails or leaves something.
    pub fn delete(&self) -> Result<()> {
        self.berth(["delete", "--force"]).ok()?;
        if self.data_dir().exists() {
            bail!("`berth delete` left {}", self.data_dir().display());
        }
        let left = self.processes()?;
        if !left.is_empty() {
            bail!("`berth delete` left processes: {left:?}");
        }
        Ok(())
    }

    fn install_docker_plugins(&self) -> Result<()> {
        let dir = self.home().join(".docker/cli-plugins");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for plugin in ["docker-buildx", "docker-compose"] {
            let found = self
                .setup
                .docker_plugins
                .iter()
                .map(|dir| dir.join(plugin))
                .find(|path| path.is_file());
            if let Some(found) = found {
                symlink(&found, dir.join(plugin))
                    .with_context(|| format!("cannot link {}", found.display()))?;
            }
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Tests that care delete the machine themselves; here it is about leaving nothing, whatever state it is in.
        if self.data_dir().exists() || self.socket_dir().exists() {
            drop(
                self.berth(["delete", "--force"])
                    .limit(Duration::from_secs(120))
                    .run(),
            );
        }
        for process in self.processes().unwrap_or_default() {
            if let Err(error) = process.kill() {
                eprintln!("{error:#}");
            }
        }
    }
}
