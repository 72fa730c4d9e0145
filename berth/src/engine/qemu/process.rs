//! A running QEMU.

use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use vmm::vhost_user::{VhostUserError, VhostUserServer};

use super::arguments::{self, Accelerator, Sockets};
use super::console::{self, LastWords};
use super::program::QemuProgram;
use super::qmp::{Qmp, QmpError};
use super::{EngineError, EngineKind, MachineSpec, RunningEngine, failed};
use crate::engine::balloon::Balloon;
use crate::engine::disk_fault::FaultTeller;
use crate::engine::{EngineDescription, EngineExit};
use crate::process::{Child, ProcessId, SpawnError};
use crate::size::Size;

/// How long QEMU's threads may take to stop; one that waits for the host's disk stops after that.
const STOP: Duration = Duration::from_secs(30);

/// How long berth's own devices may take to stop when QEMU has ended. One that waits for a file system of the host stops when
/// that answers, which may be never.
const DEVICES: Duration = Duration::from_secs(10);

/// Why QEMU could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("cannot make the socket {path}")]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot serve a device to QEMU")]
    Device(#[from] VhostUserError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("cannot start a thread for QEMU's output")]
    Thread(#[source] io::Error),
    #[error("QEMU ended at once ({status}): {words}")]
    Ended { status: ExitStatus, words: String },
    #[error("QEMU's control channel could not be opened")]
    Qmp(#[from] QmpError),
    #[error("the thread that starts QEMU failed")]
    Join(#[from] tokio::task::JoinError),
}

/// QEMU's process, which ends when this is dropped.
struct Process {
    child: Child,
    /// berth ended it.
    killed: AtomicBool,
}

impl Process {
    fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        if let Err(error) = self.child.signal(Signal::KILL) {
            tracing::error!(%error, "could not end QEMU");
        }
    }
}

/// Stops the process and returns when none of its threads runs. It blocks.
fn stop(process: ProcessId) -> io::Result<()> {
    signal(process, Signal::STOP)?;
    let pid = i32::try_from(process.pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(gone)?;
    // The signal is sent and each thread stops in its own time. Who waits for the process's end is left what it waits for.
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    match rustix::io::retry_on_intr(|| waitid(WaitId::Pid(pid), options)) {
        Ok(Some(status)) if status.stopped() => Ok(()),
        Ok(_) | Err(rustix::io::Errno::CHILD) => Err(gone()),
        Err(error) => Err(error.into()),
    }
}

fn signal(process: ProcessId, signal: Signal) -> io::Result<()> {
    process.signal(signal)?.then_some(()).ok_or_else(gone)
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "QEMU has ended")
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.exited().borrow().is_none() {
            self.kill();
        }
    }
}

/// Everything that was made when the process runs.
struct Launched {
    process: Process,
    /// berth's own devices, which it serves to QEMU.
    devices: Vec<VhostUserServer>,
    qmp_listener: StdUnixListener,
    words: LastWords,
    complaints: std::thread::JoinHandle<()>,
}

/// Starts QEMU and waits until the machine runs.
pub(super) async fn start(
    program: &QemuProgram,
    accelerator: Accelerator,
    spec: MachineSpec,
) -> Result<Running, StartError> {
    let description = EngineDescription {
        engine: EngineKind::Qemu,
        accelerator: accelerator.name().to_owned(),
        program: Some(program.describe()),
    };
    let (warn, warnings) = mpsc::unbounded_channel();
    let disks: Vec<(String, FaultTeller)> = spec
        .disks
        .iter()
        .enumerate()
        .map(|(index, disk)| {
            (
                arguments::drive_name(index),
                FaultTeller::new(disk.path.clone(), warn.clone()),
            )
        })
        .collect();
    let on_fault = move |device: &str, fault| {
        if let Some((_, teller)) = disks.iter().find(|(name, _)| name == device) {
            teller.tell(fault);
        }
    };
    let program = program.clone();
    let memory = Size::from_mib(spec.memory_mib);
    // When nobody waits for it any more, what it made is dropped, which ends QEMU.
    let launched = tokio::task::spawn_blocking(move || launch(&program, accelerator, spec)).await??;
    let mut exited = launched.process.child.exited();
    let listener = launched.qmp_listener;
    let qmp = async {
        listener.set_nonblocking(true).map_err(QmpError::Io)?;
        let listener = UnixListener::from_std(listener).map_err(QmpError::Io)?;
        let (stream, _) = listener.accept().await.map_err(QmpError::Io)?;
        Qmp::open(stream, memory, on_fault).await
    };
    let (qmp, ended) = tokio::select! {
        qmp = qmp => match qmp {
            // It closes the channel when it ends, which is the better reason.
            Err(error) => {
                let status = tokio::time::timeout(Duration::from_secs(1), ended(&mut exited)).await;
                (Err(error), status.ok())
            }
            qmp => (qmp, None),
        },
        status = ended(&mut exited) => (Err(QmpError::Gone), Some(status)),
    };
    let qmp = match (qmp, ended) {
        (Ok(qmp), _) => Arc::new(qmp),
        (Err(_), Some(status)) => {
            // Its last words may still be on their way.
            let _ = tokio::task::spawn_blocking(move || launched.complaints.join()).await;
            let words = launched.words.text();
            return Err(StartError::Ended { status, words });
        }
        (Err(error), None) => return Err(error.into()),
    };
    let process = Arc::new(launched.process);
    let (exit_tx, exit) = watch::channel(None);
    tokio::spawn(watch_end(
        Arc::downgrade(&process),
        exited,
        Arc::clone(&qmp),
        launched.devices,
        launched.words,
        exit_tx,
    ));
    Ok(Running {
        description,
        process,
        qmp,
        exit,
        warnings: Some(warnings),
    })
}

fn launch(
    program: &QemuProgram,
    accelerator: Accelerator,
    spec: MachineSpec,
) -> Result<Launched, StartError> {
    let qmp_path = spec.runtime_dir.join("qmp.sock");
    let vsock_path = spec.runtime_dir.join("vsock.sock");
    let qmp_listener = listen(&qmp_path)?;
    let fs_path = spec.runtime_dir.join("fs.sock");
    let vsock_listener = listen(&vsock_path)?;
    let sockets = Sockets {
        qmp: &qmp_path,
        vsock: &vsock_path,
        fs: &fs_path,
    };
    let mut command = Command::new(&program.path);
    command
        .args(arguments::arguments(program.version, accelerator, &spec, sockets))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut devices = vec![VhostUserServer::spawn("vsock", vsock_listener, spec.vsock)?];
    if let Some(fs) = spec.fs {
        devices.push(VhostUserServer::spawn_without_config(
            "fs",
            listen(&fs_path)?,
            fs,
        )?);
    }
    let child = spec.children.spawn("qemu", command)?;
    let mut process = Process {
        child,
        killed: AtomicBool::new(false),
    };
    let words = LastWords::default();
    let piped = || StartError::Thread(io::Error::other("QEMU's output is not piped"));
    let stdout = process.child.stdout.take().ok_or_else(piped)?;
    let stderr = process.child.stderr.take().ok_or_else(piped)?;
    console::copy_console(stdout, spec.console.writer()).map_err(StartError::Thread)?;
    let complaints = console::log_complaints(stderr, words.clone()).map_err(StartError::Thread)?;
    Ok(Launched {
        process,
        devices,
        qmp_listener,
        words,
        complaints,
    })
}

fn listen(path: &Path) -> Result<StdUnixListener, StartError> {
    let failed = |source| StartError::Socket {
        path: path.to_owned(),
        source,
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    StdUnixListener::bind(path).map_err(failed)
}

async fn ended(exited: &mut watch::Receiver<Option<ExitStatus>>) -> ExitStatus {
    match exited.wait_for(Option::is_some).await.map(|status| *status) {
        Ok(Some(status)) => status,
        // The thread that waits for it always says so before it ends.
        _ => ExitStatus::from_raw(255 << 8),
    }
}

/// Stops devices whose front end has gone. Returns the names of those that have not stopped in time, and stop when they can.
async fn stop_devices(devices: Vec<VhostUserServer>, limit: Duration) -> Vec<String> {
    let limit = tokio::time::Instant::now() + limit;
    let stopping: Vec<_> = devices
        .into_iter()
        .map(|device| {
            let name = device.name().to_owned();
            let stopped = tokio::task::spawn_blocking(move || {
                if let Err(error) = device.stop() {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a device went on after QEMU"
                    );
                }
            });
            (name, stopped)
        })
        .collect();
    let mut stuck = Vec::new();
    for (name, stopped) in stopping {
        match tokio::time::timeout_at(limit, stopped).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "stopping one of QEMU's devices failed"),
            Err(_) => stuck.push(name),
        }
    }
    stuck
}

/// Waits for QEMU's end, lets go of its devices, and says why.
async fn watch_end(
    process: std::sync::Weak<Process>,
    mut exited: watch::Receiver<Option<ExitStatus>>,
    qmp: Arc<Qmp>,
    devices: Vec<VhostUserServer>,
    words: LastWords,
    exit: watch::Sender<Option<EngineExit>>,
) {
    let status = ended(&mut exited).await;
    qmp.closed().await;
    let stuck = stop_devices(devices, DEVICES).await;
    // Nobody holds the machine any more: it was dropped, which kills.
    let killed = process
        .upgrade()
        .is_none_or(|process| process.killed.load(Ordering::Acquire));
    let mut reason = reason(killed, status, qmp.shutdown_reason().as_deref(), &words.text());
    if !stuck.is_empty() {
        reason = EngineExit::Stuck {
            what: format!("the virtio device {}", stuck.join(" and ")),
            after: Box::new(reason),
        };
    }
    tracing::info!(?reason, %status, "QEMU ended");
    exit.send_replace(Some(reason));
}

fn reason(killed: bool, status: ExitStatus, shutdown: Option<&str>, words: &str) -> EngineExit {
    if killed {
        return EngineExit::Killed(None);
    }
    match (shutdown, status.signal()) {
        (Some("host-signal"), _) => EngineExit::Killed(Some("QEMU was asked to end by a signal".into())),
        (_, Some(signal)) => EngineExit::Killed(Some(format!("QEMU was killed by signal {signal}"))),
        (Some(reason), _) if status.success() && reason.starts_with("guest-") => EngineExit::GuestReset,
        (None, _) if status.success() => EngineExit::GuestReset,
        _ => EngineExit::Failed(format!("QEMU ended ({status}): {words}")),
    }
}

/// A machine in QEMU.
pub(super) struct Running {
    description: EngineDescription,
    process: Arc<Process>,
    qmp: Arc<Qmp>,
    exit: watch::Receiver<Option<EngineExit>>,
    warnings: Option<mpsc::UnboundedReceiver<String>>,
}

impl RunningEngine for Running {
    fn describe(&self) -> EngineDescription {
        self.description.clone()
    }

    fn exited(&self) -> watch::Receiver<Option<EngineExit>> {
        self.exit.clone()
    }

    fn kill(&self) {
        self.process.kill();
    }

    // Not by QMP's `stop`: that also stops the vsock device, which resets every connection to the guest.
    fn pause(&self) -> BoxFuture<'_, Result<(), EngineError>> {
        async {
            let process = self.process.child.process();
            let stopped = tokio::task::spawn_blocking(move || stop(process));
            match tokio::time::timeout(STOP, stopped).await {
                Ok(Ok(result)) => result.map_err(|error| failed("pause the machine", error)),
                Ok(Err(error)) => Err(failed("pause the machine", error)),
                Err(_) => {
                    self.resume().await?;
                    let slow = io::Error::new(io::ErrorKind::TimedOut, "QEMU did not stop in time");
                    Err(failed("pause the machine", slow))
                }
            }
        }
        .boxed()
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), EngineError>> {
        let result = signal(self.process.child.process(), Signal::CONT);
        std::future::ready(result.map_err(|error| failed("resume the machine", error))).boxed()
    }

    fn balloon(&self) -> Arc<dyn Balloon> {
        Arc::clone(&self.qmp) as Arc<dyn Balloon>
    }

    fn process_ids(&self) -> Vec<u32> {
        vec![self.process.child.process().pid]
    }

    fn warnings(&mut self) -> Option<mpsc::UnboundedReceiver<String>> {
        self.warnings.take()
    }
}

impl Balloon for Qmp {
    fn set_target(&self, pages: u32) -> BoxFuture<'_, Result<(), EngineError>> {
        async move {
            self.set_ballooned(pages)
                .await
                .map_err(|error| failed("tell the guest how much memory it is to have", error))
        }
        .boxed()
    }

    fn actual(&self) -> watch::Receiver<u32> {
        self.ballooned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_process_has_stopped_and_goes_on() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        let is_stopped = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap();
            stat.contains(") T ")
        };
        for _ in 0..3 {
            stop(process).unwrap();
            assert!(is_stopped());
            stop(process).unwrap();
            signal(process, Signal::CONT).unwrap();
            assert!(!is_stopped());
        }
        stop(process).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(stop(process).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_device_that_waits_for_the_host_does_not_hold_the_end() {
        use vmm::virtio::{ActivateError, Activation, VirtioDevice};

        /// A device that ends when the test lets it.
        struct Slow(Option<std::sync::mpsc::Receiver<()>>);
        impl VirtioDevice for Slow {
            fn device_id(&self) -> u32 {
                26
            }
            fn queue_max_sizes(&self) -> &[u16] {
                &[8]
            }
            fn features(&self) -> u64 {
                0
            }
            fn read_config(&self, _: u64, _: &mut [u8]) {}
            fn activate(&mut self, _: Activation) -> Result<(), ActivateError> {
                Ok(())
            }
            fn deactivate(&mut self) {}
        }
        impl Drop for Slow {
            fn drop(&mut self) {
                let _ = self.0.take().map(|wait| wait.recv());
            }
        }

        let dir = tempfile::tempdir().unwrap();
        let (release, wait) = std::sync::mpsc::channel();
        let devices = [("quick", None), ("slow", Some(wait))]
            .map(|(name, wait)| {
                let listener = StdUnixListener::bind(dir.path().join(name)).unwrap();
                VhostUserServer::spawn(name, listener, Box::new(Slow(wait))).unwrap()
            })
            .into();
        assert_eq!(stop_devices(devices, Duration::from_millis(300)).await, ["slow"]);
        drop(release);
    }

    #[test]
    fn each_end_has_its_reason() {
        let exit = |code: i32| ExitStatus::from_raw(code << 8);
        let signal = ExitStatus::from_raw;
        assert_eq!(reason(true, signal(9), None, ""), EngineExit::Killed(None));
        assert_eq!(
            reason(false, exit(0), Some("guest-reset"), ""),
            EngineExit::GuestReset
        );
        assert_eq!(
            reason(false, exit(0), Some("guest-shutdown"), ""),
            EngineExit::GuestReset
        );
        assert!(matches!(
            reason(false, exit(0), Some("host-signal"), ""),
            EngineExit::Killed(Some(_))
        ));
        assert!(matches!(
            reason(false, signal(11), None, ""),
            EngineExit::Killed(Some(_))
        ));
        assert_eq!(
            reason(false, exit(1), None, "no such file"),
            EngineExit::Failed("QEMU ended (exit status: 1): no such file".into())
        );
    }
}
