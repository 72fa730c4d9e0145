//! The configuration a first start writes: everything that can be set, commented out, with what holds on this host.

use std::path::Path;

use crate::dns::{RESOLV_CONF, ResolvConf};
use crate::host::Host;
use crate::profiles::builtin;

/// The template's text for `host`. A line that begins with `#` and a key is a setting; `# ` begins a comment.
pub fn template(host: &Host) -> String {
    let cpus = host.default_cpus();
    let memory = host.default_memory().to_config();
    let heavy = builtin::heavy(host);
    let max_cpus = heavy.cpus.unwrap_or(cpus);
    let max_memory = heavy.memory.unwrap_or(host.default_memory()).to_config();
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

# The most CPUs and memory that `berth profile use` can give a machine without a restart. Without these lines: what the largest
# of the profiles below has, but no more than four times the memory that the machine starts with; for a machine with a
# profile that comes with berth, those count too. Memory that a machine could have takes 1.6 percent of it at all times.
#max_cpus: {max_cpus}
#max_memory: {max_memory}

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

# Named sets of settings, to switch between with `berth profile use NAME`: CPUs and memory at once, the others with a
# restart. `berth profile list` shows them and those that come with berth; `berth profile create` adds one here.
#profiles:
#  example:
#    cpus: {cpus}
#    memory: {memory}
    # Only when the machine is to have more than above; a disk does not shrink.
#    disk: 64GiB
    # Whether containers can reach the network.
#    network: true
    # In place of the shares above.
#    shares: []

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
  # Where published ports (`docker run -p 8080:80`) are reachable when the user names no address: 0.0.0.0 is from every
  # network of this host, 127.0.0.1 from this host only.
#  published_address: 0.0.0.0
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
