//! The host's side of Docker: the machine's socket and its proxy ([`proxy`]), what that does to bind mounts ([`binds`]),
//! the docker context that points at it ([`context`]), and a small client for what berth itself asks ([`client`]).

pub mod binds;
pub mod client;
pub mod context;
pub mod proxy;
