//! Which extended attributes of the guest are which on the host.
//!
//! `user.*` is kept as it is. `security.capability` needs privileges on the host and would mean something there, so it
//! is kept under a user name. The names that berth uses itself do not exist for the guest. Everything else is not
//! supported: labels and ACLs of the host are not the guest's business, and the other way round.

use std::ffi::{CStr, CString};

use super::ownership::RECORD_XATTR;

/// Where everything is that does not exist for the guest.
const OURS: &[u8] = b"user.berth.";
/// What the guest calls capabilities.
pub(super) const CAPABILITY: &CStr = c"security.capability";
/// What they are called on the host.
pub(super) const HOST_CAPABILITY: &CStr = c"user.berth.security.capability";

/// What a guest's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mapped {
    /// An xattr of the host.
    Host(CString),
    /// One of ours: reads as absent, cannot be set.
    Ours,
    /// Not supported.
    Unsupported,
}

/// Maps the guest's name.
pub(super) fn to_host(name: &CStr) -> Mapped {
    let bytes = name.to_bytes();
    if name == CAPABILITY {
        Mapped::Host(HOST_CAPABILITY.into())
    } else if bytes.starts_with(OURS) {
        Mapped::Ours
    } else if bytes.starts_with(b"user.") {
        Mapped::Host(name.into())
    } else {
        Mapped::Unsupported
    }
}

/// Maps the host's list of names, each with its NUL, to what the guest sees.
pub(super) fn list_to_guest(list: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(list.len());
    for name in list.split_inclusive(|byte| *byte == 0) {
        if name == HOST_CAPABILITY.to_bytes_with_nul() {
            out.extend_from_slice(CAPABILITY.to_bytes_with_nul());
        } else if name.starts_with(b"user.") && !name.starts_with(OURS) {
            out.extend_from_slice(name);
        }
    }
    out
}

const _: () = assert!(RECORD_XATTR.to_bytes().len() > OURS.len());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        assert_eq!(to_host(c"user.x"), Mapped::Host(c"user.x".into()));
        assert_eq!(to_host(CAPABILITY), Mapped::Host(HOST_CAPABILITY.into()));
        assert_eq!(to_host(RECORD_XATTR), Mapped::Ours);
        assert_eq!(
            to_host(HOST_CAPABILITY),
            Mapped::Ours,
            "the guest has one name for it"
        );
        for name in [
            c"trusted.x",
            c"system.posix_acl_access",
            c"security.selinux",
            c"x",
            c"user",
        ] {
            assert_eq!(to_host(name), Mapped::Unsupported, "{name:?}");
        }
        let list =
            b"user.a\0user.berth.owner\0security.selinux\0user.berth.security.capability\0trusted.b\0user.c\0";
        assert_eq!(list_to_guest(list), b"user.a\0security.capability\0user.c\0");
        assert_eq!(list_to_guest(b""), b"");
    }
}
