//! What a passthrough is told: which directories, how long the guest may cache, who owns what nobody owns.

use std::path::PathBuf;
use std::time::Duration;

/// One shared directory of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareConfig {
    /// The directory. Symbolic links in this path are followed, once, when the share is added.
    pub root: PathBuf,
    /// Refuse every change with EROFS.
    pub read_only: bool,
    /// Paths relative to `root` that the guest does not see and cannot make. No `..`, not absolute, not empty.
    pub exclude: Vec<PathBuf>,
}

impl ShareConfig {
    /// All of `root`, for reading and writing.
    pub fn new(root: impl Into<PathBuf>) -> ShareConfig {
        ShareConfig {
            root: root.into(),
            read_only: false,
            exclude: Vec::new(),
        }
    }
}

/// What the guest keeps of the contents of files and directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CachePolicy {
    /// Nothing: reads and writes go past its page cache (FOPEN_DIRECT_IO).
    Never,
    /// Pages, until an open finds that the file has changed on the host since the open before.
    #[default]
    Auto,
    /// Pages and directory entries, whatever happens on the host.
    Always,
}

/// Whom a file belongs to whose ownership no guest has ever set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unowned {
    /// Whoever asks. See the module's documentation for what caching makes of it.
    #[default]
    Asker,
    /// Its owner on the host.
    Host,
    /// Always these.
    As {
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// How a passthrough behaves, for all its shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassthroughConfig {
    /// How long attributes may be cached.
    pub attr_timeout: Duration,
    /// How long names may be cached.
    pub entry_timeout: Duration,
    /// How long the absence of a name may be cached; zero for not at all.
    pub negative_timeout: Duration,
    /// Caching of contents.
    pub cache: CachePolicy,
    /// Who owns what nobody owns.
    pub unowned: Unowned,
    /// Tell the guest of mount points below a share, so that it gives each file system a device number of its own.
    pub submounts: bool,
    /// Open nodes by their file handles where the process may (CAP_DAC_READ_SEARCH): they are found then however the
    /// host has renamed what leads to them.
    pub file_handles: bool,
    /// How many descriptors may be used in all; none for the process's RLIMIT_NOFILE. Raise that limit before: the soft
    /// one is 1024 in many sessions.
    pub descriptors: Option<u64>,
}

impl PassthroughConfig {
    /// The timeouts that go with `cache`: none, a second, a day.
    pub fn with_cache(cache: CachePolicy) -> PassthroughConfig {
        let (timeout, negative_timeout) = match cache {
            CachePolicy::Never => (Duration::ZERO, Duration::ZERO),
            CachePolicy::Auto => (Duration::from_secs(1), Duration::ZERO),
            CachePolicy::Always => (Duration::from_secs(86400), Duration::ZERO),
        };
        PassthroughConfig {
            attr_timeout: timeout,
            entry_timeout: timeout,
            negative_timeout,
            cache,
            unowned: Unowned::default(),
            submounts: true,
            file_handles: true,
            descriptors: None,
        }
    }
}

impl Default for PassthroughConfig {
    fn default() -> PassthroughConfig {
        PassthroughConfig::with_cache(CachePolicy::default())
    }
}

/// How the descriptors are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// O_PATH descriptors of nodes, kept because they may be wanted again.
    pub(super) paths: usize,
    /// Files and directories the guest has open.
    pub(super) handles: usize,
    /// Removed but referenced nodes.
    pub(super) pinned: usize,
    /// Holders of locks.
    pub(super) locks: usize,
    /// Files and directories opened for requests without a handle.
    pub(super) transient: usize,
}

impl Budget {
    /// Divides `descriptors`; what is left over is for whatever else the process does.
    pub(super) fn of(descriptors: u64) -> Budget {
        let all = usize::try_from(descriptors).unwrap_or(usize::MAX);
        Budget {
            paths: (all / 8).clamp(4, 1024),
            handles: (all / 2).max(4),
            pinned: (all / 8).max(4),
            locks: (all / 16).max(4),
            transient: (all / 32).clamp(2, 64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_leaves_something_over() {
        for descriptors in [256, 1024, 20_000, 1 << 20] {
            let Budget {
                paths,
                handles,
                pinned,
                locks,
                transient,
            } = Budget::of(descriptors);
            // Directories without a handle and files without one each have their own transient ones.
            assert!(paths + handles + pinned + locks + 2 * transient < descriptors as usize);
        }
        assert_eq!(
            Budget::of(u64::MAX).paths,
            1024,
            "descriptors kept just in case are few"
        );
    }
}
