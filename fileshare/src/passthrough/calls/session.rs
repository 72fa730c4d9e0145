//! The session's start and end.

use std::sync::atomic::Ordering;

use super::super::Passthrough;
use super::super::config::CachePolicy;
use crate::wire;

/// What is turned on whenever the guest offers it.
const WANTED: u64 = wire::ASYNC_READ
    | wire::POSIX_LOCKS
    | wire::FLOCK_LOCKS
    | wire::ATOMIC_O_TRUNC
    | wire::EXPORT_SUPPORT
    | wire::BIG_WRITES
    | wire::DO_READDIRPLUS
    | wire::READDIRPLUS_AUTO
    | wire::ASYNC_DIO
    | wire::PARALLEL_DIROPS
    | wire::CACHE_SYMLINKS
    | wire::HANDLE_KILLPRIV_V2;

impl Passthrough {
    pub(super) fn start_session(&self, offered: u64) -> u64 {
        let mut wanted = WANTED;
        if self.config.submounts {
            wanted |= wire::SUBMOUNTS;
        }
        match self.config.cache {
            // Past the page cache, but still with shared mappings.
            CachePolicy::Never => wanted |= wire::DIRECT_IO_ALLOW_MMAP,
            CachePolicy::Auto | CachePolicy::Always => wanted |= wire::AUTO_INVAL_DATA,
        }
        if self.watcher.get().is_some() {
            wanted |= wire::BERTH_ATTRS;
        }
        let on = wanted & offered;
        self.marks.store(on & wire::BERTH_ATTRS != 0, Ordering::Relaxed);
        self.submounts.store(on & wire::SUBMOUNTS != 0, Ordering::Relaxed);
        on
    }

    pub(super) fn end_session(&self) {
        self.forget_nodes(|node| !node.permanent);
        // Of roots, too, everything but their nodes.
        self.files.remove_all(|_| true);
        self.dirs.remove_all(|_| true);
        self.locks.remove_all(|_| true);
        self.close_cached();
    }
}
