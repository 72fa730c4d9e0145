//! The daemon's HTTP interface on its Unix socket, described in `docs/api.md`: what it says ([`types`]), the daemon's side
//! ([`server`]) and the command line's side ([`client`]).

use std::time::Duration;

pub mod client;
mod errno;
mod happenings;
pub mod server;
pub mod types;

/// How long `POST /v1/sync` waits at most.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
