//! What the tests and the fuzz targets of this crate share; only in tests and with the feature `testing`.
//!
//! The bodies of the fuzz targets are here ([`fuzz_request`], [`fuzz_session`]), so that the same code runs under cargo-fuzz
//! for as long as one likes and under `cargo test` with a few hundred random inputs.

#[cfg(test)]
mod allocations;
mod body;
mod client;
mod confinement;
mod input;
mod ram;
mod script;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use allocations::count as count_allocations;
pub use client::{Answer, Client, request_bytes};
pub use confinement::fuzz_session;
pub use input::Input;
pub use ram::RamFs;
#[cfg(test)]
pub(crate) use script::records;
pub use script::{fuzz_request, run_script};
