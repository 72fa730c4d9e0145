//! Extended attributes.

use super::codec::wire_struct;

wire_struct! {
    /// `fuse_setxattr_in` without FUSE_SETXATTR_EXT, followed by the name with its NUL and the value.
    pub struct SetxattrInShort {
        /// Bytes of the value.
        pub size: u32,
        /// XATTR_CREATE, XATTR_REPLACE.
        pub flags: u32,
    }
}

wire_struct! {
    /// `fuse_setxattr_in` with FUSE_SETXATTR_EXT.
    pub struct SetxattrIn {
        /// What all versions have.
        pub start: SetxattrInShort,
        /// FUSE_SETXATTR_*.
        pub setxattr_flags: u32,
        /// Not used.
        pub padding: u32,
    }
}

wire_struct! {
    /// `fuse_getxattr_in`; for GETXATTR followed by the name, for LISTXATTR by nothing.
    pub struct GetxattrIn {
        /// Bytes of room for the value; 0 asks for its size.
        pub size: u32,
        /// Not used.
        pub padding: u32,
    }
}

wire_struct! {
    /// `fuse_getxattr_out`: the answer when only the size was asked for.
    pub struct GetxattrOut {
        /// Bytes of the value.
        pub size: u32,
        /// Not used.
        pub padding: u32,
    }
}
