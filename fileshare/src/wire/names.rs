//! Requests that make, remove and move names. The names themselves follow the structure, each with its NUL.

use super::codec::wire_struct;

wire_struct! {
    /// `fuse_mknod_in`, followed by the name.
    pub struct MknodIn {
        /// Type and permissions.
        pub mode: u32,
        /// Device number, of a device node.
        pub rdev: u32,
        /// Of who asks.
        pub umask: u32,
        /// Not used.
        pub padding: u32,
    }
}

wire_struct! {
    /// `fuse_mkdir_in`, followed by the name.
    pub struct MkdirIn {
        /// Permissions.
        pub mode: u32,
        /// Of who asks.
        pub umask: u32,
    }
}

wire_struct! {
    /// `fuse_rename_in`, followed by the old and the new name.
    pub struct RenameIn {
        /// The directory of the new name.
        pub newdir: u64,
    }
}

wire_struct! {
    /// `fuse_rename2_in`, followed by the old and the new name.
    pub struct Rename2In {
        /// The directory of the new name.
        pub newdir: u64,
        /// RENAME_*.
        pub flags: u32,
        /// Not used.
        pub padding: u32,
    }
}

wire_struct! {
    /// `fuse_link_in`, followed by the new name. The request's node is the directory.
    pub struct LinkIn {
        /// The node that gets another name.
        pub oldnodeid: u64,
    }
}

wire_struct! {
    /// `fuse_access_in`.
    pub struct AccessIn {
        /// R_OK, W_OK, X_OK.
        pub mask: u32,
        /// Not used.
        pub padding: u32,
    }
}
