//! The cgroup v2 tree: every controller handed on to the root's children, and guest-init with all it starts in a leaf.
//!
//! dockerd puts containers in `/docker/ID`; they get only the controllers that the root's `cgroup.subtree_control` lists.
//! guest-init, dockerd and containerd live in `/init.scope`, so that their use and the containers' can be told apart.

use std::path::Path;
use std::{fs, io};

use crate::console::warning;

/// Where the cgroup v2 tree is mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// The leaf for guest-init and what it starts. systemd's name for it is the one dockerd knows: with process 1 in any other
/// it takes the machine for a container and says so in `docker info`.
const LEAF: &str = "init.scope";

/// The tree's root.
pub(crate) fn root() -> &'static Path {
    Path::new(ROOT)
}

/// Sets the tree up. Failures are reported: a container without limits is better than no container.
pub(crate) fn set_up() {
    if let Err(e) = enter_leaf(Path::new(ROOT)) {
        warning!("cannot move guest-init to the cgroup /{LEAF}: {e}");
    }
    if let Err(e) = delegate(Path::new(ROOT)) {
        warning!("cannot hand cgroup controllers on, containers will have no limits: {e}");
    }
}

fn enter_leaf(root: &Path) -> io::Result<()> {
    let leaf = root.join(LEAF);
    if let Err(e) = fs::create_dir(&leaf)
        && e.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(e);
    }
    // "0" is whoever writes it.
    fs::write(leaf.join("cgroup.procs"), "0")
}

fn delegate(root: &Path) -> io::Result<()> {
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
    let control = root.join("cgroup.subtree_control");
    let mut failed = None;
    // One by one: a controller that cannot be had must not take the others with it.
    for word in subtree_control(&controllers) {
        if let Err(e) = fs::write(&control, &word) {
            failed = Some(io::Error::new(e.kind(), format!("{word}: {e}")));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// What to write to `cgroup.subtree_control` for what `cgroup.controllers` lists.
fn subtree_control(controllers: &str) -> Vec<String> {
    controllers
        .split_ascii_whitespace()
        .map(|name| format!("+{name}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_is_handed_on() {
        assert_eq!(subtree_control("cpuset cpu io\n"), ["+cpuset", "+cpu", "+io"]);
        assert!(subtree_control("\n").is_empty());
    }

    #[test]
    fn the_leaf_is_entered_also_when_it_exists() {
        let root = tempfile::tempdir().unwrap();
        enter_leaf(root.path()).unwrap();
        enter_leaf(root.path()).unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join("init.scope/cgroup.procs")).unwrap(),
            "0"
        );
    }
}
