//! Entries of READDIR and READDIRPLUS: a structure, the name without a NUL, and zeros up to a multiple of 8 bytes.

use super::attributes::EntryOut;
use super::codec::wire_struct;

wire_struct! {
    /// `fuse_dirent`, followed by the name.
    pub struct Dirent {
        /// Inode number.
        pub ino: u64,
        /// The offset that continues after this entry.
        pub off: u64,
        /// Bytes of the name.
        pub namelen: u32,
        /// DT_*.
        pub kind: u32,
    }
}

wire_struct! {
    /// `fuse_direntplus`, followed by the name.
    pub struct Direntplus {
        /// As LOOKUP of the name would answer; its node is 0 when there are no attributes with this entry, which stands for
        /// no lookup.
        pub entry_out: EntryOut,
        /// The entry.
        pub dirent: Dirent,
    }
}

/// How many zeros follow after a structure and name of `len` bytes together (FUSE_REC_ALIGN).
pub fn record_padding(len: usize) -> usize {
    len.wrapping_neg() % 8
}

/// Bytes that a structure of `fixed` bytes takes with a name of `name` bytes.
pub fn record_size(fixed: usize, name: usize) -> usize {
    let len = fixed + name;
    len + record_padding(len)
}
