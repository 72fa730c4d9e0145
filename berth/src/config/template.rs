//! The configuration a first start writes: everything that can be set, commented out, with what holds on this host.

use std::path::Path;

use crate::dns::{RESOLV_CONF, ResolvConf};
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
    let home = crate::paths::home().unwrap_or_else(|| "/home/me".into());
    let home = home.display();
    let search = ResolvConf::load(Path::new(RESOLV_CONF)).search;
    // A list in JSON is one in YAML.
    let search = serde_json::json!(search);
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

# Directories of this host that containers can have (`docker run -v`): your home directory. A directory has the same path
# in the machine unless a target says otherwise. With this list, only what it names is shared.
# `berth share add` and `berth share remove` change this for one machine, also while it runs.
#shares:
#  - path: ~
    # Where the machine has it; needed when the machine has something of its own there, such as /usr.
#    target: {home}
    # Containers may only read it.
#    read_only: false
    # What of it the machine does not see, relative to the directory, for example:
    #   [.ssh, .gnupg]
#    exclude: []

# What paths of other systems stand for on this host, for compose files written elsewhere, each with the directory here:
# {{'C:\\Users\\me': ~, /Users/me: ~}}
# One line for C:\\Users\\me is also for c:/Users/me, /c/Users/me, //c/Users/me and /host_mnt/c/Users/me.
#paths: {{}}

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
  # DNS search domains of containers. Without this line they are this host's, also when these change.
#  search: {search}
  # The proxies that Docker pulls images through: those that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name where `berth start`
  # is typed. `none`, or in their place for example:
  #   {{http: 'http://proxy.example:3128', https: 'http://proxy.example:3128', no_proxy: .example}}
#  proxy: none
  # Files with certificates (PEM) of registries and proxies for Docker to trust, besides those that this host's
  # administrator has added.
#  ca_certificates: []

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
