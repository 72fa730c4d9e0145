//! Whether a share's directory can be shared well: the same look at a machine's start and in `berth doctor`.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{Access, access};
use rustix::io::Errno;

use super::Share;

/// What was found of a share's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Good,
    /// It can be shared; containers will find something they may not expect.
    Limited(String),
    /// It cannot be shared now, and why.
    Unusable(String),
}

/// Looks at the directory of `share` without changing anything.
pub fn look(share: &Share) -> Health {
    let path = share.path.as_path();
    let unusable = |what: &str| Health::Unusable(format!("{} {what}", path.display()));
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return unusable("is not a directory"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return unusable("is not there"),
        Err(error) => return unusable(&format!("cannot be looked at: {error}")),
    }
    if access(path, Access::READ_OK | Access::EXEC_OK).is_err() {
        return unusable("is not readable for you");
    }
    if share.read_only {
        return Health::Good;
    }
    let limited = |what: &str| Health::Limited(format!("{} {what}", path.display()));
    if access(path, Access::WRITE_OK).is_err() {
        return limited("is not writable for you; containers can write only below it, where you can");
    }
    if !has_user_xattrs(path) {
        return limited(
            "is on a file system without user xattrs; owners and modes that containers set are forgotten when the \
             machine stops",
        );
    }
    Health::Good
}

/// Whether the file system of `path` keeps xattrs of users. One that is asked for and is not there tells.
fn has_user_xattrs(path: &Path) -> bool {
    let mut value = [0_u8; 1];
    !matches!(
        rustix::fs::getxattr(path, c"user.berth.none", &mut value),
        Err(Errno::NOTSUP)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(path: &Path) -> Share {
        Share {
            path: path.to_owned(),
            target: path.to_owned(),
            read_only: false,
            exclude: Vec::new(),
        }
    }

    #[test]
    fn what_is_missing_or_no_directory_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let Health::Unusable(why) = look(&share(&dir.path().join("none"))) else {
            panic!("usable")
        };
        assert!(why.ends_with("none is not there"), "{why}");
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(matches!(
            look(&share(&dir.path().join("file"))),
            Health::Unusable(_)
        ));
        assert!(!matches!(look(&share(dir.path())), Health::Unusable(_)));
    }

    #[test]
    fn a_file_system_without_user_xattrs_is_told_apart() {
        assert!(!has_user_xattrs(Path::new("/proc")));
        let proc = share(Path::new("/proc/self"));
        // Not writable, or without xattrs: either way less than good.
        assert!(matches!(look(&proc), Health::Limited(_)));
        let read_only = Share {
            read_only: true,
            ..proc
        };
        assert_eq!(look(&read_only), Health::Good);
    }
}
