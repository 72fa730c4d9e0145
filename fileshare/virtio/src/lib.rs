//! fileshare behind a virtio-fs device (virtio 1.2, 5.11), in a machine or over vhost-user.
//!
//! A thin shell: [`VirtioFs`] takes descriptor chains off its queues, hands them to a [`RequestHandler`] (which is
//! [`fileshare::server::Server`]) as buffers that reach straight into guest memory, and gives them back. [`confine`] takes
//! from a process what the server does not need.

mod buffers;
pub mod confine;
mod device;
mod handler;
mod pool;

pub use buffers::{Reply, Request};
pub use device::{
    Confiner, MAX_REQUEST_QUEUES, MAX_THREADS_PER_QUEUE, VirtioFs, VirtioFsConfig, VirtioFsError,
};
pub use handler::RequestHandler;
