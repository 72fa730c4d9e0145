//! How the host's side of a disk is doing, for whoever shows it to the user.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// What went wrong on the host. The guest saw an I/O error for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFault {
    /// The host's file system, or the user's quota on it, is full.
    NoSpace,
    /// Reading or writing the image failed.
    Io,
    /// Data that the host had taken may be lost: making it durable failed.
    FlushFailed,
}

/// The counts so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockHealthReport {
    /// Requests that failed because the host's disk is full.
    pub no_space: u64,
    /// Requests that failed for any other reason on the host.
    pub io_errors: u64,
    /// Making data durable failed once: every flush fails until the image is opened again.
    pub flush_failed: bool,
}

type Observer = Arc<dyn Fn(BlockFault) + Send + Sync>;

#[derive(Default)]
struct Inner {
    no_space: AtomicU64,
    io_errors: AtomicU64,
    flush_failed: AtomicBool,
    observer: Mutex<Option<Observer>>,
}

/// A handle to a disk's health; cheap to clone, usable from any thread, outlives the disk.
#[derive(Clone, Default)]
pub struct BlockHealth {
    inner: Arc<Inner>,
}

impl BlockHealth {
    /// The counts so far.
    pub fn report(&self) -> BlockHealthReport {
        BlockHealthReport {
            no_space: self.inner.no_space.load(Ordering::Relaxed),
            io_errors: self.inner.io_errors.load(Ordering::Relaxed),
            flush_failed: self.inner.flush_failed.load(Ordering::Relaxed),
        }
    }

    /// Has `observer` called at every fault, on the thread of the request's queue: it must be quick. Replaces the last
    /// observer.
    pub fn on_fault(&self, observer: Box<dyn Fn(BlockFault) + Send + Sync>) {
        *self.observer() = Some(Arc::from(observer));
    }

    /// Takes note of a failed request.
    pub(super) fn record(&self, error: &io::Error) {
        let (fault, count) = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => (BlockFault::NoSpace, &self.inner.no_space),
            _ => (BlockFault::Io, &self.inner.io_errors),
        };
        let count = count.fetch_add(1, Ordering::Relaxed) + 1;
        // A guest that retries must not flood the log.
        if count.is_power_of_two() {
            tracing::error!(%error, count, "a disk request failed on the host");
        }
        self.tell(fault);
    }

    /// Takes note of a failed flush.
    pub(super) fn record_flush_failure(&self, error: &io::Error) {
        self.inner.flush_failed.store(true, Ordering::Relaxed);
        tracing::error!(
            %error,
            "data could not be made durable; the guest's flushes fail from now on, restart the machine when the cause is gone"
        );
        self.tell(BlockFault::FlushFailed);
    }

    fn tell(&self, fault: BlockFault) {
        // Called outside the lock: an observer may set another.
        let observer = self.observer().clone();
        if let Some(observer) = observer {
            observer(fault);
        }
    }

    fn observer(&self) -> std::sync::MutexGuard<'_, Option<Observer>> {
        // Only ever replaced whole, so a panic elsewhere leaves nothing half done.
        self.inner.observer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_apart_and_reported() {
        let health = BlockHealth::default();
        let seen: Arc<Mutex<Vec<BlockFault>>> = Arc::default();
        let sink = Arc::clone(&seen);
        health.on_fault(Box::new(move |fault| sink.lock().unwrap().push(fault)));

        health.record(&io::Error::from_raw_os_error(libc::ENOSPC));
        health.record(&io::Error::from_raw_os_error(libc::EDQUOT));
        health.record(&io::Error::from_raw_os_error(libc::EIO));
        health.record_flush_failure(&io::Error::from_raw_os_error(libc::EIO));

        let expected = BlockHealthReport {
            no_space: 2,
            io_errors: 1,
            flush_failed: true,
        };
        assert_eq!(health.report(), expected);
        use BlockFault::{FlushFailed, Io, NoSpace};
        assert_eq!(*seen.lock().unwrap(), [NoSpace, NoSpace, Io, FlushFailed]);
    }
}
