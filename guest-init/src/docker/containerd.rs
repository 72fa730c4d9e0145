//! containerd, which dockerd stands on: started before it, watched and started again on its own.
//!
//! dockerd could start a containerd itself, but gives it fifteen seconds to come up and leaves a half-started one behind
//! when it does not make it; on a busy or emulated host that is a matter of luck. A containerd of our own gets the time
//! it needs, survives a dockerd that is killed, and runs only the plugins that Docker uses, which also starts quicker.

use std::fs;
use std::io::{self, PipeWriter};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep, timeout};

use super::backoff::Backoff;
use super::ready;
use crate::console::{error, notice, warning};
use crate::reaper::{Child, Reaper, describe};

/// The socket dockerd finds it at.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";

const FILE: &str = "/run/berth/etc/containerd.toml";

/// What Docker uses of containerd is the content store, the runtime and the events. The rest costs start-up time: the
/// Kubernetes interface, the snapshotters of file systems that are not here, tracing.
const CONFIGURATION: &str = r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
address = "/run/containerd/containerd.sock"
"#;

/// How long it gets to stop once dockerd is gone: it has nothing left to do then.
const STOP: Duration = Duration::from_secs(5);

/// Writes the configuration and keeps containerd, which trusts the certificates in `trust`, running until `stop` is set and the returned handle's
/// [`Containerd::stop`] is called.
///
/// # Errors
/// When the configuration cannot be written.
pub(super) fn start(
    reaper: Arc<Reaper>,
    output: PipeWriter,
    stop: watch::Receiver<Option<Duration>>,
    trust: Option<PathBuf>,
) -> anyhow::Result<Containerd> {
    // The socket's directory is watched before containerd would make it.
    for file in [FILE, SOCKET] {
        let directory = Path::new(file).parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    fs::write(FILE, CONFIGURATION).with_context(|| format!("cannot write {FILE}"))?;
    let end = watch::Sender::new(false);
    let ended = watch::Sender::new(false);
    let spawn = move || spawn(&reaper, &output, trust.as_deref());
    tokio::spawn(keep_running(spawn, stop, end.subscribe(), ended.clone()));
    Ok(Containerd { end, ended })
}

/// A containerd that is kept running.
#[derive(Debug)]
pub(super) struct Containerd {
    end: watch::Sender<bool>,
    ended: watch::Sender<bool>,
}

impl Containerd {
    /// Waits until it can be connected to.
    pub(super) async fn listening(&self) -> io::Result<()> {
        ready::wait_for_listener(Path::new(SOCKET)).await
    }

    /// Stops it. Call when dockerd is gone.
    pub(super) async fn stop(&self) {
        self.end.send_replace(true);
        let mut ended = self.ended.subscribe();
        if timeout(2 * STOP, ended.wait_for(|ended| *ended)).await.is_err() {
            error!("containerd does not end");
        }
    }
}

async fn keep_running(
    spawn: impl Fn() -> io::Result<Child> + Send,
    mut stop: watch::Receiver<Option<Duration>>,
    mut end: watch::Receiver<bool>,
    ended: watch::Sender<bool>,
) {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        // A socket that was left behind would be taken for this one's.
        let _ = fs::remove_file(SOCKET);
        let how = match spawn() {
            Ok(mut child) => {
                let ended_by_itself = tokio::select! {
                    status = child.wait() => Some(status),
                    _ = end.wait_for(|end| *end) => None,
                };
                let Some(status) = ended_by_itself else {
                    stop_child(&mut child).await;
                    break;
                };
                describe(status)
            }
            Err(e) => format!("it could not be started: {e}"),
        };
        if stop.borrow().is_some() {
            break;
        }
        let delay = backoff.after(started.elapsed());
        error!("containerd ended: {how}; next try in {} ms", delay.as_millis());
        tokio::select! {
            () = sleep(delay) => {}
            _ = stop.wait_for(Option::is_some) => break,
            _ = end.wait_for(|end| *end) => break,
        }
    }
    ended.send_replace(true);
}

fn spawn(reaper: &Arc<Reaper>, output: &PipeWriter, trust: Option<&Path>) -> io::Result<Child> {
    let mut command = Command::new("containerd");
    command
        .args(["--config", FILE, "--log-level", "warn"])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?);
    super::as_service(&mut command, trust);
    let child = reaper.spawn(&mut command)?;
    notice!("containerd started, process {}", child.pid());
    Ok(child)
}

async fn stop_child(child: &mut Child) {
    use rustix::process::Signal;

    if let Err(e) = child.handle().signal(Signal::TERM) {
        warning!("cannot ask containerd to stop: {e}");
    }
    if timeout(STOP, child.wait()).await.is_err()
        && let Err(e) = child.handle().signal(Signal::KILL)
    {
        warning!("cannot kill containerd: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_the_socket_dockerd_is_told() {
        assert!(CONFIGURATION.contains(&format!("address = {SOCKET:?}")));
    }
}
