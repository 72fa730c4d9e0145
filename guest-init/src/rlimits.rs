//! Resource limits of guest-init, which dockerd, containerd and through them containers inherit.

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::console::warning;

/// Open files, soft and hard. What Docker's desktop products give containers: enough for every database, and not the
/// billion that makes programs which close every possible descriptor run for minutes.
const OPEN_FILES: u64 = 1_048_576;

/// Sets the limits.
pub(crate) fn raise() {
    let limits = [
        ("open files", Resource::Nofile, Some(OPEN_FILES)),
        // cgroups (pids.max) limit processes, per container; this limit would be one sum over all of a user's.
        ("processes", Resource::Nproc, None),
        // Whether a container may dump core is its own decision (`--ulimit core`).
        ("core size", Resource::Core, None),
    ];
    for (name, resource, value) in limits {
        let limit = Rlimit {
            current: value,
            maximum: value,
        };
        if let Err(e) = setrlimit(resource, limit) {
            warning!("cannot raise the limit of {name}: {e}");
        }
    }
}
