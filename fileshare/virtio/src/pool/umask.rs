//! The mode creation mask of threads that make files for a guest.
//!
//! The guest has applied its own. The process's, which is meant for the process's own files and which all its threads
//! share, would take away permissions that must then be given back with another call for each file.

use rustix::{
    fs::Mode,
    thread::{UnshareFlags, unshare_unsafe},
};

/// Gives the calling thread a mask of its own that masks nothing; its working directory and root become its own as well.
/// Where that is not permitted (some sandboxes), the mask stays, and files get their permissions a little slower.
pub(super) fn clear() {
    // SAFETY: only with FILES could this take descriptors away that other threads rely on.
    match unsafe { unshare_unsafe(UnshareFlags::FS) } {
        Ok(()) => {
            rustix::process::umask(Mode::empty());
        }
        Err(error) => tracing::debug!(device = super::NAME, %error, "a thread keeps the process's umask"),
    }
}
