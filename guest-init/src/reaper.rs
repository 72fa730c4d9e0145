//! Children: starting them, and learning how they end.
//!
//! PID 1 becomes the parent of every orphan in the guest and must reap all of them, without losing the exit statuses of
//! the processes it started and waits for. Two parties calling `waitpid` would steal from each other, so exactly one
//! does: [`Reaper::reap`]. Whatever starts a process does so through [`Reaper::spawn`], which enters it in a table, under
//! the same lock that `reap` holds: a child that ends before `spawn` returns is found in the table all the same, and the
//! `waitpid` by which the standard library cleans up after a failed `execve` is not raced. `tokio::process` and
//! `std::process::Child::wait` must not be used anywhere in this program.
//!
//! The lock also makes signals safe: a process id is only used while the process is in the table, so it has not been
//! reaped and its number cannot belong to somebody else.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, kill_process_group, wait, waitid, waitpid,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::lock::lock;

type Table = HashMap<Pid, oneshot::Sender<ExitStatus>>;

/// The one who waits for children.
#[derive(Debug)]
pub(crate) struct Reaper {
    children: Mutex<Table>,
    adopts: bool,
    deaths: watch::Sender<u64>,
}

/// A process that [`Reaper::spawn`] started. Dropping it leaves the process alone; it is still reaped.
#[derive(Debug)]
pub(crate) struct Child {
    handle: Handle,
    exit: oneshot::Receiver<ExitStatus>,
    status: Option<ExitStatus>,
    /// The other end of its standard input, when that was piped.
    pub(crate) stdin: Option<ChildStdin>,
    /// The other end of its standard output, when that was piped.
    pub(crate) stdout: Option<ChildStdout>,
    /// The other end of its standard error, when that was piped.
    pub(crate) stderr: Option<ChildStderr>,
}

/// What signals are sent by. It may outlive the process.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    reaper: Arc<Reaper>,
    pid: Pid,
}

impl Reaper {
    /// A reaper. `adopts` says that this is PID 1, which reaps also what it did not start.
    pub(crate) fn new(adopts: bool) -> Arc<Reaper> {
        Arc::new(Reaper {
            children: Mutex::default(),
            adopts,
            deaths: watch::Sender::new(0),
        })
    }

    /// Starts a process. Errors are those of [`Command::spawn`].
    pub(crate) fn spawn(self: &Arc<Reaper>, command: &mut Command) -> io::Result<Child> {
        let mut table = lock(&self.children);
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let (sender, exit) = oneshot::channel();
        table.insert(pid, sender);
        drop(table);
        Ok(Child {
            handle: Handle {
                reaper: self.clone(),
                pid,
            },
            exit,
            status: None,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
        })
    }

    /// Reaps on every SIGCHLD from now on; the handler is installed before this returns.
    pub(crate) fn start(self: &Arc<Reaper>) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let mut signals = signal(SignalKind::child())?;
        let reaper = self.clone();
        Ok(async move {
            loop {
                reaper.reap();
                if signals.recv().await.is_none() {
                    return;
                }
            }
        })
    }

    /// Reaps every child that is dead now. SIGCHLDs merge, so one may stand for many.
    fn reap(&self) {
        let mut table = lock(&self.children);
        let mut deaths = 0;
        let mut dead = |table: &mut Table, pid: Pid, status: rustix::process::WaitStatus| {
            deaths += 1;
            if let Some(waiter) = table.remove(&pid) {
                // Whoever started it may have lost interest.
                let _ = waiter.send(ExitStatus::from_raw(status.as_raw()));
            }
        };
        if self.adopts {
            while let Ok(Some((pid, status))) = ignore_eintr(|| wait(WaitOptions::NOHANG)) {
                dead(&mut table, pid, status);
            }
        } else {
            for pid in table.keys().copied().collect::<Vec<_>>() {
                if let Ok(Some((pid, status))) = ignore_eintr(|| waitpid(Some(pid), WaitOptions::NOHANG)) {
                    dead(&mut table, pid, status);
                }
            }
        }
        drop(table);
        if deaths > 0 {
            self.deaths.send_modify(|count| *count += deaths);
        }
    }

    /// Whether this process has no children at all, dead or alive. As PID 1 after everything was killed: whether
    /// everything is gone.
    pub(crate) fn is_childless(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(ignore_eintr(|| waitid(WaitId::All, options)), Err(Errno::CHILD))
    }

    /// Changes whenever children were reaped.
    pub(crate) fn deaths(&self) -> watch::Receiver<u64> {
        self.deaths.subscribe()
    }

    /// Sends a signal to a process of the table. One that has ended is no error.
    fn signal(&self, pid: Pid, signal: Signal, to: Target) -> io::Result<()> {
        let table = lock(&self.children);
        if !table.contains_key(&pid) {
            return Ok(());
        }
        let sent = match to {
            Target::Process => kill_process(pid, signal),
            Target::Group => kill_process_group(pid, signal),
        };
        drop(table);
        match sent {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Target {
    Process,
    Group,
}

impl Child {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.handle.pid()
    }

    /// The way to send it signals.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits until it has ended. Cancellation-safe, and may be called again afterwards.
    pub(crate) async fn wait(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        // The sender stays in the table until the process is reaped, and the table lives as long as our handle.
        let status = (&mut self.exit)
            .await
            .unwrap_or_else(|_| unreachable!("a child left the table without a status"));
        self.status = Some(status);
        status
    }
}

impl Handle {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        // A Pid is positive.
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends it a signal; nothing happens when it has ended.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        self.reaper.signal(self.pid, signal, Target::Process)
    }

    /// Sends a signal to the process group it leads; nothing happens when it has ended.
    pub(crate) fn signal_group(&self, signal: Signal) -> io::Result<()> {
        self.reaper.signal(self.pid, signal, Target::Group)
    }
}

fn ignore_eintr<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// How a process ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => format!("wait status {:#x}", status.into_raw()),
    }
}

/// How a process ended, as shells put it in one number: its exit code, or 128 + N for signal N.
pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(255)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Stdio;

    use super::*;

    /// A reaper that runs on the current runtime and leaves other tests' children alone.
    pub(crate) fn running_reaper() -> Arc<Reaper> {
        let reaper = Reaper::new(false);
        tokio::spawn(reaper.start().unwrap());
        reaper
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    #[tokio::test]
    async fn exit_codes_and_signals_reach_who_waits() {
        let reaper = running_reaper();
        let mut three = reaper.spawn(&mut shell("exit 3")).unwrap();
        let mut killed = reaper.spawn(&mut shell("kill -9 $$")).unwrap();
        let killed = killed.wait().await;
        let three = three.wait().await;
        assert_eq!(
            (exit_code(three), describe(three)),
            (3, "exit status 3".to_owned())
        );
        assert_eq!(
            (exit_code(killed), describe(killed)),
            (137, "signal 9".to_owned())
        );
    }

    #[tokio::test]
    async fn many_children_that_end_at_once_are_all_told_apart() {
        let reaper = running_reaper();
        let children: Vec<_> = (0..50)
            .map(|i| reaper.spawn(&mut shell(&format!("exit {i}"))).unwrap())
            .collect();
        for (i, mut child) in children.into_iter().enumerate() {
            assert_eq!(child.wait().await.code(), Some(i as i32));
        }
    }

    #[tokio::test]
    async fn a_signal_ends_a_process_and_one_sent_afterwards_goes_nowhere() {
        let reaper = running_reaper();
        let mut child = reaper.spawn(&mut shell("exec sleep 1000")).unwrap();
        child.handle().signal(Signal::TERM).unwrap();
        assert_eq!(child.wait().await.signal(), Some(15));
        child.handle().signal(Signal::KILL).unwrap();
        child.handle().signal_group(Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn a_program_that_does_not_exist_is_an_error_and_no_child() {
        let reaper = running_reaper();
        let error = reaper.spawn(&mut Command::new("/does/not/exist")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(lock(&reaper.children).is_empty());
    }
}
