//! The second shell around a device: any [`VirtioDevice`](crate::virtio::VirtioDevice) behind a vhost-user front end, which
//! is QEMU's half of such a device.
//!
//! The front end owns the guest's memory and the device's registers; over a Unix socket it hands us descriptors of the
//! memory, where the rings are, and eventfds for notifications in both directions. This shell turns that into an
//! [`Activation`](crate::virtio::Activation) and back.

mod backend;
mod interrupt;
mod memory;
mod server;
mod vring;

#[cfg(test)]
mod tests;

use std::io;

pub use server::VhostUserServer;

use crate::event_loop::EventLoopError;

/// Why a device cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// The loop of the device's workers could not be started.
    #[error("the event loop of the vhost-user device {name} could not be started")]
    EventLoop {
        /// Which device.
        name: String,
        /// Why.
        #[source]
        source: EventLoopError,
    },
    /// The server's thread or a descriptor for it could not be had.
    #[error("the server of the vhost-user device {name} could not be started")]
    Start {
        /// Which device.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server could not be told to stop.
    #[error("the server of the vhost-user device {name} could not be stopped")]
    Stop {
        /// Which device.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server's thread panicked.
    #[error("the server of the vhost-user device {name} ended in a panic; see the log")]
    Panicked {
        /// Which device.
        name: String,
    },
}
