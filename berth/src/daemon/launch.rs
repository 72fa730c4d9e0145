//! Starting a daemon, and ending one that does not listen: the command line's side.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::lock::Lock;
use super::pid_file;
use crate::api::client::listens;
use crate::exit::{Code, Failure};
use crate::machine::settings::Chosen;
use crate::name::MachineName;
use crate::paths::MachinePaths;
use crate::process::Children;

/// How long a daemon that has closed its sockets may take to be gone. Locks and memory go in a moment.
const END_WAIT: Duration = Duration::from_secs(30);
/// How often is looked whether it is.
const POLL: Duration = Duration::from_millis(20);
/// How long a daemon that was killed may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(30);

/// The one line a daemon writes to its standard output, for whoever started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstWord {
    /// It listens on its API socket.
    Ready,
    /// It could not begin.
    Failed {
        /// Why.
        message: String,
        /// The exit code that makes.
        code: u8,
    },
}

/// Starts a daemon and returns when it listens on its API socket. The caller holds the start lock and has seen that there
/// is no daemon.
pub fn launch(name: &MachineName, paths: &MachinePaths, chosen: &Chosen) -> Result<()> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(paths.daemon_log())
        .with_context(|| format!("cannot open the daemon's log {}", paths.daemon_log().display()))?;
    let program = std::env::current_exe().context("cannot tell where berth's own program is")?;
    let chosen = serde_json::to_string(chosen).context("cannot hand over the machine's settings")?;
    let mut command = Command::new(program);
    command
        .args(["daemon", "--machine", name.as_str(), "--chosen", &chosen])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    // SAFETY: the closure runs between fork and exec and makes system calls only.
    unsafe { command.pre_exec(detach) };
    let mut child = command.spawn().context("cannot start the daemon")?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output)
            .read_line(&mut line)
            .context("cannot hear from the daemon")?;
    }
    match serde_json::from_str(&line) {
        Ok(FirstWord::Ready) => Ok(()),
        Ok(FirstWord::Failed { message, code }) => {
            // It is about to end; nobody else will wait for it.
            let _ = child.wait();
            Err(Failure::because(Code::Command(code), message))
        }
        Err(_) => {
            let status = child.wait().context("cannot wait for the daemon")?;
            anyhow::bail!(
                "the daemon ended before it could say why ({status}); its log is {}",
                paths.daemon_log().display()
            )
        }
    }
}

/// Leaves the terminal and everything else that belongs to it.
fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    // Descriptors the caller's shell had open (a lock, a pipe) are none of the daemon's.
    // SAFETY: the call marks descriptors and touches no memory. A kernel without it (before 5.11) leaves them open, which
    // is no reason not to start.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    Ok(())
}

/// Waits until no daemon holds its lock: the one that was stopped is gone with everything it had.
///
/// # Errors
/// When the daemon has let go of its sockets, which is the last that it does, and its process does not end: a thread of it
/// waits in the kernel for a file system that does not answer, and not even SIGKILL ends that.
pub fn wait_gone(paths: &MachinePaths) -> Result<()> {
    wait_gone_within(paths, END_WAIT)
}

fn wait_gone_within(paths: &MachinePaths, limit: Duration) -> Result<()> {
    let mut ending_since = None;
    // Without a directory there never was one.
    while is_there(paths)? {
        if listens(&paths.api_socket()) {
            ending_since = None;
        } else {
            let since = *ending_since.get_or_insert_with(Instant::now);
            anyhow::ensure!(
                since.elapsed() < limit,
                "the machine has stopped, but its daemon's process does not end: it waits for a file system of the host, \
                 probably one with a shared directory, that does not answer. See to that file system; the machine can be \
                 started when the process is gone. What containers have written is with the host's kernel"
            );
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Whether a daemon holds its lock.
pub fn is_there(paths: &MachinePaths) -> Result<bool> {
    Ok(paths.runtime_dir.is_dir() && Lock::try_take(&paths.daemon_lock())?.is_none())
}

/// Ends a daemon by force, and whatever of it is left: a power cut for its machine.
pub fn kill(paths: &MachinePaths) -> Result<()> {
    if let Some(daemon) = pid_file::read(&paths.pid_file()) {
        daemon
            .signal(Signal::KILL)
            .with_context(|| format!("cannot kill the daemon (process {})", daemon.pid))?;
        anyhow::ensure!(
            daemon.wait_ended(KILL_WAIT)?,
            "the daemon (process {}) was killed and does not end; it hangs in the kernel",
            daemon.pid
        );
    }
    clear(paths)
}

/// Clears up what a killed daemon left. The caller has seen that there is no daemon.
pub fn clear(paths: &MachinePaths) -> Result<()> {
    if !paths.runtime_dir.is_dir() {
        return Ok(());
    }
    Children::take_over(paths.children_record()).context("cannot end what a killed daemon left running")?;
    remove_sockets(paths).context("cannot remove what a killed daemon left")
}

/// Removes everything a daemon makes in the runtime directory but its locks.
pub fn remove_sockets(paths: &MachinePaths) -> io::Result<()> {
    for path in [
        paths.docker_socket(),
        paths.api_socket(),
        paths.passt_socket(),
        paths.pid_file(),
        paths.children_record(),
    ] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match std::fs::remove_dir_all(paths.engine_dir()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn paths(dir: &std::path::Path) -> MachinePaths {
        MachinePaths {
            data_dir: dir.join("data"),
            state_dir: dir.join("state"),
            runtime_dir: dir.join("run"),
        }
    }

    #[test]
    fn what_a_killed_daemon_left_is_cleared_and_its_children_end() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        clear(&paths).unwrap();
        std::fs::create_dir_all(paths.engine_dir()).unwrap();
        std::fs::write(paths.engine_dir().join("x"), "").unwrap();
        for socket in [paths.docker_socket(), paths.api_socket(), paths.passt_socket()] {
            drop(UnixListener::bind(socket).unwrap());
        }
        let mut stray = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = crate::process::ProcessId::of(stray.id()).unwrap();
        crate::process::leave_record(&paths.children_record(), &[("qemu", process, "sleep")]);
        assert!(!is_there(&paths).unwrap());
        clear(&paths).unwrap();
        stray.wait().unwrap();
        let left: Vec<_> = std::fs::read_dir(&paths.runtime_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["daemon.lock"]);
    }

    #[test]
    fn a_daemon_is_there_while_its_lock_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        assert!(!is_there(&paths).unwrap());
        wait_gone(&paths).unwrap();
        std::fs::create_dir_all(&paths.runtime_dir).unwrap();
        let lock = Lock::wait(&paths.daemon_lock()).unwrap();
        assert!(is_there(&paths).unwrap());
        drop(lock);
        assert!(!is_there(&paths).unwrap());
        wait_gone(&paths).unwrap();
    }

    #[test]
    fn a_daemon_that_does_not_end_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        std::fs::create_dir_all(&paths.runtime_dir).unwrap();
        let lock = Lock::wait(&paths.daemon_lock()).unwrap();
        let error = wait_gone_within(&paths, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("does not answer"), "{error}");
        // One that still listens may have much to do.
        let socket = UnixListener::bind(paths.api_socket()).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait_gone_within(&paths, Duration::ZERO));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!waiter.is_finished());
            drop(lock);
            waiter.join().unwrap().unwrap();
        });
        drop(socket);
    }

    #[test]
    fn the_first_word_is_one_line() {
        let word = FirstWord::Failed {
            message: "two\nlines".into(),
            code: 4,
        };
        let line = serde_json::to_string(&word).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<FirstWord>(&line).unwrap(), word);
    }
}
