//! What a message head may take.

/// The largest head of a request or response, in bytes, as Go's server has it (`http.DefaultMaxHeaderBytes`). The
/// credentials of many registries travel in one header.
pub(super) const HEAD_BYTES: usize = 1 << 20;

/// The most header fields in one head.
pub(super) const HEADERS: usize = 256;
