//! virtio over MMIO (virtio 1.2, 4.2): the in-process shell around a [`VirtioDevice`](super::VirtioDevice).
//!
//! [`registers`] are the addresses, [`transport`] is what a driver does to them, [`queue_setup`] what it says of a queue
//! before it is trusted, [`interrupt`] the way back, [`bus`] finds the device of an address.

pub mod bus;
pub mod interrupt;
pub mod queue_setup;
pub mod registers;
pub mod transport;

#[cfg(test)]
mod transport_tests;

pub use bus::MmioBus;
pub use interrupt::MmioInterrupt;
pub use transport::{Doorbells, MmioTransport};
