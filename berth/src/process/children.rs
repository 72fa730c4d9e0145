//! The helper processes of a daemon (QEMU, passt): started so that they die with it, and recorded so that the next daemon
//! can clear up what outlived a killed one all the same.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::ProcessId;

/// How long a killed process may take to be gone before that is an error. Only a process stuck in the kernel takes longer.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// Why a child process could not be started or kept track of.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program could not be started.
    #[error("could not start {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The record of children could not be written; the child was killed again.
    #[error("could not record a child process in {path}")]
    Record {
        /// The record.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One child in the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// What it is for ("qemu", "passt").
    role: String,
    #[serde(flatten)]
    process: ProcessId,
    /// The file name of the program it was started as. Some programs replace themselves by a variant of a longer name
    /// (`passt` by `passt.avx2`).
    program: String,
}

/// What is written to the file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The boot of the host in which the process ids mean something.
    boot_id: String,
    children: Vec<Entry>,
}

/// The children of this daemon, recorded in a file.
#[derive(Debug)]
pub struct Children {
    path: PathBuf,
    entries: Mutex<Vec<Entry>>,
}

impl Children {
    /// Keeps the record in `path`. What a record there already names is ended first, if it is still the same process: it
    /// belongs to a daemon that was killed. Returns the roles of those ended.
    pub fn take_over(path: PathBuf) -> io::Result<(Arc<Children>, Vec<String>)> {
        let mut ended = Vec::new();
        for entry in read_record(&path)? {
            if !entry.process.is_alive() || !entry.process.runs(&entry.program) {
                continue;
            }
            if entry.process.signal(Signal::KILL)? {
                if !entry.process.wait_ended(KILL_WAIT)? {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!(
                            "{} (process {}) of a daemon that was killed does not end",
                            entry.role, entry.process.pid
                        ),
                    ));
                }
                ended.push(entry.role);
            }
        }
        let children = Children {
            path,
            entries: Mutex::new(Vec::new()),
        };
        children.write(&[])?;
        Ok((Arc::new(children), ended))
    }

    /// Starts `command` as a child that the kernel kills when this process ends in any way, and records it. Blocks until
    /// the program runs.
    ///
    /// Each child has a thread that starts it and waits for it: the kernel's parent-death signal comes when the *thread*
    /// that started the child ends, so a thread of a pool will not do.
    pub fn spawn(self: &Arc<Self>, role: &str, mut command: Command) -> Result<Child, SpawnError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let failed = |source| SpawnError::Start {
            program: program.clone(),
            source,
        };
        die_with_parent(&mut command);
        let (exited_tx, exited) = watch::channel(None);
        let (started_tx, started_rx) = std::sync::mpsc::sync_channel(1);
        let body = {
            let children = Arc::clone(self);
            let role = role.to_owned();
            let program = program.clone();
            move || {
                let mut child = match command.spawn() {
                    Ok(child) => child,
                    Err(source) => {
                        let _ = started_tx.send(Err(SpawnError::Start { program, source }));
                        return;
                    }
                };
                // Descriptors that only the child is to have (its end of a socket pair) must not stay open here.
                drop(command);
                let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
                match children.remember(&role, &program, child.id()) {
                    Ok(process) => {
                        let _ = started_tx.send(Ok((process, streams)));
                    }
                    Err(source) => {
                        // Not yet waited for, so the id is still its own. A child already dead is as good.
                        let _ = child.kill();
                        let path = children.path.clone();
                        let _ = started_tx.send(Err(SpawnError::Record { path, source }));
                    }
                }
                let status = child.wait();
                children.forget(child.id());
                // Waiting for one's own child does not fail; if it did, "it failed" is the safe thing to say.
                exited_tx.send_replace(Some(status.unwrap_or_else(|_| ExitStatus::from_raw(255 << 8))));
            }
        };
        thread::Builder::new()
            .name(format!("child-{role}"))
            .spawn(body)
            .map_err(failed)?;
        let (process, (stdin, stdout, stderr)) = started_rx
            .recv()
            .map_err(|_| failed(io::Error::other("the thread that starts it has ended")))??;
        Ok(Child {
            process,
            exited,
            stdin,
            stdout,
            stderr,
        })
    }

    fn remember(&self, role: &str, program: &str, pid: u32) -> io::Result<ProcessId> {
        let process = ProcessId::of(pid)?;
        let program = Path::new(program)
            .file_name()
            .map_or_else(|| program.to_owned(), |name| name.to_string_lossy().into_owned());
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.push(Entry {
            role: role.to_owned(),
            process,
            program,
        });
        self.write(&entries)?;
        Ok(process)
    }

    fn forget(&self, pid: u32) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| entry.process.pid != pid);
        if !self.path.exists() {
            // The daemon has cleared up behind itself already.
            return;
        }
        // An entry too many does no harm: its process is gone, and the next daemon finds that out.
        if let Err(error) = self.write(&entries) {
            tracing::warn!(path = %self.path.display(), %error, "could not update the record of children");
        }
    }

    fn write(&self, entries: &[Entry]) -> io::Result<()> {
        let record = Record {
            boot_id: boot_id()?,
            children: entries.to_vec(),
        };
        // Written aside and renamed, so that a daemon killed half-way leaves the old record or the new one.
        let aside = self.path.with_extension("new");
        fs::write(&aside, serde_json::to_vec(&record)?)?;
        fs::rename(&aside, &self.path)
    }
}

/// Arranges that the kernel kills the child when the thread that starts it ends.
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let set = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before that line.
        match rustix::process::getppid() {
            Some(pid) if pid.as_raw_nonzero().get().cast_unsigned() == parent => Ok(()),
            _ => Err(rustix::io::Errno::SRCH.into()),
        }
    };
    // SAFETY: the closure runs between fork and exec; it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(set) };
}

/// The children a killed daemon left in the record at `path`, if they are of this boot. A record that cannot be understood
/// (a host that lost power while it was written) names nobody.
fn read_record(path: &Path) -> io::Result<Vec<Entry>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let record: Record = serde_json::from_slice(&bytes).unwrap_or_default();
    if record.boot_id == boot_id()? {
        Ok(record.children)
    } else {
        Ok(Vec::new())
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// A child process that [`Children::spawn`] started. Dropping it leaves the process alone.
#[derive(Debug)]
pub struct Child {
    process: ProcessId,
    exited: watch::Receiver<Option<ExitStatus>>,
    /// Its standard input, if the command said it is to be piped; the same for the other two.
    pub stdin: Option<ChildStdin>,
    /// Its standard output.
    pub stdout: Option<ChildStdout>,
    /// Its standard error.
    pub stderr: Option<ChildStderr>,
}

impl Child {
    /// Which process it is.
    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// Turns from none to its exit status, once.
    pub fn exited(&self) -> watch::Receiver<Option<ExitStatus>> {
        self.exited.clone()
    }

    /// Sends it a signal; false when it has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        self.process.signal(signal)
    }
}

/// Writes the record that a killed daemon with these children leaves.
#[cfg(test)]
pub(crate) fn leave_record(path: &Path, children: &[(&str, ProcessId, &str)]) {
    let record = Record {
        boot_id: boot_id().unwrap(),
        children: children
            .iter()
            .map(|(role, process, program)| Entry {
                role: (*role).to_owned(),
                process: *process,
                program: (*program).to_owned(),
            })
            .collect(),
    };
    fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleep() -> Command {
        let mut command = Command::new("sleep");
        command.arg("1000");
        command
    }

    fn wait(child: &Child) -> ExitStatus {
        let mut exited = child.exited();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime
            .block_on(exited.wait_for(Option::is_some))
            .unwrap()
            .unwrap()
    }

    #[test]
    fn a_child_is_recorded_while_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("children.json");
        let (children, ended) = Children::take_over(path.clone()).unwrap();
        assert!(ended.is_empty());
        let child = children.spawn("test", sleep()).unwrap();
        let recorded = read_record(&path).unwrap();
        assert_eq!(recorded[0].process, child.process());
        assert_eq!(recorded[0].program, "sleep");
        assert!(child.signal(Signal::TERM).unwrap());
        assert_eq!(wait(&child).signal(), Some(15));
        assert_eq!(read_record(&path).unwrap(), []);
    }

    #[test]
    fn the_children_of_a_dead_daemon_are_ended_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("children.json");
        let mut stray = sleep().spawn().unwrap();
        let mut other = sleep().spawn().unwrap();
        let other_id = ProcessId::of(other.id()).unwrap();
        // What the record would hold if `other`'s id had been used again by a process started later.
        let reused = ProcessId {
            start_time: other_id.start_time + 1,
            ..other_id
        };
        leave_record(
            &path,
            &[
                ("stray", ProcessId::of(stray.id()).unwrap(), "sleep"),
                ("other", reused, "sleep"),
                ("another program", other_id, "qemu"),
            ],
        );
        let (_children, ended) = Children::take_over(path).unwrap();
        assert_eq!(ended, ["stray"]);
        assert_eq!(stray.wait().unwrap().signal(), Some(9));
        assert!(other_id.is_alive());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_record_of_another_boot_or_of_garbage_names_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("children.json");
        let me = Entry {
            role: "me".into(),
            process: ProcessId::current().unwrap(),
            program: std::env::current_exe()
                .unwrap()
                .file_name()
                .unwrap()
                .to_string_lossy()
                .into_owned(),
        };
        let record = Record {
            boot_id: "another".into(),
            children: vec![me],
        };
        fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(read_record(&path).unwrap(), []);
        fs::write(&path, b"{\"boot_id").unwrap();
        assert_eq!(read_record(&path).unwrap(), []);
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let (children, _) = Children::take_over(dir.path().join("children.json")).unwrap();
        let error = children
            .spawn("x", Command::new("/nonexistent/program"))
            .unwrap_err();
        assert_eq!(error.to_string(), "could not start /nonexistent/program");
    }
}
