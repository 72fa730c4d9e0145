//! The start of a session: versions, features, limits.

use super::codec::wire_struct;

wire_struct! {
    /// The part of `fuse_init_in` that all versions have.
    pub struct InitInShort {
        /// FUSE_KERNEL_VERSION of the guest.
        pub major: u32,
        /// FUSE_KERNEL_MINOR_VERSION of the guest.
        pub minor: u32,
        /// The most that the guest reads ahead, in bytes.
        pub max_readahead: u32,
        /// The low 32 of the FUSE_* INIT flags offered.
        pub flags: u32,
    }
}

wire_struct! {
    /// `fuse_init_in`, since 7.36.
    pub struct InitIn {
        /// What older guests send too.
        pub start: InitInShort,
        /// The high 32 of the flags; only when `flags` has FUSE_INIT_EXT.
        pub flags2: u32,
        /// Not used.
        pub unused: [u32; 11],
    }
}

wire_struct! {
    /// `fuse_init_out`.
    pub struct InitOut {
        /// The server's FUSE_KERNEL_VERSION.
        pub major: u32,
        /// The server's FUSE_KERNEL_MINOR_VERSION.
        pub minor: u32,
        /// The most that the guest may read ahead, in bytes.
        pub max_readahead: u32,
        /// The low 32 of the flags that are on.
        pub flags: u32,
        /// The most requests that nobody waits for (reading ahead, writing back, direct I/O) at once; 0 for the default.
        pub max_background: u16,
        /// With this many of them the guest holds back; 0 for the default.
        pub congestion_threshold: u16,
        /// The most that one WRITE carries, in bytes.
        pub max_write: u32,
        /// Granularity of times, in nanoseconds.
        pub time_gran: u32,
        /// The most pages of data that a request carries; with FUSE_MAX_PAGES.
        pub max_pages: u16,
        /// With FUSE_MAP_ALIGNMENT.
        pub map_alignment: u16,
        /// The high 32 of the flags; only when `flags` has FUSE_INIT_EXT.
        pub flags2: u32,
        /// With FUSE_PASSTHROUGH.
        pub max_stack_depth: u32,
        /// Not used.
        pub unused: [u32; 6],
    }
}
