//! The daemon's HTTP interface on its Unix socket, described in `docs/api.md`: what it says ([`types`]), the daemon's side
//! ([`server`]) and the command line's side ([`client`]).

pub mod client;
pub mod server;
pub mod types;
