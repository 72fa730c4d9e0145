//! Requests to the guest, on [`crate::ports::CONTROL`]. A connection carries any number of requests, each answered in
//! order by one [`Reply`].

use serde::{Deserialize, Serialize};

use crate::shares::ShareMount;

/// What the host asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Are you there? Answered by [`Reply::Done`].
    Ping,
    /// How are you? Answered by [`Reply::Status`].
    Status,
    /// Set the clock. Answered by [`Reply::Clock`].
    SetClock {
        /// The host's time, in nanoseconds since the Unix epoch.
        unix_time_ns: u64,
    },
    /// Mount a share that the host has added to the shared file system. Answered by [`Reply::Done`] when it is there.
    MountShare(ShareMount),
    /// Unmount a share. Answered by [`Reply::Done`] when no new container can get at it; those that have it keep it, and
    /// get errors once the host has taken it away. A share that is not mounted is no error.
    UnmountShare {
        /// Which: [`ShareMount::id`].
        id: String,
    },
    /// Have this many CPUs online, the first of them: at least one, at most those the machine was started with. Answered by
    /// [`Reply::Done`] when it is so.
    SetCpus {
        /// How many.
        online: u32,
    },
    /// Containers started from now on have these search domains. Answered by [`Reply::Done`].
    SetSearch {
        /// The domains, in order.
        domains: Vec<String>,
    },
    /// Stop containers and dockerd, sync and unmount, power off. Answered by [`Reply::Done`] before it begins.
    Shutdown {
        /// Seconds containers and dockerd get to end before they are killed.
        grace_seconds: u32,
    },
}

/// What the guest answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// It is done, or has begun.
    Done,
    /// The state of the guest.
    Status(Box<GuestStatus>),
    /// The clock was set.
    Clock {
        /// How far it was off, host minus guest, in nanoseconds.
        offset_ns: i64,
    },
    /// It could not be done.
    Error {
        /// What failed and why.
        message: String,
    },
}

/// The state of the guest, as the guest sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// The kernel's release.
    pub kernel: String,
    /// Milliseconds since the kernel started.
    pub uptime_ms: u64,
    /// CPUs online.
    pub cpus: u32,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Memory, from `/proc/meminfo`.
    pub memory: MemoryStatus,
    /// The data disk; none until it is mounted.
    pub data_disk: Option<DiskStatus>,
    /// dockerd.
    pub docker: DockerStatus,
    /// The guest's time, in nanoseconds since the Unix epoch.
    pub unix_time_ns: u64,
}

/// Memory as the guest sees it, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// `MemTotal`.
    pub total: u64,
    /// `MemAvailable`.
    pub available: u64,
    /// `MemFree`.
    pub free: u64,
    /// `Cached` + `Buffers`: page cache that can be dropped.
    pub cached: u64,
}

/// The data disk as the guest sees it, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Size of the file system.
    pub total: u64,
    /// Used.
    pub used: u64,
    /// Free for containers.
    pub available: u64,
}

/// dockerd as guest-init supervises it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerStatus {
    /// Where it is in its life.
    pub state: DockerState,
    /// Its version, once it answered.
    pub version: Option<String>,
    /// Its process id, while it runs.
    pub pid: Option<u32>,
    /// How often it ended without being asked to since boot.
    pub restarts: u32,
}

/// Where dockerd is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DockerState {
    /// Not started yet.
    Waiting,
    /// Started, not answering yet.
    Starting,
    /// Answering.
    Ready,
    /// Ended; about to be started again.
    Restarting,
    /// Being stopped, or stopped.
    Stopping,
}
