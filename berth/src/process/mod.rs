//! Processes: who they are, the children of a daemon, and the programs that become them.
//!
//! A process id alone names nothing: ids are used again. A process is named here by its id and its start time
//! ([`ProcessId`]), so that nothing is ever signalled that is not ours.

mod children;
mod identity;
pub mod program;

#[cfg(test)]
pub(crate) use children::leave_record;
pub use children::{Child, Children, SpawnError};
pub use identity::ProcessId;
