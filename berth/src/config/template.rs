//! The configuration a first start writes: everything that can be set, commented out, with what holds on this host.

use crate::host::Host;

/// The template's text for `host`. A line that begins with `#` and a key is a setting; `# ` begins a comment.
pub fn template(host: &Host) -> String {
    let cpus = host.default_cpus();
    let memory = host.default_memory().mib();
    let memory = if memory.is_multiple_of(1024) {
        format!("{}GiB", memory / 1024)
    } else {
        format!("{memory}MiB")
    };
    format!(
        "\
# berth's configuration. Everything here is optional; the values shown are what holds without them.
# Take the # away from a line (and from the line of its section) to set it. Options of `berth start` win over this file.
# Changes hold from the next `berth start`; `berth config` shows what holds.

# Virtual CPUs of a machine: half the host's.
#cpus: {cpus}

# Memory a machine may use at most: a quarter of the host's, at least 2 GiB. Unused memory goes back to the host.
#memory: {memory}

# The most a machine's images, containers and volumes may take. The disk file grows as it is used. It can be made larger
# later, not smaller.
#disk: 64GiB

# auto: KVM where it works, else QEMU (slower). kvm, qemu: that one or an error.
#engine: auto

#docker:
  # The docker context of the machine `default`; machine NAME has `berth-NAME`.
#  context: berth
  # Make that context when a machine starts.
#  create_context: true
  # Make it the current one on start, and give the one before back on stop.
#  switch_context: true
  # Settings for the Docker daemon, as in its daemon.json, for example:
  #   insecure-registries: [\"192.168.127.1:5000\"]
#  daemon: {{}}

#network:
  # Whether containers can reach the network.
#  enabled: true
  # DNS search domains.
#  search: []

#programs:
  # Where QEMU and passt are. Without these lines they are looked for in PATH.
#  qemu: /usr/bin/qemu-system-x86_64
#  passt: /usr/bin/passt

#timeouts:
  # How long Docker may take to answer after the machine was started.
#  boot: 5m
  # How long containers get to end when the machine is stopped.
#  stop: 20s

# What the daemon's log holds: error, warn, info, debug or trace.
#log_level: info
"
    )
}
