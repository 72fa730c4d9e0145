//! What went wrong on the host with a machine's disk, in words for its user, once for each kind: a guest on a full disk
//! makes thousands of faults.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

/// A fault of a disk's image on the host. The guest saw an I/O error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskFault {
    /// The host's file system, or the user's quota on it, is full.
    NoSpace,
    /// The image could not be read or written.
    Io,
    /// What was written could not be made durable.
    FlushFailed,
}

impl DiskFault {
    /// What to tell the user about it.
    fn describe(self, path: &Path) -> String {
        let path = path.display();
        match self {
            DiskFault::NoSpace => format!(
                "the host's disk is full: writes to the machine's disk {path} fail; free some space on the host, then restart \
                 the machine"
            ),
            DiskFault::Io => format!(
                "the host could not read or write {path}; its disk may be failing, see the host's own log"
            ),
            DiskFault::FlushFailed => format!(
                "the host could not make what was written to {path} durable; restart the machine, and check the host's disk"
            ),
        }
    }
}

/// Tells the faults of one disk.
#[derive(Debug)]
pub(super) struct FaultTeller {
    path: PathBuf,
    told: Mutex<Vec<DiskFault>>,
    warn: mpsc::UnboundedSender<String>,
}

impl FaultTeller {
    /// Tells `warn` of the faults of the image at `path`.
    pub(super) fn new(path: PathBuf, warn: mpsc::UnboundedSender<String>) -> FaultTeller {
        FaultTeller {
            path,
            told: Mutex::default(),
            warn,
        }
    }

    /// There was a fault.
    pub(super) fn tell(&self, fault: DiskFault) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.contains(&fault) {
            return;
        }
        told.push(fault);
        // Nobody listens to a machine that is being taken down.
        let _ = self.warn.send(fault.describe(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_fault_is_told_once_and_names_the_disk() {
        let (warn, mut warnings) = mpsc::unbounded_channel();
        let teller = FaultTeller::new("/d/data.img".into(), warn);
        for fault in [
            DiskFault::NoSpace,
            DiskFault::NoSpace,
            DiskFault::Io,
            DiskFault::NoSpace,
        ] {
            teller.tell(fault);
        }
        let full = warnings.try_recv().unwrap();
        assert!(
            full.contains("disk is full") && full.contains("/d/data.img"),
            "{full}"
        );
        let broken = warnings.try_recv().unwrap();
        assert!(
            broken.contains("failing") && broken.contains("/d/data.img"),
            "{broken}"
        );
        assert!(warnings.try_recv().is_err());
    }
}
