//! The virtio-fs (FUSE) server: shares folders of the host with a guest.
//!
//! [`filesystem::FileSystem`] is the contract in the middle: the server above it parses requests and encodes replies, the
//! passthrough below it acts on directories of the host.

pub mod buffers;
pub mod filesystem;
pub mod passthrough;
pub mod server;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod wire;
