//! How a device gets the driver's attention.

use std::{io, sync::Arc};

/// Why the driver is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterruptCause {
    /// Buffers of this queue were used (virtio 1.2, 2.3: used buffer notification).
    Queue(u16),
    /// The configuration space has changed (2.3: configuration change notification).
    Config,
    /// The device cannot go on and must be reset (2.1: DEVICE_NEEDS_RESET).
    NeedsReset,
}

/// The transport's way to the driver. Calls are cheap, never block and may come from any thread.
pub trait Interrupt: Send + Sync {
    /// Interrupts the driver.
    fn signal(&self, cause: InterruptCause) -> io::Result<()>;
}

impl<T: Interrupt + ?Sized> Interrupt for Arc<T> {
    fn signal(&self, cause: InterruptCause) -> io::Result<()> {
        (**self).signal(cause)
    }
}
