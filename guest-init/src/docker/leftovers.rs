//! What a dockerd that was killed leaves behind and the next one would stumble over.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::config;
use crate::console::warning;

/// Removes what is stale. Call it only while no dockerd runs.
///
/// dockerd does not start when the number in its pid file belongs to a living process, which after a while is any
/// process. The socket goes so that its next appearance is news.
pub(super) fn remove() {
    for path in [config::PID_FILE, config::SOCKET] {
        remove_file(Path::new(path));
    }
}

fn remove_file(path: &Path) {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => warning!("cannot remove {}: {e}", path.display()),
        _ => {}
    }
}
