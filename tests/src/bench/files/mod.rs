//! File sharing measured: berth's server, virtiofsd and ext4 in one guest, row by row.
//!
//! One machine under QEMU has all file systems mounted at once; each round runs every group of rows on each of them in
//! turn, so that what else the host does meets all alike. [`host`] prepares the trees, starts the servers and the
//! machine, and makes the table; [`guest`] is the program that is the machine's init and does the work. What both must
//! agree on is in [`plan`] and [`message`].

pub mod guest;
pub mod host;
pub mod message;
pub mod plan;
