//! What the host's kernel tells, by fanotify or by inotify.

/// Names a watched directory, or an inode of a file system: what an event has in place of a path.
pub(super) type Key = Box<[u8]>;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Event {
    /// FAN_*.
    pub(super) mask: u64,
    /// This process's id when it did it; something else otherwise.
    pub(super) pid: i32,
    /// The directory and the name in it; `.` is the directory itself. Of a rename, where it was, if that is watched.
    pub(super) at: Option<(Key, Box<[u8]>)>,
    /// Of a rename, where it is now, if that is watched.
    pub(super) to: Option<(Key, Box<[u8]>)>,
    /// What it happened to. Unknown to inotify.
    pub(super) target: Option<Key>,
}

impl Event {
    /// Events were lost.
    pub(super) fn is_overflow(&self) -> bool {
        self.mask & libc::FAN_Q_OVERFLOW != 0
    }

    /// This process did it itself.
    pub(super) fn is_own(&self) -> bool {
        self.pid == own_pid()
    }
}

/// This process, as events name it.
pub(super) fn own_pid() -> i32 {
    std::process::id() as i32
}
