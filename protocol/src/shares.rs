//! Shares: directories of the host that the guest mounts (`docs/shares.md`).
//!
//! All shares of a machine come over one virtio-fs device. Its root has one directory for each share, named by the share's
//! id, so that shares can come and go while the machine runs; the guest binds each to where the host wants it.

use serde::{Deserialize, Serialize};

/// The virtio-fs tag of a machine's shares.
pub const TAG: &str = "berth";
/// Where guest-init mounts the file system of that tag.
pub const MOUNT_POINT: &str = "/run/berth/shares";

/// Where guest-init keeps copies of files of the host.
pub const HOST_FILES: &str = "/run/berth/host";

/// One share, as the guest has to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareMount {
    /// Its directory in the shared file system: letters and digits, never used twice in a machine's life.
    pub id: String,
    /// Where the guest is to have it, an absolute path.
    pub target: String,
    /// Whether the guest may only read it. The host refuses writes in any case.
    pub read_only: bool,
}

/// Whether `id` can be the name of a share's directory, or of a file of the host.
pub fn is_id(id: &str) -> bool {
    (1..=32).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_harmless_name() {
        assert!(is_id("s0") && is_id("S19"));
        for id in ["", ".", "..", "a/b", "a\0", "s 0", &"x".repeat(33)] {
            assert!(!is_id(id), "{id:?}");
        }
    }
}
