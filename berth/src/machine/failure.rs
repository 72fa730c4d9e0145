//! Why a machine failed: told to whoever waits for it, and kept in a small file for `berth status` after the daemon is gone.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::record::write_whole;
use super::state::Phase;

/// A failure of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed and why, in one sentence, with what to do about it where that is known.
    pub reason: String,
    /// The phase of the start it happened in; none when the machine was running.
    pub phase: Option<Phase>,
    /// When, in seconds since the Unix epoch.
    pub at: u64,
    /// Whether the cause is something missing or unusable on the host (exit code 4), and not the machine.
    pub host_lacks: bool,
    /// The last lines of the guest's console.
    pub console: Vec<String>,
}

impl Failure {
    /// A failure that happened now.
    pub fn now(reason: impl Into<String>, phase: Option<Phase>) -> Failure {
        Failure {
            reason: reason.into(),
            phase,
            at: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            host_lacks: false,
            console: Vec::new(),
        }
    }

    /// Keeps it in `path`.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        write_whole(path, self)
    }

    /// The failure kept in `path`, if there is one that can be understood.
    pub fn load(path: &Path) -> Option<Failure> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Forgets the failure kept in `path`.
    pub fn forget(path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The kernel's own word for why it gave up, if the console has one: what stands after "Kernel panic - not syncing: ".
pub fn kernel_panic<'a>(console: impl DoubleEndedIterator<Item = &'a str>) -> Option<&'a str> {
    console.rev().find_map(|line| {
        line.split_once("Kernel panic - not syncing: ")
            .map(|(_, why)| why.trim().trim_end_matches('.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_kept_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("last-failure.json");
        assert_eq!(Failure::load(&path), None);
        Failure::forget(&path).unwrap();
        let failure = Failure {
            console: vec!["a".into(), "b".into()],
            ..Failure::now("it broke", Some(Phase::Kernel))
        };
        failure.store(&path).unwrap();
        assert_eq!(Failure::load(&path), Some(failure));
        Failure::forget(&path).unwrap();
        assert_eq!(Failure::load(&path), None);
        fs::write(&path, "{").unwrap();
        assert_eq!(Failure::load(&path), None);
    }

    #[test]
    fn the_kernels_own_word_is_found() {
        let lines = [
            "[    1.0] Run /sbin/init as init process",
            "[    1.2] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
            "[    1.3] Rebooting in 1 seconds..",
        ];
        assert_eq!(
            kernel_panic(lines.into_iter()),
            Some("Attempted to kill init! exitcode=0x00000100")
        );
        assert_eq!(kernel_panic(["fine"].into_iter()), None);
    }
}
