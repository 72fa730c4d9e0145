//! What depends on the processor's architecture: memory layout, CPU identity, boot protocol.
//!
//! An architecture is one folder. The rest of the crate uses what it re-exports here.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64 as current;
