//! One run of the lab: make the disks, start QEMU, pass the output on as it comes, and return the command's exit code.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, getpid, set_parent_process_death_signal, test_kill_process};

use super::payload::Contents;
use super::qemu::{Attachments, Machine};
use super::root::LabRoot;
use crate::cache::{Cache, Scratch, remove_tree};
use crate::{command, progress};

/// What `timeout(1)` exits with.
const TIMED_OUT: u8 = 124;
/// Room for what the command writes: machines' disks, mostly. The file is sparse.
const SCRATCH_GIB: u64 = 64;
/// How long QEMU may take to end after the machine said it is done.
const POWER_OFF: Duration = Duration::from_secs(20);
const SCRATCH_PREFIX: &str = ".lab-run-";

/// The command and how to run it.
pub(super) struct Job {
    pub(super) command: Vec<String>,
    pub(super) variables: Vec<(String, String)>,
    pub(super) as_root: bool,
    pub(super) timeout: Duration,
    /// Where what the command left in `$LAB_ARTIFACTS` goes.
    pub(super) artifacts: Option<PathBuf>,
    pub(super) show_console: bool,
}

/// Runs the job and returns the command's exit code, or 124 after its time is up.
///
/// # Errors
/// When the outer machine cannot be started or ends without having run the command.
pub(super) fn run(root: &LabRoot, machine: &Machine, contents: &Contents, job: &Job) -> Result<ExitCode> {
    let files = scratch(root.cache())?;
    let payload = files.path().join("payload.erofs");
    let staging = files.path().join("payload");
    fs::create_dir(&staging).with_context(|| format!("cannot create {}", staging.display()))?;
    contents.write(root, &staging, &payload, &job.script(), &job.environment())?;
    remove_tree(&staging)?;
    let disk = files.path().join("scratch.ext4");
    make_scratch_disk(root, &disk)?;
    let console = files.path().join("console");
    File::create(&console).with_context(|| format!("cannot create {}", console.display()))?;
    let archive = files.path().join("artifacts.tar");

    let mut ports = Vec::new();
    for name in ["out", "err", "status", "artifacts"] {
        ports.push(Port::open(name)?);
    }
    let descriptors: Vec<_> = ports
        .iter()
        .map(|port| (port.name, port.theirs.as_raw_fd()))
        .collect();
    let attachments = Attachments {
        payload: &payload,
        scratch: &disk,
        console: &console,
        ports: &descriptors,
    };
    let mut qemu = start(machine.command(root, &attachments))?;

    let mut ours = ports.into_iter().map(|port| port.ours);
    let mut next = || ours.next().context("a port for each name");
    let (out, err, status, artifacts) = (next()?, next()?, next()?, next()?);
    let outcome = thread::scope(|scope| {
        scope.spawn(|| pass_on(out, io::stdout()));
        scope.spawn(|| pass_on(err, io::stderr()));
        let collected = scope.spawn(|| collect(artifacts, &archive));
        let outcome = qemu.supervise(status, job.timeout);
        if outcome.is_err() {
            // The threads above end when QEMU does.
            qemu.end()?;
        }
        collected
            .join()
            .map_err(|_| anyhow!("the thread that receives artifacts panicked"))??;
        outcome
    });
    let text = fs::read(&console).with_context(|| format!("cannot read {}", console.display()))?;
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    if job.show_console {
        progress::note(&format!("lab: the outer machine's console:\n{text}"));
    }
    let outcome = outcome?;
    if let Some(dir) = &job.artifacts {
        unpack(&archive, dir)?;
    }
    match outcome {
        Outcome::Exited(code) => Ok(ExitCode::from(code)),
        Outcome::TimedOut => {
            progress::note(&format!(
                "lab: the time is up ({} s); the end of the outer machine's console:\n{}",
                job.timeout.as_secs(),
                tail(&text)
            ));
            Ok(ExitCode::from(TIMED_OUT))
        }
        Outcome::Died => bail!(
            "the outer machine ended before the command did; the end of its console:\n{}",
            tail(&text)
        ),
    }
}

impl Job {
    fn script(&self) -> String {
        let words: Vec<_> = self.command.iter().map(|word| quote(word)).collect();
        format!("exec {}\n", words.join(" "))
    }

    fn environment(&self) -> String {
        let mut text = format!("LAB_USER={}\n", if self.as_root { "root" } else { "lab" });
        if self.artifacts.is_some() {
            text.push_str("LAB_WANTS_ARTIFACTS=1\n");
        }
        for (name, value) in &self.variables {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "export {name}={}", quote(value));
        }
        text
    }
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Exited(u8),
    TimedOut,
    Died,
}

/// A virtio port: QEMU has one end of the socket pair, we the other.
struct Port {
    name: &'static str,
    ours: UnixStream,
    theirs: OwnedFd,
}

impl Port {
    fn open(name: &'static str) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("cannot create a socket pair")?;
        let theirs = OwnedFd::from(theirs);
        fcntl_setfd(&theirs, FdFlags::empty()).context("cannot make a descriptor inheritable")?;
        Ok(Self { name, ours, theirs })
    }
}

/// The running QEMU; killed when dropped.
struct Qemu(Child);

impl Qemu {
    /// Follows the status port until the command's exit code has come and QEMU has ended, or the time is up.
    fn supervise(&mut self, status: UnixStream, limit: Duration) -> Result<Outcome> {
        let deadline = Instant::now() + limit;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(status).lines() {
                let Ok(line) = line else { break };
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut outcome = Outcome::Died;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(code) = line.strip_prefix("exit ") {
                        let code = code
                            .trim()
                            .parse()
                            .with_context(|| format!("not an exit code: {line:?}"))?;
                        outcome = Outcome::Exited(code);
                        break;
                    }
                }
                // QEMU closed its end: it has exited.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    self.end()?;
                    return Ok(Outcome::TimedOut);
                }
            }
        }
        let power_off = Instant::now() + POWER_OFF;
        while self.0.try_wait().context("cannot wait for QEMU")?.is_none() {
            if Instant::now() >= power_off {
                progress::note("lab: the outer machine did not power off; ending it");
                self.end()?;
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(outcome)
    }

    fn end(&mut self) -> Result<()> {
        self.0.kill().context("cannot kill QEMU")?;
        self.0.wait().context("cannot wait for QEMU")?;
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.end();
    }
}

fn start(mut command: Command) -> Result<Qemu> {
    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are allowed; it makes one system
    // call and allocates nothing.
    unsafe {
        command.pre_exec(|| set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from));
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot start the lab's QEMU; `xtask lab build --force` makes the lab anew")?;
    Ok(Qemu(child))
}

/// Copies everything that comes from a port, as it comes. Errors of the destination (a closed pipe, say) must not stop
/// the machine, which would block on a full port: what cannot be written is dropped.
fn pass_on(mut from: UnixStream, mut to: impl Write) {
    let mut buffer = vec![0; 64 << 10];
    let mut working = true;
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        working = working && to.write_all(&buffer[..length]).and_then(|()| to.flush()).is_ok();
    }
}

fn collect(mut from: UnixStream, archive: &Path) -> Result<()> {
    let mut file = File::create(archive).with_context(|| format!("cannot create {}", archive.display()))?;
    io::copy(&mut from, &mut file).with_context(|| format!("cannot write {}", archive.display()))?;
    Ok(())
}

fn unpack(archive: &Path, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    if fs::metadata(archive).is_ok_and(|metadata| metadata.len() > 0) {
        command::run(
            Command::new("tar")
                .args(["-x", "--no-same-owner", "-f"])
                .arg(archive)
                .arg("-C")
                .arg(dir),
        )?;
    }
    Ok(())
}

fn make_scratch_disk(root: &LabRoot, path: &Path) -> Result<()> {
    File::create(path)
        .and_then(|file| file.set_len(SCRATCH_GIB << 30))
        .with_context(|| format!("cannot create {}", path.display()))?;
    // No journal: the disk lives as long as the run.
    command::output(
        root.program("usr/sbin/mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"])
            .arg(path),
    )?;
    Ok(())
}

/// The directory of this run, after those of runs whose process is gone have been deleted.
fn scratch(cache: &Cache) -> Result<Scratch> {
    let listing = || format!("cannot list {}", cache.root().display());
    for entry in fs::read_dir(cache.root()).with_context(listing)? {
        let name = entry.with_context(listing)?.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(SCRATCH_PREFIX))
            .map(str::parse::<i32>);
        if let Some(Ok(owner)) = owner
            && Pid::from_raw(owner).is_none_or(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
        {
            remove_tree(&cache.root().join(name))?;
        }
    }
    cache.scratch(&format!("{SCRATCH_PREFIX}{}", getpid().as_raw_nonzero()))
}

/// A word that a POSIX shell takes literally.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_comes_back_from_a_shell_unchanged() {
        for word in ["plain", "two words", "it's", "$HOME `id` \"x\" \\ \n;", ""] {
            let output = Command::new("sh")
                .args(["-c", &format!("printf %s {}", quote(word))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }

    #[test]
    fn the_end_of_a_port_without_an_exit_code_is_a_death() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut qemu = Qemu(Command::new("true").spawn().unwrap());
        (&theirs).write_all(b"started\n").unwrap();
        drop(theirs);

        assert_eq!(
            qemu.supervise(ours, Duration::from_secs(60)).unwrap(),
            Outcome::Died
        );
    }

    #[test]
    fn an_exit_code_is_returned() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut qemu = Qemu(Command::new("true").spawn().unwrap());
        theirs.write_all(b"started\nexit 7\n").unwrap();

        assert_eq!(
            qemu.supervise(ours, Duration::from_secs(60)).unwrap(),
            Outcome::Exited(7)
        );
    }

    #[test]
    fn when_the_time_is_up_the_machine_is_ended() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut qemu = Qemu(Command::new("sleep").arg("1000").spawn().unwrap());

        assert_eq!(qemu.supervise(ours, Duration::ZERO).unwrap(), Outcome::TimedOut);
    }
}
