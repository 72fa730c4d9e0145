//! dockerd and its containerd: configured, started, watched, started again, stopped.

mod backoff;
pub(crate) mod config;
mod containerd;
mod leftovers;
pub(crate) mod log_file;
mod ready;
mod runc;

use std::io::{self, PipeWriter};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use protocol::boot::{GuestEvent, MachineConfig};
use protocol::control::{DockerState, DockerStatus};
use rustix::process::Signal;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use self::backoff::Backoff;
use self::containerd::Containerd;
use self::log_file::Position;
use crate::console::{error, notice, warning};
use crate::host_link::Events;
use crate::lock::lock;
use crate::reaper::{Child, Reaper, describe};
use crate::{certificates, data_disk, etc_files, tool};

/// How long a dockerd may take to answer before the user is told that something is wrong.
const SLOW: Duration = Duration::from_secs(120);

/// How long a killed process may take to be gone; more is a process stuck in the kernel.
const KILLED: Duration = Duration::from_secs(10);

/// dockerd, seen from the rest of guest-init.
#[derive(Debug)]
pub(crate) struct Docker {
    status: Mutex<DockerStatus>,
    log: Mutex<Option<watch::Receiver<Position>>>,
    stop: watch::Sender<Option<Duration>>,
    stopped: watch::Sender<bool>,
    runc: Mutex<Option<runc::Sealed>>,
}

impl Docker {
    /// A dockerd that is not started yet.
    pub(crate) fn new() -> Arc<Docker> {
        Arc::new(Docker {
            status: Mutex::new(DockerStatus {
                state: DockerState::Waiting,
                version: None,
                pid: None,
                restarts: 0,
            }),
            log: Mutex::new(None),
            stop: watch::Sender::new(None),
            stopped: watch::Sender::new(false),
            runc: Mutex::new(None),
        })
    }

    /// Where it is in its life.
    pub(crate) fn status(&self) -> DockerStatus {
        lock(&self.status).clone()
    }

    /// How far its log is written; none before the log is there.
    pub(crate) fn log(&self) -> Option<watch::Receiver<Position>> {
        lock(&self.log).clone()
    }

    /// Asks it to stop its containers and itself within `grace`, then kills it. Returns when it is gone; at once when
    /// it was never started.
    pub(crate) async fn stop(&self, grace: Duration) {
        if self.status().state == DockerState::Waiting {
            return;
        }
        self.stop.send_replace(Some(grace));
        let mut stopped = self.stopped.subscribe();
        // An error would mean that we are gone ourselves.
        let _ = timeout(grace + 2 * KILLED, stopped.wait_for(|stopped| *stopped)).await;
    }

    /// Makes the copy of runc, if it is not there yet. Blocks.
    fn seal_runc(&self) {
        let mut sealed = lock(&self.runc);
        if sealed.is_none() {
            match runc::seal() {
                Ok(copy) => *sealed = Some(copy),
                Err(e) => warning!("containers will start slower: {e:#}"),
            }
        }
    }

    fn update(&self, change: impl FnOnce(&mut DockerStatus)) {
        change(&mut lock(&self.status));
    }
}

/// Configures dockerd, starts it and keeps it running in a task of its own.
pub(crate) fn start(
    docker: Arc<Docker>,
    reaper: Arc<Reaper>,
    events: Events,
    config: &MachineConfig,
) -> anyhow::Result<()> {
    let gateway = etc_files::host_gateway(config.network.as_ref());
    config::write(Path::new(config::FILE), gateway, &config.docker)?;
    let trust = certificates::write(Path::new(etc_files::DIRECTORY), &config.ca_certificates)?;
    let (reader, output) = io::pipe().context("cannot make a pipe for dockerd's output")?;
    let position =
        log_file::start(reader).with_context(|| format!("cannot open dockerd's log {}", log_file::PATH))?;
    *lock(&docker.log) = Some(position);
    docker.update(|status| status.state = DockerState::Starting);
    let containerd = containerd::start(
        reaper.clone(),
        output
            .try_clone()
            .context("cannot copy the pipe for containerd's output")?,
        docker.stop.subscribe(),
        trust.clone(),
    )?;
    let supervisor = Supervisor {
        docker,
        reaper,
        events,
        output,
        trust,
        containerd,
        backoff: Backoff::default(),
    };
    tokio::spawn(supervisor.run());
    Ok(())
}

struct Supervisor {
    docker: Arc<Docker>,
    reaper: Arc<Reaper>,
    events: Events,
    output: PipeWriter,
    trust: Option<PathBuf>,
    containerd: Containerd,
    backoff: Backoff,
}

impl Drop for Supervisor {
    /// Also when the task panics: whoever waits for the stop must not wait for ever.
    fn drop(&mut self) {
        self.docker.update(|status| {
            status.state = DockerState::Stopping;
            status.pid = None;
        });
        self.docker.stopped.send_replace(true);
    }
}

impl Supervisor {
    async fn run(mut self) {
        self.keep_running().await;
        self.containerd.stop().await;
    }

    async fn keep_running(&mut self) {
        let mut stop = self.docker.stop.subscribe();
        loop {
            let started = Instant::now();
            let ended = self.run_once(&mut stop).await;
            let Some(how) = ended else {
                return;
            };
            let delay = self.backoff.after(started.elapsed());
            self.report_exit(&how, delay);
            tokio::select! {
                () = sleep(delay) => {}
                _ = stop.wait_for(Option::is_some) => return,
            }
        }
    }

    /// Runs dockerd until it ends. Returns how it ended, or nothing when it was stopped on purpose.
    async fn run_once(&self, stop: &mut watch::Receiver<Option<Duration>>) -> Option<String> {
        leftovers::remove();
        tokio::select! {
            listening = self.containerd.listening() => {
                if let Err(e) = listening {
                    return Some(format!("it was not started, because containerd cannot be watched: {e}"));
                }
            }
            _ = stop.wait_for(Option::is_some) => return None,
        }
        let mut child = match self.spawn() {
            Ok(child) => child,
            Err(e) => return Some(format!("it could not be started: {e}")),
        };
        self.docker.update(|status| {
            status.state = DockerState::Starting;
            status.pid = Some(child.pid());
        });
        notice!("dockerd started, process {}", child.pid());
        self.events.send(GuestEvent::DockerStarting);

        // Dropped with this function, which ends the task that watches for the answer.
        let (_running, gone) = oneshot::channel::<()>();
        tokio::spawn(watch_for_answer(
            self.docker.clone(),
            self.events.clone(),
            child.pid(),
            gone,
        ));
        let asked_to_stop = tokio::select! {
            status = child.wait() => return Some(self.how_it_ended(status)),
            grace = stop.wait_for(Option::is_some) => grace.ok().and_then(|grace| *grace),
        };
        self.docker.update(|status| status.state = DockerState::Stopping);
        stop_child(&mut child, asked_to_stop.unwrap_or_default()).await;
        None
    }

    fn spawn(&self) -> io::Result<Child> {
        let mut command = Command::new("dockerd");
        command
            .args(["--config-file", config::FILE])
            .stdin(Stdio::null())
            .stdout(self.output.try_clone()?)
            .stderr(self.output.try_clone()?);
        as_service(&mut command, self.trust.as_deref());
        self.reaper.spawn(&mut command)
    }

    fn how_it_ended(&self, status: ExitStatus) -> String {
        let how = describe(status);
        match log_file::last_line(Path::new(log_file::PATH)) {
            // A signal came from outside; the log has nothing to say about it.
            Some(line) if status.code().is_some() => format!("{how}; the last line of its log: {line}"),
            _ => how,
        }
    }

    fn report_exit(&self, how: &str, delay: Duration) {
        error!("dockerd ended: {how}; next try in {} ms", delay.as_millis());
        self.docker.update(|status| {
            status.state = DockerState::Restarting;
            status.pid = None;
            status.restarts += 1;
        });
        self.events.send(GuestEvent::DockerExited {
            status: how.to_owned(),
            restart_in_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
        });
        if data_disk::is_read_only() {
            let message = "the data disk has become read-only because its file system has errors (`berth logs --source \
                           console` has the kernel's words); it is checked and repaired when the machine is restarted"
                .to_owned();
            warning!("{message}");
            self.events.send(GuestEvent::Warning { message });
        }
    }
}

/// Gives a program the surroundings of a service: a clean environment, a session of its own, and a low rank with the
/// out-of-memory killer. `trust` is a file with the certificates it trusts, when those of the image are not all.
fn as_service(command: &mut Command, trust: Option<&Path>) {
    let trust = trust.map(|file| (certificates::VARIABLE, file));
    command
        .env_clear()
        .env("PATH", format!("{}:{}", runc::DIRECTORY, tool::PATH))
        .env("HOME", "/root")
        .envs(trust)
        .current_dir("/");
    // SAFETY: the closure runs between fork and exec and makes only system calls (setsid, open, write, close) on a
    // constant path and a constant value; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            spare_from_oom_killer();
            Ok(())
        });
    }
}

/// dockerd and its containerd are what everything depends on; containers, whose value runc sets back, go first.
fn spare_from_oom_killer() {
    use rustix::fs::{Mode, OFlags, open};

    let opened = open(
        c"/proc/self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    // Without it dockerd runs as well, only less protected.
    if let Ok(file) = opened {
        let _ = rustix::io::write(file, b"-500");
    }
}

/// Reports the dockerd with process id `pid` as ready once it answers; ends when it is `gone`.
async fn watch_for_answer(docker: Arc<Docker>, events: Events, pid: u32, gone: oneshot::Receiver<()>) {
    let slow = async {
        sleep(SLOW).await;
        let message = format!(
            "dockerd has not answered for {} seconds; it may still be starting, its log says more",
            SLOW.as_secs()
        );
        warning!("{message}");
        events.send(GuestEvent::Warning { message });
        std::future::pending::<()>().await;
    };
    let answer = tokio::select! {
        answer = ready::wait(Path::new(config::SOCKET)) => answer,
        () = slow => return,
        _ = gone => return,
    };
    let version = match answer {
        Ok(version) => version,
        Err(e) => return error!("cannot watch for dockerd's socket: {e}"),
    };
    let mut fresh = false;
    docker.update(|status| {
        // Not when it ended, or is being stopped, in the meantime.
        if status.pid == Some(pid) && status.state == DockerState::Starting {
            status.state = DockerState::Ready;
            status.version = Some(version.clone());
            fresh = true;
        }
    });
    if fresh {
        notice!("dockerd {version} answers");
        events.send(GuestEvent::DockerReady { version });
        // Not earlier: a start is not to wait for it.
        tokio::task::spawn_blocking(move || docker.seal_runc());
    }
}

async fn stop_child(child: &mut Child, grace: Duration) {
    if let Err(e) = child.handle().signal(Signal::TERM) {
        warning!("cannot ask dockerd to stop: {e}");
    }
    if let Ok(status) = timeout(grace, child.wait()).await {
        return notice!("dockerd stopped, {}", describe(status));
    }
    warning!(
        "dockerd did not stop within {} seconds, killing it",
        grace.as_secs()
    );
    if let Err(e) = child.handle().signal(Signal::KILL) {
        warning!("cannot kill dockerd: {e}");
    }
    if timeout(KILLED, child.wait()).await.is_err() {
        error!("dockerd, process {}, does not die", child.pid());
    }
}
