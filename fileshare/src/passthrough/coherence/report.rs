//! What there is to know about replaying, for those who watch it work.

use std::time::Duration;

/// What has happened so far, and how many directories are watched now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// The guest's caches are kept right: an agent is connected and nothing was lost.
    pub coherent: bool,
    /// Directories that are watched.
    pub watched: u64,
    /// Those of them that only inotify can watch: the guest is told of changes, and caches for a second at most all the same.
    pub by_inotify: u64,
    /// Directories that the guest knows and that cannot be watched; what is in them is cached for a second at most.
    pub unwatched: u64,
    /// Events of other processes read from the host.
    pub seen: u64,
    /// Actions performed in the guest.
    pub replayed: u64,
    /// Events that went into an action together with others.
    pub coalesced: u64,
    /// Events that needed nothing: of what the guest does not know, or knows better.
    pub dropped: u64,
    /// Times that the host's queue of events ran over, so that the guest was made to forget everything.
    pub overflows: u64,
    /// Times that the guest was made to forget everything, for this or another reason.
    pub invalidations: u64,
}

/// One action that was performed, or one that was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it was: `create`, `remove`, `rename`, `move_in`, `move_out` (from or to where the guest has not been), `modify`,
    /// `attributes`, `close_write`; `invalidate` when the guest was made to forget what it had cached.
    pub kind: &'static str,
    /// Where, from the root of its share, as the server knows the way; empty for what concerns all.
    pub path: Vec<u8>,
    /// The new path, of a rename.
    pub new_path: Option<Vec<u8>>,
    /// From reading the event to the guest's answer.
    pub latency: Duration,
    /// What the guest's kernel said to it: 0 when it was done.
    pub error: i32,
}
