//! The file system that all shares of a machine are in, and the device the guest reaches it by.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use fileshare::passthrough::{Passthrough, PassthroughConfig, ShareConfig};
use fileshare::server::Server;
use fileshare_virtio::{MAX_REQUEST_QUEUES, VirtioFs, VirtioFsConfig, VirtioFsError};
use vmm::virtio::VirtioDevice;

/// How many requests of one queue the host works on at once. More than one, so that a slow one (an fsync, a file on the
/// network) does not hold up the rest.
const THREADS_PER_QUEUE: u16 = 4;

/// A directory of each share, named by the share's id, in one root.
#[derive(Clone)]
pub(super) struct Tree(Arc<Passthrough>);

impl Tree {
    /// Without any share.
    pub(super) fn new() -> Tree {
        Tree(Arc::new(Passthrough::multiple(PassthroughConfig::default())))
    }

    /// Shows the directory `root` to the guest.
    pub(super) fn add(
        &self,
        id: &str,
        root: PathBuf,
        read_only: bool,
        exclude: Vec<PathBuf>,
    ) -> io::Result<()> {
        let share = ShareConfig {
            root,
            read_only,
            exclude,
        };
        self.0.add_share(id, share)
    }

    /// Takes it away; what of it is in use in the guest gets errors from now on.
    pub(super) fn remove(&self, id: &str) {
        self.0.remove_share(id);
    }

    /// What the user should know of the shares.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.0.warnings()
    }

    /// The device for a machine with so many virtual CPUs.
    pub(super) fn device(&self, cpus: u8) -> Result<Box<dyn VirtioDevice>, VirtioFsError> {
        let config = VirtioFsConfig {
            tag: protocol::shares::TAG.into(),
            request_queues: u16::from(cpus).clamp(1, MAX_REQUEST_QUEUES),
            threads_per_queue: THREADS_PER_QUEUE,
        };
        let server = Arc::new(Server::new(Arc::clone(&self.0)));
        Ok(Box::new(VirtioFs::new(config, server)?))
    }
}
