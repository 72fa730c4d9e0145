//! Log streams, on [`crate::ports::LOGS`]: the host sends one [`LogRequest`], the guest answers one [`LogReply`], and
//! after [`LogReply::Streaming`] the rest of the stream is raw bytes until the end of the log, or without end when
//! following.

use serde::{Deserialize, Serialize};

/// Which log, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRequest {
    /// Which log.
    pub source: LogSource,
    /// Start this many lines before the end; none for all that is kept.
    pub tail: Option<u64>,
    /// Keep sending what is added.
    pub follow: bool,
}

/// The logs a guest keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// dockerd's own output, kept across boots on the data disk.
    Dockerd,
    /// The kernel's ring buffer.
    Kernel,
}

/// The answer to a [`LogRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum LogReply {
    /// Raw bytes follow.
    Streaming,
    /// There is nothing to send.
    Error {
        /// Why.
        message: String,
    },
}
