//! The FUSE ABI, as in `include/uapi/linux/fuse.h` of Linux 6.12 (version 7.41): opcodes, flags and structures.
//!
//! Everything is little-endian, as the virtio specification has it (1.2, 5.11.6). Structures are decoded and encoded field
//! by field ([`Wire`]), so nothing depends on how the compiler lays them out and no byte of the guest's is ever reinterpreted.
//! Names are the header's in Rust's spelling; what is called padding, dummy or spare there is decoded and ignored here.

mod attributes;
mod codec;
mod directory;
mod file;
mod flags;
mod header;
mod init;
mod names;
mod opcode;
mod xattr;

#[cfg(test)]
mod tests;

pub use attributes::{
    AttrOut, EntryOut, FuseAttr, GetattrIn, Kstatfs, SetattrIn, StatxIn, StatxOut, SxTime, device_numbers,
};
pub use codec::{Encoder, Wire};
pub use directory::{Dirent, Direntplus, record_padding, record_size};
pub use file::{
    CopyFileRangeIn, CreateIn, FallocateIn, FileLock, FlushIn, FsyncIn, LkIn, LkOut, LseekIn, LseekOut,
    OpenIn, OpenOut, ReadIn, ReleaseIn, WriteIn, WriteOut,
};
pub use flags::*;
pub use header::{BatchForgetIn, ForgetIn, ForgetOne, InHeader, InterruptIn, OutHeader};
pub use init::{InitIn, InitInShort, InitOut};
pub use names::{AccessIn, LinkIn, MkdirIn, MknodIn, Rename2In, RenameIn};
pub use opcode::Opcode;
pub use xattr::{GetxattrIn, GetxattrOut, SetxattrIn, SetxattrInShort};

/// FUSE_KERNEL_VERSION.
pub const KERNEL_VERSION: u32 = 7;
/// FUSE_KERNEL_MINOR_VERSION of the header this follows.
pub const KERNEL_MINOR_VERSION: u32 = 41;
/// FUSE_ROOT_ID: the node that the guest knows without a lookup.
pub const ROOT_ID: u64 = 1;
/// The longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes.
pub const TARGET_MAX: usize = 4095;
/// The longest name of an extended attribute, in bytes.
pub const XATTR_NAME_MAX: usize = 255;
/// The longest value of an extended attribute, in bytes.
pub const XATTR_SIZE_MAX: usize = 65536;
