//! What the device hands its requests to.

use fileshare::{filesystem::FileSystem, server::Server};

use crate::{Reply, Request};

/// Handles FUSE requests, several at once and on any thread.
pub trait RequestHandler: Send + Sync {
    /// Handles one request. Returns the bytes of reply written, 0 for a request without one.
    fn handle(&self, request: Request, reply: Reply) -> usize;

    /// With true, ends the waits of all requests that wait for something, and of those to come, until called with false.
    /// Called with true and then false around every stop of the device.
    fn interrupt_all(&self, on: bool);

    /// The driver has reset the device: the session is over. No request is being handled.
    fn reset(&self);
}

impl<F: FileSystem> RequestHandler for Server<F> {
    fn handle(&self, request: Request, reply: Reply) -> usize {
        Server::handle(self, request, reply)
    }

    fn interrupt_all(&self, on: bool) {
        Server::interrupt_all(self, on);
    }

    fn reset(&self) {
        Server::reset(self);
    }
}
