//! Naming a process beyond doubt.

use std::fs;
use std::io;

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

/// A process, named by its id and the time it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since the host's boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
}

impl ProcessId {
    /// The calling process.
    pub fn current() -> io::Result<ProcessId> {
        Self::of(std::process::id())
    }

    /// The process that has the id `pid` now.
    pub fn of(pid: u32) -> io::Result<ProcessId> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_time = start_time(&stat).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/proc/{pid}/stat has no start time"),
            )
        })?;
        Ok(ProcessId { pid, start_time })
    }

    /// Whether the process still runs. One that has ended and was not yet waited for does not.
    pub fn is_alive(&self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else {
            return false;
        };
        start_time(&stat) == Some(self.start_time) && !matches!(state(&stat), Some('Z' | 'X'))
    }

    /// Whether it runs the program with this file name, or a variant of it whose name begins with it. Looks at the program
    /// itself, or, where the process does not let us (as passt does not), at the name the kernel shows to everyone.
    pub fn runs(&self, program: &str) -> bool {
        // The kernel keeps 15 bytes of the name.
        let short = program.get(..15).unwrap_or(program);
        match fs::read_link(format!("/proc/{}/exe", self.pid)) {
            Ok(path) => path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(program)),
            Err(_) => fs::read_to_string(format!("/proc/{}/comm", self.pid))
                .is_ok_and(|name| name.trim_end().starts_with(short)),
        }
    }

    /// Sends `signal`; false when the process has ended already. Never reaches a process that merely has the same id: the
    /// start time is checked through a descriptor that keeps the id from being used again.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(false);
        };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if !self.is_alive() {
            return Ok(false);
        }
        match rustix::process::pidfd_send_signal(&pidfd, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended, at most `timeout`; whether it has.
    pub fn wait_ended(&self, timeout: std::time::Duration) -> io::Result<bool> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(true);
        };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        if !self.is_alive() {
            return Ok(true);
        }
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec::try_from(timeout)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&timeout)))?;
        Ok(!self.is_alive())
    }
}

/// The fields of `/proc/PID/stat` after the command, which is in parentheses and may hold anything, parentheses too.
fn fields(stat: &str) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    Some(stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace())
}

fn state(stat: &str) -> Option<char> {
    fields(stat)?.next()?.chars().next()
}

fn start_time(stat: &str) -> Option<u64> {
    // Field 22 counted from 1; the first one after the command is field 3.
    fields(stat)?.nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_command_with_parentheses_and_spaces_does_not_confuse() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(state(stat), Some('S'));
        assert_eq!(start_time(stat), Some(4242));
        assert_eq!(start_time("7 (x) S 1"), None);
        assert_eq!(start_time(""), None);
    }

    #[test]
    fn a_process_with_another_start_time_is_another_process() {
        let me = ProcessId::current().unwrap();
        assert!(me.is_alive());
        let other = ProcessId {
            start_time: me.start_time + 1,
            ..me
        };
        assert!(!other.is_alive());
        assert!(!other.signal(Signal::KILL).unwrap(), "this test would be dead");
    }

    #[test]
    fn a_killed_process_is_seen_to_end() {
        let mut child = Command::new("sleep")
            .arg("1000")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive());
        assert!(id.runs("sleep"));
        assert!(!id.runs("passt"));
        assert!(!id.wait_ended(Duration::ZERO).unwrap());
        assert!(id.signal(Signal::KILL).unwrap());
        assert!(id.wait_ended(Duration::from_secs(60)).unwrap());
        child.wait().unwrap();
        assert!(!id.signal(Signal::KILL).unwrap());
        assert!(id.wait_ended(Duration::ZERO).unwrap());
    }
}
