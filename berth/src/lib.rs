//! berth: the command line and the daemon of one machine.
//!
//! A *machine* is a virtual machine that runs the Docker engine. Each running machine has one daemon ([`daemon`]), which
//! owns everything of it: the virtual machine ([`engine`]), its network ([`net`], [`dns`]), the Docker socket ([`docker`]) and the
//! HTTP interface that the command line talks to ([`api`]). A machine that is stopped is files and nothing else.

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dns;
pub mod docker;
pub mod doctor;
pub mod engine;
pub mod exit;
pub mod guest;
pub mod host;
pub mod logs;
pub mod machine;
pub mod name;
pub mod net;
pub mod output;
pub mod paths;
pub mod process;
pub mod profiles;
pub mod progress;
pub mod published;
pub mod shares;
pub mod size;
mod stream;
