//! virtio devices (specification 1.2) and what they stand on.
//!
//! [`device`] is what a device offers, [`queue`] what it is given, [`interrupt`] how it is heard. The transports build a
//! [`device::Activation`] and otherwise stay out of the way.

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod console;
pub mod device;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
pub mod serve;
pub mod vsock;

#[cfg(any(test, feature = "test-driver"))]
pub mod test_driver;

pub use device::{ActivateError, Activation, VirtioDevice};
pub use interrupt::{Interrupt, InterruptCause};
pub use queue::{Chain, Interrupter, QueueError, VirtQueue};
