//! The messages between the host (the `berth` daemon) and the guest (`guest-init`), their framing and the version
//! handshake.
//!
//! Everything travels over virtio-vsock stream sockets. `docs/seams.md` lists who listens on which port. Control traffic
//! is JSON in length-prefixed frames ([`frame`]): small, rare, and readable in a log. Bulk traffic is raw bytes (Docker
//! API, logs) or a short header and bytes ([`exec`], [`forward`], [`dns`]).
//!
//! Both ends treat the other as hostile: lengths are bounded before anything is allocated, unknown fields are ignored,
//! unknown variants are errors.

pub mod boot;
pub mod control;
pub mod dns;
pub mod exec;
pub mod forward;
pub mod frame;
pub mod logs;
pub mod ports;
pub mod replay;
pub mod shares;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

/// The version of everything in this crate that goes over the wire. Host and guest must agree exactly: the image and the
/// daemon are built from one tree, and a stale image is better refused with a clear message than half understood.
pub const PROTOCOL_VERSION: u32 = 4;
