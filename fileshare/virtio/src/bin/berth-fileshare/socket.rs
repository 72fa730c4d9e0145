//! The listening socket: made, or inherited.

use std::{
    io::{self, ErrorKind},
    os::{
        fd::{FromRawFd, RawFd},
        unix::{
            fs::FileTypeExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
};

use anyhow::{Context, bail};
use rustix::fs::Mode;

/// Listens at `path`, for this user only. A socket nobody listens on any more is replaced; anything else that is in the way
/// stays.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    // Whoever can connect is given the directory.
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let bound = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_abandoned(path) => {
            std::fs::remove_file(path).and_then(|()| UnixListener::bind(path))
        }
        bound => bound,
    };
    rustix::process::umask(before);
    bound.with_context(|| format!("cannot listen on {}", path.display()))
}

fn is_abandoned(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    is_socket
        && UnixStream::connect(path)
            .is_err_and(|error: io::Error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Listens on a descriptor that whoever started this process has left open.
pub(crate) fn inherited(fd: RawFd) -> anyhow::Result<UnixListener> {
    if fd <= 2 {
        bail!("--fd {fd} is a standard stream, not a listening socket");
    }
    // SAFETY: the user says that the descriptor is this program's, which has opened none of its own so far that it kept. One
    // that is not open fails the next call.
    let listener = unsafe { UnixListener::from_raw_fd(fd) };
    match rustix::net::sockopt::socket_acceptconn(&listener) {
        Ok(true) if listener.local_addr().is_ok() => {
            rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC)?;
            Ok(listener)
        }
        _ => {
            // Not to be closed: it is something else's, or nothing's.
            std::mem::forget(listener);
            bail!("--fd {fd} is not a Unix socket that listens")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_was_left_is_replaced() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert!(bind(&path).is_err(), "somebody listens");
        drop(first);
        drop(bind(&path).unwrap());

        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(bind(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_descriptor_must_be_a_socket() {
        use std::os::fd::{AsRawFd, IntoRawFd};

        assert!(inherited(0).is_err());
        assert!(inherited(1000).is_err());
        let file = tempfile::tempfile().unwrap();
        assert!(inherited(file.as_raw_fd()).is_err());
        file.metadata().expect("it is still open");
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        inherited(listener.into_raw_fd()).unwrap();
    }
}
