//! What every request and every reply starts with, and the requests that are about other requests or need no answer.

use super::codec::wire_struct;

wire_struct! {
    /// `fuse_in_header`: the start of every request.
    pub struct InHeader {
        /// Bytes of the request, with this header.
        pub len: u32,
        /// One of [`super::Opcode`].
        pub opcode: u32,
        /// Tells requests apart; the reply carries it back.
        pub unique: u64,
        /// The node it is about.
        pub nodeid: u64,
        /// fsuid of who asks.
        pub uid: u32,
        /// fsgid of who asks.
        pub gid: u32,
        /// Thread id of who asks, in the guest.
        pub pid: u32,
        /// Length of the extensions at the request's end, in units of 8 bytes.
        pub total_extlen: u16,
        /// Not used.
        pub padding: u16,
    }
}

wire_struct! {
    /// `fuse_out_header`: the start of every reply.
    pub struct OutHeader {
        /// Bytes of the reply, with this header.
        pub len: u32,
        /// 0, or a negative error number; then nothing follows.
        pub error: i32,
        /// Of the request.
        pub unique: u64,
    }
}

wire_struct! {
    /// `fuse_forget_in`.
    pub struct ForgetIn {
        /// Lookups dropped.
        pub nlookup: u64,
    }
}

wire_struct! {
    /// `fuse_batch_forget_in`, followed by `count` times [`ForgetOne`].
    pub struct BatchForgetIn {
        /// How many follow.
        pub count: u32,
        /// Not used.
        pub dummy: u32,
    }
}

wire_struct! {
    /// `fuse_forget_one`.
    pub struct ForgetOne {
        /// The node.
        pub nodeid: u64,
        /// Lookups dropped.
        pub nlookup: u64,
    }
}

wire_struct! {
    /// `fuse_interrupt_in`.
    pub struct InterruptIn {
        /// Of the request to end.
        pub unique: u64,
    }
}
