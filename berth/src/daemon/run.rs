//! The daemon's own life: from taking its locks to letting them go.

use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use super::launch::{FirstWord, remove_sockets};
use super::lock::Lock;
use super::{pid_file, signals};
use crate::api::server;
use crate::config::Config;
use crate::exit::{Code, Failure, chain, code_of};
use crate::host::Host;
use crate::logs::{RotatingFile, SharedLog};
use crate::machine::handle::Handle;
use crate::machine::record::MachineRecord;
use crate::machine::settings::{Chosen, Settings, under_profile};
use crate::machine::supervisor::{Supervisor, Surroundings};
use crate::name::MachineName;
use crate::paths::Paths;
use crate::process::Children;

/// How long clients get to read the end of what they are being told when the daemon ends.
const DRAIN: Duration = Duration::from_secs(2);
/// Threads for everything the daemon does. It mostly waits.
const WORKERS: usize = 2;

/// Runs the machine `name` until it is stopped or fails. Says on standard output, in one line, when it listens or why it
/// cannot; from then on it only speaks to its log.
pub fn run(name: &MachineName, chosen: &Chosen) -> Result<()> {
    match Daemon::begin(name, chosen) {
        Ok(daemon) => {
            first_word(&FirstWord::Ready);
            daemon.go_on()
        }
        Err(error) => {
            first_word(&FirstWord::Failed {
                message: chain(&error),
                code: code_of(&error).number(),
            });
            Err(Failure::silent(code_of(&error)))
        }
    }
}

fn first_word(word: &FirstWord) {
    let mut out = std::io::stdout();
    // Whoever started the daemon may have gone; that is no reason not to go on.
    let _ = serde_json::to_writer(&mut out, word);
    let _ = writeln!(out);
    let _ = out.flush();
    // From here on standard output is where standard error is: the log.
    let _ = rustix::stdio::dup2_stdout(std::io::stderr().as_fd());
}

/// A daemon that has everything it needs to run its machine. The locks are let go last.
struct Daemon {
    runtime: tokio::runtime::Runtime,
    machine: Arc<Handle>,
    supervisor: Supervisor,
    api: StdUnixListener,
    config_file: PathBuf,
    grace: Duration,
    /// Held until the process is gone: whoever waits for a lock waits for all that the process has.
    _disk_lock: ManuallyDrop<Lock>,
    _lock: ManuallyDrop<Lock>,
}

impl Daemon {
    fn begin(name: &MachineName, chosen: &Chosen) -> Result<Daemon> {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let all = Paths::from_env()?;
        let paths = all.machine(name);
        paths.make_runtime_dir()?;
        paths.make_lasting_dirs()?;
        let lock = Lock::try_take(&paths.daemon_lock())?
            .with_context(|| format!("the machine {name} has a daemon already"))?;
        let disk_lock = Lock::try_take(&paths.data_dir.join("disk.lock"))?.with_context(|| {
            format!(
                "the machine {name} is run by a daemon with another runtime directory; set $XDG_RUNTIME_DIR as it was when \
                 that was started"
            )
        })?;

        let config = Config::load(&all.config_file()).map_err(|error| Failure::wrap(Code::Usage, error))?;
        start_log(&paths.daemon_log(), config.log_level())
            .with_context(|| format!("cannot write the daemon's log {}", paths.daemon_log().display()))?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), machine = %name, pid = std::process::id(), "daemon started");

        let (children, ended) = Children::take_over(paths.children_record())
            .context("cannot end what a killed daemon left running")?;
        if !ended.is_empty() {
            tracing::warn!(?ended, "ended what a killed daemon left running");
        }
        remove_sockets(&paths).context("cannot remove what a killed daemon left")?;
        pid_file::write(&paths.pid_file()).context("cannot record the daemon's process")?;

        let (settings, config) = settle(&paths.record(), chosen, &config)?;

        raise_descriptor_limit();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("berth")
            .enable_all()
            .build()
            .context("cannot start the daemon's threads")?;
        let api = StdUnixListener::bind(paths.api_socket())
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .with_context(|| format!("cannot listen on {}", paths.api_socket().display()))?;
        let config_file = all.config_file();
        let (machine, commands) = Handle::new(name.clone(), paths, settings, &config);
        let machine = Arc::new(machine);
        let grace = config.stop_timeout();
        let supervisor = Supervisor::new(
            Arc::clone(&machine),
            commands,
            Surroundings {
                config,
                chosen: chosen.clone(),
                guest_dir: all.guest_dir,
                children,
            },
        );
        Ok(Daemon {
            runtime,
            machine,
            supervisor,
            api,
            config_file,
            grace,
            _disk_lock: ManuallyDrop::new(disk_lock),
            _lock: ManuallyDrop::new(lock),
        })
    }

    fn go_on(self) -> Result<()> {
        let machine = Arc::clone(&self.machine);
        let result = self.runtime.block_on(async {
            signals::listen(Arc::clone(&machine), self.grace).context("cannot listen to signals")?;
            let listener = UnixListener::from_std(self.api).context("cannot serve the daemon's API")?;
            let (stop, stopped) = watch::channel(false);
            let api = tokio::spawn(server::serve(
                listener,
                Arc::clone(&machine),
                self.config_file,
                self.grace,
                stopped,
            ));
            self.supervisor.run().await;
            machine.events.close();
            stop.send_replace(true);
            match tokio::time::timeout(DRAIN, api).await {
                Ok(Ok(Err(error))) => Err(error).context("the daemon's API failed"),
                // Somebody who follows a log would stay for ever.
                Ok(Ok(Ok(())) | Err(_)) | Err(_) => Ok(()),
            }
        });
        self.runtime.shutdown_timeout(DRAIN);
        if let Err(error) = remove_sockets(&machine.paths) {
            tracing::warn!(%error, "could not remove the daemon's sockets");
        }
        if let Err(error) = &result {
            tracing::error!("{}", chain(error));
        }
        tracing::info!("daemon ended");
        result
    }
}

/// What the machine with this record is started with, and the configuration as its profile has it. From now on it exists; the new choices are only remembered when its
/// start is accepted.
fn settle(record: &Path, chosen: &Chosen, config: &Config) -> Result<(Settings, Config)> {
    let before = MachineRecord::load(record)?;
    let new = before.is_none();
    let before = before.unwrap_or_else(|| MachineRecord::new(Chosen::default()));
    let (both, host) = (chosen.or(&before.chosen), Host::detect());
    let wrong = |error| Failure::wrap(Code::Usage, error);
    let settings = Settings::resolve(&both, config, &host).map_err(wrong)?;
    let config = under_profile(&both, config, &host).map_err(wrong)?;
    if new {
        before.store(record)?;
    }
    Ok((settings, config))
}

fn start_log(path: &Path, level: &str) -> Result<()> {
    let log = SharedLog::new(RotatingFile::open(path.to_owned())?);
    // `BERTH_LOG` takes `tracing` filters, for the developers.
    let filter = EnvFilter::try_from_env("BERTH_LOG").or_else(|_| EnvFilter::try_new(level))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || log.clone())
        .with_ansi(false)
        .with_timer(SystemTime)
        .try_init()
        .map_err(|error| anyhow::anyhow!(error))?;
    // A panic goes where everything else goes, and then ends the process (release builds abort).
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tracing::error!("panic: {info}");
        before(info);
    }));
    Ok(())
}

/// Hundreds of connections at once take several descriptors each, and the usual soft limit is 1024.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "could not raise the limit of open descriptors");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EngineChoice;

    #[test]
    fn a_machine_exists_before_its_start_is_accepted_and_its_choices_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.json");
        let chosen = |engine, cpus| Chosen {
            engine,
            cpus,
            ..Chosen::default()
        };
        let remembered = || MachineRecord::load(&path).unwrap().unwrap().chosen;

        let (settings, _) =
            settle(&path, &chosen(Some(EngineChoice::Kvm), None), &Config::default()).unwrap();
        assert_eq!(settings.engine, EngineChoice::Kvm);
        assert_eq!(remembered(), Chosen::default());

        MachineRecord::remember(&path, &chosen(Some(EngineChoice::Qemu), None)).unwrap();
        let (settings, _) = settle(&path, &chosen(None, Some(1)), &Config::default()).unwrap();
        assert_eq!((settings.engine, settings.cpus), (EngineChoice::Qemu, 1));
        assert_eq!(remembered(), chosen(Some(EngineChoice::Qemu), None));
    }
}
