//! The daemon: one process per running machine, detached from the terminal it was started from.
//!
//! Two locks make starts safe. `start.lock` is held by a command that is about to start (or delete) a machine, so that the
//! second of two looks only when the first's daemon already answers. `daemon.lock` is held by the daemon for as long as it
//! lives. A third, beside the disk, keeps two daemons with different runtime directories from one disk.

pub mod launch;
pub mod lock;
pub mod pid_file;
mod run;
mod signals;

pub use run::run;
