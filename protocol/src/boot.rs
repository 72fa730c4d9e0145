//! The first conversation of a boot, on [`crate::ports::BOOT`]: guest-init calls the host, both say hello, and the guest
//! reports what happens from then on. The host needs no polling: a guest that is up has called.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::shares::ShareMount;

/// What the guest says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestHello {
    /// [`crate::PROTOCOL_VERSION`] of the image.
    pub protocol: u32,
    /// The version of guest-init.
    pub init_version: String,
    /// The running kernel's release, as `uname -r` has it.
    pub kernel: String,
    /// Milliseconds from the kernel's start to this message.
    pub boot_ms: u64,
}

/// What the host answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostHello {
    /// [`crate::PROTOCOL_VERSION`] of the daemon.
    pub protocol: u32,
    /// The host's time when it wrote this, in nanoseconds since the Unix epoch. The guest sets its clock by it.
    pub unix_time_ns: u64,
    /// How the guest is to set itself up.
    pub config: MachineConfig,
}

/// What makes this guest this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// The host name of the guest.
    pub hostname: String,
    /// The address of `eth0`; none when the machine has no network device.
    pub network: Option<NetworkConfig>,
    /// Settings for dockerd's `daemon.json`; they win over guest-init's own defaults, key by key.
    #[serde(default)]
    pub docker: serde_json::Map<String, serde_json::Value>,
    /// Directories of the host, to be mounted before dockerd starts. The file system they are in (tag
    /// [`crate::shares::TAG`]) is there also when this is empty.
    #[serde(default)]
    pub shares: Vec<ShareMount>,
    /// Copies of files of the host that containers are commonly given (its time zone). The guest keeps each in
    /// [`crate::shares::HOST_FILES`] under this name.
    #[serde(default)]
    pub host_files: BTreeMap<String, Vec<u8>>,
    /// Certificates that dockerd is to trust besides those of the image, each in PEM form.
    #[serde(default)]
    pub ca_certificates: Vec<String>,
}

/// A static address for `eth0`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// The guest's addresses, each with its prefix length.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The default gateways, at most one of each family. `host.docker.internal` is the IPv4 one.
    pub gateways: Vec<IpAddr>,
    /// Name servers, in order.
    pub dns: Vec<IpAddr>,
    /// Search domains.
    #[serde(default)]
    pub search: Vec<String>,
    /// The largest packet, in bytes.
    pub mtu: u32,
}

/// What the guest reports on the same stream after the hellos, one frame each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum GuestEvent {
    /// The data disk is mounted. `formatted` says that it was blank and a file system was made on it.
    DataDiskReady {
        /// Whether this boot made the file system.
        formatted: bool,
    },
    /// eth0 has its addresses.
    NetworkReady,
    /// dockerd was started.
    DockerStarting,
    /// dockerd answers on its API socket.
    DockerReady {
        /// Docker's version as its API says it.
        version: String,
    },
    /// dockerd ended without being asked to; it is restarted after `restart_in_ms`.
    DockerExited {
        /// How it ended, in words ("exit status 1", "signal 9").
        status: String,
        /// Milliseconds until the next try.
        restart_in_ms: u64,
    },
    /// A share of the configuration could not be mounted; the machine goes on without it.
    ShareFailed {
        /// Which: [`ShareMount::id`].
        id: String,
        /// What failed and why.
        message: String,
    },
    /// Something the user should know that does not stop the machine.
    Warning {
        /// What it is, and what to do about it.
        message: String,
    },
    /// The machine cannot do its job; the guest powers off after this.
    Fatal {
        /// What failed, why, and what to do.
        message: String,
    },
    /// An orderly shutdown has begun.
    ShuttingDown,
    /// Containers are stopped and the disks are synced; power-off follows at once.
    PoweringOff,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_stable_names_on_the_wire() {
        let event = GuestEvent::DockerExited {
            status: "signal 9".into(),
            restart_in_ms: 500,
        };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"event":"docker_exited","status":"signal 9","restart_in_ms":500}"#
        );
    }

    #[test]
    fn a_hello_from_a_newer_host_with_more_fields_is_still_read() {
        let json =
            r#"{"protocol":9,"unix_time_ns":1,"config":{"hostname":"h","network":null,"more":1},"new":true}"#;
        let hello: HostHello = serde_json::from_str(json).unwrap();
        assert_eq!(hello.protocol, 9);
    }
}
