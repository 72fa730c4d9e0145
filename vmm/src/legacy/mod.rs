//! The few devices of a PC that a kernel expects before any driver runs: [`serial`], [`i8042`], and [`ports`], which
//! finds them by I/O port.

pub mod i8042;
pub mod ports;
pub mod serial;

pub use ports::{PortAction, Ports};
