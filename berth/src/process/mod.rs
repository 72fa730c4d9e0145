//! Processes: who they are, and the children of a daemon.
//!
//! A process id alone names nothing: ids are used again. A process is named here by its id and its start time
//! ([`ProcessId`]), so that nothing is ever signalled that is not ours.

mod children;
mod identity;

#[cfg(test)]
pub(crate) use children::leave_record;
pub use children::{Child, Children, SpawnError};
pub use identity::ProcessId;
