//! The host's side of Docker: the machine's socket and its proxy ([`proxy`]), what that does to bind mounts ([`binds`]) and
//! which calls it holds back until the guest knows all host changes ([`barrier`]), the docker context that points at it
//! ([`context`]), the running containers ([`containers`]), and a small client for what berth itself asks ([`client`]).

pub mod barrier;
pub mod binds;
pub mod client;
pub mod containers;
pub mod context;
pub mod proxy;
