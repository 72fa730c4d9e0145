//! A person at a terminal: a command with a pseudo-terminal as its controlling terminal.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, ioctl_tiocsctty, kill_process_group, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::program::{DEFAULT_LIMIT, Program};
use crate::transcript::Transcript;

/// A command on a terminal. It is killed when this is dropped.
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Transcript>,
    /// What of the screen has been looked at.
    seen: usize,
}

impl Terminal {
    /// Starts the command on a terminal of this size.
    ///
    /// # Errors
    /// When there is no terminal to be had or the command cannot be started.
    pub fn start(program: Program, rows: u16, columns: u16) -> Result<Terminal> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("cannot open a pseudo-terminal")?;
        grantpt(&ours)
            .and_then(|()| unlockpt(&ours))
            .context("cannot unlock a pseudo-terminal")?;
        let name = ptsname(&ours, Vec::new()).context("cannot name a pseudo-terminal")?;
        let name = name.to_str().context("a terminal's name is text")?;
        let theirs = File::options()
            .read(true)
            .write(true)
            // It is the child's: a suite that leads a session without a terminal would get it and be hung up with it.
            .custom_flags(OFlags::NOCTTY.bits().cast_signed())
            .open(name)
            .with_context(|| format!("cannot open {name}"))?;
        set_size(&ours, rows, columns)?;
        let mut command = program.into_command();
        let duplicate = || theirs.try_clone().context("cannot duplicate a terminal");
        command
            .stdin(Stdio::from(duplicate()?))
            .stdout(Stdio::from(duplicate()?))
            .stderr(Stdio::from(duplicate()?));
        // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are allowed; it makes two
        // system calls and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                // The terminal is the child's stdin by now.
                ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().context("cannot start a command on a terminal")?;
        // Only the child's copies may stay open: the end of the output is when the last of them closes.
        drop(command);
        drop(theirs);
        let keyboard = File::from(ours);
        let screen = Transcript::of(keyboard.try_clone().context("cannot duplicate a terminal")?);
        Ok(Terminal {
            child,
            keyboard,
            screen,
            seen: 0,
        })
    }

    /// Types.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn types(&mut self, text: &str) -> Result<()> {
        self.keyboard
            .write_all(text.as_bytes())
            .context("cannot write to the terminal")
    }

    /// Waits until `text` appears after what was waited for before.
    ///
    /// # Errors
    /// When it does not.
    pub fn shows(&mut self, text: &str) -> Result<()> {
        self.seen = self.screen.wait_for(text, self.seen, DEFAULT_LIMIT)?;
        Ok(())
    }

    /// Types `question` again and again until `answer` appears: for what takes effect at some time of its own.
    ///
    /// # Errors
    /// When it does not in [`DEFAULT_LIMIT`].
    pub fn asks_until(&mut self, question: &str, answer: &str) -> Result<()> {
        let deadline = Instant::now() + DEFAULT_LIMIT;
        loop {
            self.types(question)?;
            match self.screen.wait_for(answer, self.seen, Duration::from_secs(2)) {
                Ok(seen) => {
                    self.seen = seen;
                    return Ok(());
                }
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Changes the terminal's size, as dragging the window's corner does.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        set_size(&self.keyboard, rows, columns)
    }

    /// Drags the window's corner to this size, past it and back, until the program on the terminal sees it: a docker
    /// client that has shown a prompt may not watch for changes of the size yet, and one it missed stays missed.
    ///
    /// # Errors
    /// When the size does not arrive in [`DEFAULT_LIMIT`].
    pub fn resizes_until_seen(&mut self, rows: u16, columns: u16) -> Result<()> {
        let deadline = Instant::now() + DEFAULT_LIMIT;
        loop {
            self.resize(rows + 1, columns)?;
            self.resize(rows, columns)?;
            self.types("stty size\r")?;
            match self
                .screen
                .wait_for(&format!("{rows} {columns}"), self.seen, Duration::from_secs(5))
            {
                Ok(seen) => {
                    self.seen = seen;
                    return Ok(());
                }
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Waits for the command's end and returns its exit code.
    ///
    /// # Errors
    /// When it does not end in time or a signal ends it.
    pub fn finish(mut self) -> Result<i32> {
        let deadline = Instant::now() + DEFAULT_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for a command")? {
                return status
                    .code()
                    .with_context(|| format!("the command on the terminal ended with {status}"));
            }
            if Instant::now() >= deadline {
                let screen = self.screen.bytes();
                bail!(
                    "the command on the terminal did not end; it showed:\n{}",
                    String::from_utf8_lossy(&screen)
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait()
            && let Some(session) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
        {
            // Errors mean that it has just ended by itself.
            let _ = kill_process_group(session, Signal::KILL);
            drop(self.child.wait());
        }
    }
}

fn set_size(terminal: impl std::os::fd::AsFd, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).context("cannot set the terminal's size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_sees_the_terminal_its_size_and_a_resize() {
        let program = Program::new("sh").env("PS1", "ready> ");
        let mut terminal = Terminal::start(program, 24, 80).unwrap();
        terminal.shows("ready>").unwrap();
        terminal.types("stty size\n").unwrap();
        terminal.shows("24 80").unwrap();
        terminal.resize(40, 120).unwrap();
        terminal.asks_until("stty size\n", "40 120").unwrap();
        terminal.types("exit 5\n").unwrap();

        assert_eq!(terminal.finish().unwrap(), 5);
    }
}
