//! The processes of a machine under test, found by a mark in their environment: what must not be left, and what faults
//! are done to.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// The environment variable that marks a machine's processes; they inherit it.
pub const MARK: &str = "BERTH_TEST_MACHINE";

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name, at most 15 bytes, as the kernel has it.
    pub name: String,
    /// The program it runs, where that may be seen.
    pub program: Option<PathBuf>,
    /// Whether it leads a session, as a process does that has detached itself from whoever started it.
    pub leads_session: bool,
}

/// The processes that carry this mark, lowest id first; zombies are not among them.
///
/// # Errors
/// When /proc cannot be read.
pub fn marked(mark: &str) -> Result<Vec<Process>> {
    let wanted = format!("{MARK}={mark}").into_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let entry = entry.context("cannot list /proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while it is looked at, or be another user's: then it is not ours.
        let Ok(environment) = fs::read(entry.path().join("environ")) else {
            continue;
        };
        if !environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted)
        {
            continue;
        }
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else {
            continue;
        };
        let program = fs::read_link(entry.path().join("exe")).ok();
        // "PID (NAME) STATE PARENT GROUP SESSION …"; the name may hold anything.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let session = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(3)?.parse().ok());
        found.push(Process {
            pid,
            name: name.trim_end().to_owned(),
            program,
            leads_session: session == Some(pid),
        });
    }
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

/// A process and everything that descends from it, each with its name, lowest id first. What another user may not look into is
/// among them.
///
/// # Errors
/// When /proc cannot be read.
pub fn family(pid: u32) -> Result<Vec<(u32, String)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let name = entry.context("cannot list /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while it is looked at.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if let Some((name, parent)) = name_and_parent(&stat) {
            all.push((pid, name, parent));
        }
    }
    let mut family = vec![pid];
    let mut known = 0;
    while let Some(&parent) = family.get(known) {
        family.extend(
            all.iter()
                .filter(|process| process.2 == parent)
                .map(|process| process.0),
        );
        known += 1;
    }
    all.sort_by_key(|process| process.0);
    let members = all.into_iter().filter(|process| family.contains(&process.0));
    Ok(members.map(|(pid, name, _)| (pid, name)).collect())
}

/// From the text of `/proc/PID/stat` (proc(5)): the name in parentheses, and the second field after it.
fn name_and_parent(stat: &str) -> Option<(String, u32)> {
    let (name, fields) = stat.split_once('(')?.1.rsplit_once(") ")?;
    Some((name.to_owned(), fields.split(' ').nth(1)?.parse().ok()?))
}

/// The processor time that a process has taken so far.
///
/// # Errors
/// When it is gone.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    processor_time_in(&text).with_context(|| format!("cannot understand {path}"))
}

/// From the text of `/proc/PID/stat` (proc(5)): the sum of utime and stime, which are the 12th and 13th field after the
/// name in parentheses.
fn processor_time_in(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let total = ticks()? + ticks()?;
    Some(Duration::from_secs_f64(
        total as f64 / rustix::param::clock_ticks_per_second() as f64,
    ))
}

impl Process {
    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// When it may not be killed or does not go.
    pub fn kill(&self) -> Result<()> {
        let pid = self.id()?;
        match kill_process(pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => self.wait_gone(Duration::from_secs(30)),
            Err(error) => Err(error).with_context(|| format!("cannot kill {} ({})", self.name, self.pid)),
        }
    }

    /// Waits until it is gone, or only a zombie that its parent has not looked at yet.
    ///
    /// # Errors
    /// When the time is up.
    pub fn wait_gone(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.alive()? {
            if Instant::now() >= deadline {
                bail!(
                    "{} ({}) did not end in {} s",
                    self.name,
                    self.pid,
                    limit.as_secs()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn alive(&self) -> Result<bool> {
        if test_kill_process(self.id()?) == Err(rustix::io::Errno::SRCH) {
            return Ok(false);
        }
        // "PID (NAME) STATE …"; the name may hold anything.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        Ok(!matches!(state, None | Some('Z' | 'X')))
    }

    fn id(&self) -> Result<Pid> {
        i32::try_from(self.pid)
            .ok()
            .and_then(Pid::from_raw)
            .context("a process id is a positive number")
    }
}

/// Polls until `condition` holds.
///
/// # Errors
/// When it does not in `limit`, or the condition itself fails.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        if condition().with_context(|| format!("while waiting for: {what}"))? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("waited {} s for: {what}", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_marked_process_is_found_and_killed() {
        let mark = format!("unit-test-{}", std::process::id());
        let mut child = Command::new("sleep")
            .arg("1000")
            .env(MARK, &mark)
            .spawn()
            .unwrap();

        // Between fork and exec the child still has its parent's environment.
        wait_until("the child to run", Duration::from_secs(30), || {
            Ok(!marked(&mark)?.is_empty())
        })
        .unwrap();
        let found = marked(&mark).unwrap();
        assert_eq!(
            (found.len(), found[0].pid, found[0].name.as_str()),
            (1, child.id(), "sleep")
        );
        found[0].kill().unwrap();

        assert!(marked(&mark).unwrap().is_empty());
        child.wait().unwrap();
    }

    #[test]
    fn a_name_with_parentheses_hides_no_field() {
        let hz = rustix::param::clock_ticks_per_second();
        let stat = format!("7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 {hz} {} 9 9 20 0", 2 * hz);
        assert_eq!(processor_time_in(&stat), Some(Duration::from_secs(3)));
        assert_eq!(processor_time_in("7 (a) S 1"), None);
        assert_eq!(name_and_parent(&stat), Some(("a) b".to_owned(), 1)));
        assert_eq!(name_and_parent("7"), None);
    }

    #[test]
    fn a_family_has_the_children_of_children() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 1000 & wait"])
            .spawn()
            .unwrap();
        let mut found = Vec::new();
        wait_until("the child's child to run", Duration::from_secs(30), || {
            found = family(child.id())?;
            Ok(found.iter().any(|(_, name)| name == "sleep"))
        })
        .unwrap();

        assert_eq!((found.len(), found[0].0), (2, child.id()), "{found:?}");
        assert!(processor_time(child.id()).is_ok());
        for (pid, _) in found {
            let pid = Pid::from_raw(pid.cast_signed()).unwrap();
            kill_process(pid, Signal::KILL).unwrap();
        }
        child.wait().unwrap();
    }
}
