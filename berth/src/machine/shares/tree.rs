//! The file system that all shares of a machine are in, and the device the guest reaches it by.
//!
//! The threads that serve the guest are confined to the directories that are shared at the time, where the kernel can do that
//! ([`fileshare_virtio::confine`]). Landlock takes rights away and gives none back, so a change of the shares means new
//! threads. File handles are not used then: they do not go together with landlock on every kernel, and need privileges that
//! the daemon of a user does not have anyway.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fileshare::passthrough::{Passthrough, PassthroughConfig, ShareConfig};
use fileshare::server::Server;
use fileshare_virtio::confine::{ConfineError, Fence};
use fileshare_virtio::{Confiner, MAX_REQUEST_QUEUES, VirtioFs, VirtioFsConfig, VirtioFsError};
use rustix::fs::{Mode, OFlags};
use vmm::virtio::VirtioDevice;

use super::coherence::HostChanges;

/// How many requests of one queue the host works on at once. More than one, so that a slow one (an fsync, a file on the
/// network) does not hold up the rest.
const THREADS_PER_QUEUE: u16 = 4;

/// A directory of each share, named by the share's id, in one root.
pub(super) struct Tree {
    fs: Arc<Passthrough>,
    changes: HostChanges,
    bounds: Mutex<Bounds>,
}

/// What the device's threads may use.
#[derive(Default)]
struct Bounds {
    /// The shares' directories, and whether for reading only.
    areas: BTreeMap<String, (OwnedFd, bool)>,
    /// None where the kernel cannot confine threads, and before there is a device.
    confiner: Option<Confiner>,
}

impl Tree {
    /// Without any share.
    pub(super) fn new() -> Tree {
        let mut config = PassthroughConfig::default();
        config.file_handles &= !can_confine();
        let fs = Arc::new(Passthrough::multiple(config));
        Tree {
            // From the beginning: what the guest has come to know before cannot be watched any more.
            changes: HostChanges::watch(&fs),
            fs,
            bounds: Mutex::default(),
        }
    }

    /// What the host changes in it.
    pub(super) fn changes(&self) -> &HostChanges {
        &self.changes
    }

    #[cfg(test)]
    pub(super) fn set_changes(&mut self, changes: HostChanges) {
        self.changes = changes;
    }

    /// Shows the directory `root` to the guest.
    pub(super) fn add(
        &self,
        id: &str,
        root: PathBuf,
        read_only: bool,
        exclude: Vec<PathBuf>,
    ) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let area = rustix::fs::open(&root, flags, Mode::empty())?;
        let share = ShareConfig {
            root,
            read_only,
            exclude,
        };
        self.fs.add_share(id, share)?;
        let mut bounds = self.bounds();
        bounds.areas.insert(id.to_owned(), (area, read_only));
        bounds.apply().inspect_err(|_| {
            bounds.areas.remove(id);
            self.fs.remove_share(id);
        })
    }

    /// Takes it away; what of it is in use in the guest gets errors from now on.
    pub(super) fn remove(&self, id: &str) {
        self.fs.remove_share(id);
        let mut bounds = self.bounds();
        if bounds.areas.remove(id).is_some()
            && let Err(error) = bounds.apply()
        {
            tracing::warn!(%error, "the file server's threads could still open a directory that is not shared any more");
        }
    }

    /// What the user should know of the shares.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.fs.warnings()
    }

    /// The device for a machine with so many virtual CPUs.
    pub(super) fn device(&self, cpus: u8) -> Result<Box<dyn VirtioDevice>, VirtioFsError> {
        let config = VirtioFsConfig {
            tag: protocol::shares::TAG.into(),
            request_queues: u16::from(cpus).clamp(1, MAX_REQUEST_QUEUES),
            threads_per_queue: THREADS_PER_QUEUE,
        };
        let server = Arc::new(Server::new(Arc::clone(&self.fs)));
        let device = VirtioFs::new(config, server)?;
        if can_confine() {
            let mut bounds = self.bounds();
            bounds.confiner = Some(device.confiner());
            if let Err(error) = bounds.apply() {
                // It is the second line of defence, and the machine is to start.
                tracing::warn!(%error, "the file server's threads are not confined");
                bounds.confiner = None;
            }
        } else {
            tracing::info!(
                "this kernel has no landlock, or an old one; the file server's threads are not confined"
            );
        }
        Ok(Box::new(device))
    }

    fn bounds(&self) -> MutexGuard<'_, Bounds> {
        // Every change is whole or taken back, so a panic elsewhere leaves nothing half done.
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bounds {
    /// Confines the device's threads to the areas as they are now.
    fn apply(&self) -> io::Result<()> {
        let Some(confiner) = &self.confiner else {
            return Ok(());
        };
        let areas = self.areas.values();
        let fence = Fence::around(areas.map(|(root, read_only)| (root.as_fd(), *read_only)));
        confiner.confine(fence.map_err(describe)?)
    }
}

/// Whether this kernel can confine threads.
fn can_confine() -> bool {
    Fence::around([]).is_ok_and(|fence| fence.confines())
}

fn describe(error: ConfineError) -> io::Error {
    io::Error::other(crate::exit::chain(&error.into()))
}

#[cfg(test)]
mod tests;
