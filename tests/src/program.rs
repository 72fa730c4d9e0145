//! Running a command with a limit on its time, so that a test can hang nobody, and with failures that say everything.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};

use crate::transcript::Transcript;

/// What a command may take when nothing else is said. Emulated machines on a busy host are slow; this bounds a hang.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(300);
/// How long a command's output may stay open after it has ended. Longer means that it left a process behind that holds it.
const OUTPUT_LIMIT: Duration = Duration::from_secs(10);

/// A command to be run.
pub struct Program {
    command: Command,
    limit: Duration,
    input: Input,
    output: Option<PathBuf>,
}

enum Input {
    None,
    Bytes(Vec<u8>),
    File(PathBuf),
    Pipe,
}

/// How a command ended and what it printed.
#[derive(Debug)]
pub struct Finished {
    /// The command as a person would type it.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed to stdout; empty when that went to a file.
    pub stdout: Vec<u8>,
    /// What it printed to stderr.
    pub stderr: Vec<u8>,
}

/// A command that runs. It and what it started is killed when this is dropped.
pub struct Running {
    line: String,
    child: Child,
    stdin: Option<ChildStdin>,
    feeder: Option<thread::JoinHandle<()>>,
    /// Its stdout so far.
    pub stdout: Arc<Transcript>,
    /// Its stderr so far.
    pub stderr: Arc<Transcript>,
    limit: Duration,
}

impl Program {
    /// A command with an empty stdin and [`DEFAULT_LIMIT`].
    pub fn new(program: impl AsRef<OsStr>) -> Program {
        Program {
            command: Command::new(program),
            limit: DEFAULT_LIMIT,
            input: Input::None,
            output: None,
        }
    }

    /// A command behind others that run it (`nsenter … berth`); `prefix` may be empty.
    pub fn behind(prefix: &[OsString], program: impl AsRef<OsStr>) -> Program {
        match prefix.split_first() {
            None => Program::new(program),
            Some((first, rest)) => Program::new(first).args(rest).arg(program),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Program {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Program {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Program {
        self.command.env(name, value);
        self
    }

    /// Takes an environment variable away.
    #[must_use]
    pub fn without_env(mut self, name: impl AsRef<OsStr>) -> Program {
        self.command.env_remove(name);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn in_dir(mut self, dir: impl AsRef<Path>) -> Program {
        self.command.current_dir(dir);
        self
    }

    /// Sets the limit on its time.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Program {
        self.limit = limit;
        self
    }

    /// Gives it these bytes on stdin, then the end.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Program {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Gives it a file on stdin.
    #[must_use]
    pub fn input_file(mut self, path: impl Into<PathBuf>) -> Program {
        self.input = Input::File(path.into());
        self
    }

    /// Keeps its stdin open, for [`Running::write`].
    #[must_use]
    pub fn piped(mut self) -> Program {
        self.input = Input::Pipe;
        self
    }

    /// Lets its stdout go to a file.
    #[must_use]
    pub fn output_file(mut self, path: impl Into<PathBuf>) -> Program {
        self.output = Some(path.into());
        self
    }

    /// Lets the kernel kill it when the calling thread ends, however that comes: for what must not outlive this program even
    /// when that is killed.
    #[must_use]
    pub fn bound_to_caller(mut self) -> Program {
        // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are allowed; it makes one system
        // call and allocates nothing.
        unsafe {
            self.command
                .pre_exec(|| set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from));
        }
        self
    }

    /// The command as it is, for those who start it in their own way.
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started or a file cannot be opened.
    pub fn spawn(mut self) -> Result<Running> {
        let line = show(&self.command);
        self.command.stdin(match &self.input {
            Input::None => Stdio::null(),
            Input::File(path) => File::open(path)
                .with_context(|| format!("cannot open {}", path.display()))?
                .into(),
            Input::Bytes(_) | Input::Pipe => Stdio::piped(),
        });
        self.command.stdout(match &self.output {
            None => Stdio::piped(),
            Some(path) => File::create(path)
                .with_context(|| format!("cannot create {}", path.display()))?
                .into(),
        });
        self.command.stderr(Stdio::piped());
        // A group of its own, so that the whole of it can be ended.
        self.command.process_group(0);
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("cannot start {line}"))?;
        let mut stdin = child.stdin.take();
        let feeder = match self.input {
            Input::Bytes(bytes) => stdin.take().map(|mut stdin| {
                // The command may end without reading all of it, which is its right.
                thread::spawn(move || drop(stdin.write_all(&bytes)))
            }),
            _ => None,
        };
        let stdout = match child.stdout.take() {
            Some(stdout) => Transcript::of(stdout),
            None => Transcript::of(std::io::empty()),
        };
        let stderr = Transcript::of(child.stderr.take().context("stderr is a pipe")?);
        Ok(Running {
            line,
            child,
            stdin,
            feeder,
            stdout,
            stderr,
            limit: self.limit,
        })
    }

    /// Runs it to its end, however it ends.
    ///
    /// # Errors
    /// When it cannot be started or its time is up.
    pub fn run(self) -> Result<Finished> {
        self.spawn()?.finish()
    }

    /// Runs it and returns its stdout as text, without white space at the end.
    ///
    /// # Errors
    /// When it does not succeed.
    pub fn ok(self) -> Result<String> {
        self.run()?.ok()
    }

    /// Runs it and expects an exit code.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub fn fails_with(self, code: i32) -> Result<Finished> {
        let finished = self.run()?;
        if finished.code() != Some(code) {
            bail!("expected exit code {code}: {}", finished.describe());
        }
        Ok(finished)
    }
}

impl Finished {
    /// Its exit code; none when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Its stdout as text, without white space at the end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Its stderr as text, without white space at the end.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// [`Finished::text`] of a command that succeeded.
    ///
    /// # Errors
    /// When it did not succeed.
    pub fn ok(self) -> Result<String> {
        if !self.status.success() {
            bail!("{}", self.describe());
        }
        Ok(self.text())
    }

    /// Checks that all these words stand in its stderr, whatever their case.
    ///
    /// # Errors
    /// When one does not.
    pub fn says(&self, words: &[&str]) -> Result<()> {
        let errors = self.errors().to_lowercase();
        for word in words {
            if !errors.contains(&word.to_lowercase()) {
                bail!("expected {word:?} in the message: {}", self.describe());
            }
        }
        Ok(())
    }

    /// Everything about it, for a failure.
    pub fn describe(&self) -> String {
        let how = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown".to_owned(),
        };
        format!(
            "{} ended with {how}\n  stdout: {}\n  stderr: {}",
            self.line,
            end(&self.text()),
            end(&self.errors())
        )
    }
}

impl Running {
    /// Writes to its stdin.
    ///
    /// # Errors
    /// When it was not started with [`Program::piped`] or has closed its stdin.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .with_context(|| format!("{} has no open stdin", self.line))?;
        stdin
            .write_all(bytes)
            .and_then(|()| stdin.flush())
            .with_context(|| format!("cannot write to {}", self.line))
    }

    /// Ends its stdin and leaves its output open.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until it has printed `text` to stdout.
    ///
    /// # Errors
    /// When it ends without, or its time is up.
    pub fn prints(&self, text: &str) -> Result<()> {
        self.stdout
            .wait_for(text, 0, self.limit)
            .map(drop)
            .with_context(|| {
                format!(
                    "{} (stderr: {})",
                    self.line,
                    end(&String::from_utf8_lossy(&self.stderr.bytes()))
                )
            })
    }

    /// What it has printed to stdout so far.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&self.stdout.bytes()).into_owned()
    }

    /// What it has printed to stderr so far.
    pub fn complained(&self) -> String {
        String::from_utf8_lossy(&self.stderr.bytes()).into_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When its time is up, or it ended and left something behind that holds its output open.
    pub fn finish(mut self) -> Result<Finished> {
        let status = match self.status(self.limit)? {
            Some(status) => status,
            None => {
                self.kill();
                bail!(
                    "{} was not done after {} s\n  stdout: {}\n  stderr: {}",
                    self.line,
                    self.limit.as_secs(),
                    end(&String::from_utf8_lossy(&self.stdout.bytes())),
                    end(&String::from_utf8_lossy(&self.stderr.bytes()))
                );
            }
        };
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !stream.wait_for_end(OUTPUT_LIMIT) {
                bail!(
                    "{} has ended and left its {name} open in another process",
                    self.line
                );
            }
        }
        if let Some(feeder) = self.feeder.take() {
            // It only writes to a pipe whose reader is gone.
            drop(feeder.join());
        }
        Ok(Finished {
            line: self.line.clone(),
            status,
            stdout: self.stdout.bytes(),
            stderr: self.stderr.bytes(),
        })
    }

    /// Waits at most `limit` for its end, which leaves what it has printed to be read, and returns its exit code.
    ///
    /// # Errors
    /// When the time is up.
    pub fn ends(&mut self, limit: Duration) -> Result<Option<i32>> {
        match self.status(limit)? {
            Some(status) => Ok(status.code()),
            None => bail!("{} was not done after {} s", self.line, limit.as_secs()),
        }
    }

    /// How it ended; none when it has not within `limit`.
    fn status(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.child.try_wait();
            let ended = ended.with_context(|| format!("cannot wait for {}", self.line))?;
            if ended.is_some() || Instant::now() >= deadline {
                return Ok(ended);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it now, and everything in its process group.
    pub fn kill(&mut self) {
        if let Ok(None) = self.child.try_wait()
            && let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
        {
            // Errors mean that it has just ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
            drop(self.child.wait());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last part of a long text: where the reason usually is.
pub fn end(text: &str) -> String {
    const LINES: usize = 25;
    let lines: Vec<_> = text.trim_end().lines().collect();
    if lines.len() <= LINES {
        return lines.join("\n");
    }
    format!(
        "[{} lines left out]\n{}",
        lines.len() - LINES,
        lines[lines.len() - LINES..].join("\n")
    )
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Program {
        Program::new("sh").args(["-c", script])
    }

    #[test]
    fn input_output_and_exit_code_are_kept_apart() {
        let finished = sh("cat; echo why >&2; exit 3").input("in").run().unwrap();

        assert_eq!(finished.code(), Some(3));
        assert_eq!(finished.text(), "in");
        assert_eq!(finished.errors(), "why");
        assert!(finished.says(&["WHY"]).is_ok());
        assert!(finished.says(&["why", "not"]).is_err());
        assert!(finished.ok().unwrap_err().to_string().contains("exit code 3"));
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_what_it_started() {
        let error = sh("echo begun; sleep 1000 & sleep 1000")
            .limit(Duration::from_millis(200))
            .run()
            .unwrap_err()
            .to_string();

        assert!(error.contains("was not done"), "{error}");
    }

    #[test]
    fn an_interactive_command_is_answered_while_it_runs() {
        let mut running = sh("read line; echo got $line; cat").piped().spawn().unwrap();
        running.write(b"one\n").unwrap();
        running.prints("got one").unwrap();
        running.close_stdin();

        assert_eq!(running.finish().unwrap().ok().unwrap(), "got one");
    }
}
