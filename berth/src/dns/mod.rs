//! Names, resolved as this host resolves them at the moment.
//!
//! The guest's name server passes every question on to here ([`protocol::dns`]). Some are answered without asking anybody
//! ([`local`]: the host's own name in containers, and what is in its `/etc/hosts`); the others go to the name servers of the
//! host's `/etc/resolv.conf`, which is looked at afresh for each question ([`fresh`]), because a host moves between networks
//! and its machines do not notice.

mod ask;
mod fresh;
mod hosts;
mod local;
mod resolv_conf;
mod resolver;
mod service;
mod watch;

#[cfg(test)]
mod tests;

pub use self::resolv_conf::ResolvConf;
pub use self::resolver::Resolver;
pub use self::service::serve;
pub use self::watch::FileWatch;

/// Where the host says which name servers it uses.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where the host has names of its own.
const HOSTS: &str = "/etc/hosts";
