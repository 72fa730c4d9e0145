//! Connections to the guest's services over vsock.

mod dial;
pub mod vsock;

pub use dial::{DialError, GuestDial};
