//! Which directories can be shared, and where in the guest they can be.
//!
//! Two shares of one file would be two files in the guest, each with a cache of its own; a share over the guest's own
//! directories would take its system away. Both are refused before anything is mounted, with a way out in the message.

use std::io;
use std::path::{Component, Path, PathBuf};

use super::{Share, nested};

/// Directories of the guest's system: a share cannot be there, in there, or over them.
const OWN: &[&str] = &[
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt/containerd",
    "/proc",
    "/run/berth",
    "/run/containerd",
    "/run/docker",
    "/run/docker.pid",
    "/run/docker.sock",
    "/run/lock",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/berth",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lock",
    "/var/log",
    "/var/run",
];

/// Directories the guest's programs write to: a share can be in there and not in their place.
const USED: &[&str] = &["/tmp", "/var/tmp"];

/// Directories of the host that are no files on any disk.
const NOT_FILES: &[&str] = &["/dev", "/proc", "/sys"];

/// Where in the guest a share can be whose own path is taken.
const ELSEWHERE: &str = "/mnt/host";

/// Why a directory cannot be shared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// The path cannot be used.
    #[error("the share's path {} is not an absolute path without `..`", .0.display())]
    Path(PathBuf),
    /// The path cannot be told to the guest.
    #[error("the share's path {} is not UTF-8, which the Docker API cannot say", .0.display())]
    NotUtf8(PathBuf),
    /// `/`, or a file system that is none.
    #[error("{} cannot be shared; share the directories below it that containers need", .0.display())]
    NotShareable(PathBuf),
    /// It is there and no directory.
    #[error("{} is not a directory, and only directories can be shared; share the one it is in", .0.display())]
    NotADirectory(PathBuf),
    /// The target cannot be used.
    #[error("the share's target {} is not an absolute path without `..`", .0.display())]
    Target(PathBuf),
    /// The target is the guest's.
    #[error(
        "a share on {} would hide {own} of the guest's own system; give it another target, such as {}",
        target.display(),
        elsewhere(path.as_deref().unwrap_or(target)).display()
    )]
    Hides {
        /// Where the share was to be.
        target: PathBuf,
        /// What it would hide.
        own: &'static str,
        /// The directory, when the target was not chosen but follows from it.
        path: Option<PathBuf>,
    },
    /// The exclusion cannot be used.
    #[error("the exclusion {} is not a path relative to the share, without `..`", .0.display())]
    Exclude(PathBuf),
    /// Two shares of the same files.
    #[error(
        "{} and {} overlap; a file can be in one share only. {}",
        a.display(),
        b.display(),
        advice(a, b)
    )]
    SharesOverlap {
        /// One directory.
        a: PathBuf,
        /// The other.
        b: PathBuf,
    },
    /// Two shares at the same place of the guest.
    #[error(
        "the shares {} and {} would both be on {} in the guest; give one another target",
        a.display(),
        b.display(),
        target.display()
    )]
    TargetsOverlap {
        /// One directory.
        a: PathBuf,
        /// The other.
        b: PathBuf,
        /// Where both would be.
        target: PathBuf,
    },
}

fn advice(a: &Path, b: &Path) -> String {
    let (outer, inner) = if a.starts_with(b) { (b, a) } else { (a, b) };
    if outer == inner {
        return "Name it once".into();
    }
    format!(
        "{} is shared with {} already, or share it alone",
        inner.display(),
        outer.display()
    )
}

/// Where a share of `path` can be that cannot be at its own path.
pub fn elsewhere(path: &Path) -> PathBuf {
    Path::new(ELSEWHERE).join(path.strip_prefix("/").unwrap_or(path))
}

/// `path` without `.` and doubled slashes; none when it is relative or has `..`.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => plain.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    path.is_absolute().then_some(plain)
}

/// The directory of a share in its one form.
pub fn path(given: &Path) -> Result<PathBuf, ShareError> {
    let path = plain(given).ok_or_else(|| ShareError::Path(given.to_owned()))?;
    if path.to_str().is_none() {
        return Err(ShareError::NotUtf8(path));
    }
    let not_files = NOT_FILES.iter().any(|dir| path.starts_with(dir));
    if not_files || path == Path::new("/") {
        return Err(ShareError::NotShareable(path));
    }
    Ok(path)
}

/// A chosen target in its one form.
pub fn target(given: &Path) -> Result<PathBuf, ShareError> {
    let target = plain(given)
        .filter(|target| target.to_str().is_some())
        .ok_or_else(|| ShareError::Target(given.to_owned()))?;
    match hides(&target) {
        Some(own) => Err(ShareError::Hides {
            target,
            own,
            path: None,
        }),
        None => Ok(target),
    }
}

/// The target of a share of `path` when none was chosen.
pub fn default_target(path: &Path) -> Result<PathBuf, ShareError> {
    match hides(path) {
        Some(own) => Err(ShareError::Hides {
            target: path.to_owned(),
            own,
            path: Some(path.to_owned()),
        }),
        None => Ok(path.to_owned()),
    }
}

/// What of the guest's own system a mount on `target` would hide.
pub fn hides(target: &Path) -> Option<&'static str> {
    let own = OWN.iter().find(|own| nested(Path::new(own), target));
    let used = || USED.iter().find(|used| Path::new(used).starts_with(target));
    own.or_else(used).copied()
}

/// Says no to what is there and no directory. What is not there, or cannot be looked at, is found out at the machine's
/// start, and is no reason not to start it.
pub fn is_no_file(path: &Path) -> Result<(), ShareError> {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_dir() => Err(ShareError::NotADirectory(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(ShareError::NotADirectory(path.to_owned()))
        }
        _ => Ok(()),
    }
}

/// An exclusion in its one form.
pub fn exclude(given: &Path) -> Result<PathBuf, ShareError> {
    let inside = plain(&Path::new("/").join(given))
        .filter(|path| given.is_relative() && path != Path::new("/") && path.to_str().is_some());
    match inside.as_deref().map(|path| path.strip_prefix("/")) {
        Some(Ok(path)) => Ok(path.to_owned()),
        _ => Err(ShareError::Exclude(given.to_owned())),
    }
}

/// Says no to a share that overlaps one of `others`.
pub fn no_overlap(share: &Share, others: &[Share]) -> Result<(), ShareError> {
    for other in others {
        if nested(&share.path, &other.path) {
            return Err(ShareError::SharesOverlap {
                a: other.path.clone(),
                b: share.path.clone(),
            });
        }
        if nested(&share.target, &other.target) {
            let inner = if share.target.starts_with(&other.target) {
                &share.target
            } else {
                &other.target
            };
            return Err(ShareError::TargetsOverlap {
                a: other.path.clone(),
                b: share.path.clone(),
                target: inner.clone(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(path: &str, target: &str) -> Share {
        Share::new(Path::new(path), Some(Path::new(target)), false, &[]).unwrap()
    }

    fn at_its_own_path(path: &str) -> Result<PathBuf, String> {
        Share::new(Path::new(path), None, false, &[])
            .map(|share| share.target)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn most_directories_keep_their_path() {
        for path in [
            "/home/me",
            "/home",
            "/root",
            "/data",
            "/Users/me",
            "/opt/project",
            "/srv",
            "/mnt/disk",
            "/media/me/stick",
            "/run/media/me/stick",
            "/tmp/x",
            "/var/tmp/x",
            "/var/lib/jenkins",
            "/var/www",
        ] {
            assert_eq!(at_its_own_path(path), Ok(PathBuf::from(path)), "{path}");
        }
        assert_eq!(at_its_own_path("//home/./me/"), Ok("/home/me".into()));
    }

    #[test]
    fn a_target_that_would_hide_the_guests_system_is_refused_by_name() {
        for (path, hidden) in [
            ("/usr", "/usr"),
            ("/usr/local/src", "/usr"),
            ("/etc", "/etc"),
            ("/etc/nginx", "/etc"),
            ("/opt", "/opt/containerd"),
            ("/var", "/var/lib/berth"),
            ("/var/lib", "/var/lib/berth"),
            ("/var/lib/docker/volumes", "/var/lib/docker"),
            ("/var/run/x", "/var/run"),
            ("/run", "/run/berth"),
            ("/tmp", "/tmp"),
            ("/boot", "/boot"),
        ] {
            let error = at_its_own_path(path).unwrap_err();
            assert!(error.contains(&format!("would hide {hidden} ")), "{error}");
            assert!(error.contains(&format!("/mnt/host{path}")), "{error}");
        }
        for target in ["/", "/proc", "/sys/fs", "/dev/shm", "/lib64", "/run/berth/shares"] {
            assert!(
                super::target(Path::new(target))
                    .unwrap_err()
                    .to_string()
                    .contains("guest's own"),
                "{target}"
            );
        }
        assert!(super::target(&elsewhere(Path::new("/tmp"))).is_ok());
    }

    #[test]
    fn what_is_no_directory_or_no_plain_path_is_refused() {
        for path in ["/", "/proc/1", "/dev/shm", "/sys"] {
            assert!(
                at_its_own_path(path).unwrap_err().contains("cannot be shared"),
                "{path}"
            );
        }
        for path in ["home/me", "", "/home/../etc", "~"] {
            assert!(
                at_its_own_path(path).unwrap_err().contains("absolute path"),
                "{path}"
            );
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        for path in [path.to_owned(), format!("{path}/below")] {
            assert!(
                at_its_own_path(&path).unwrap_err().contains("not a directory"),
                "{path}"
            );
        }
        let missing = tempfile::tempdir().unwrap().path().join("later");
        assert!(Share::new(&missing, None, false, &[]).is_ok());
    }

    #[test]
    fn exclusions_stay_inside() {
        let exclude = |path: &str| exclude(Path::new(path)).map(|path| path.display().to_string());
        assert_eq!(exclude(".ssh"), Ok(".ssh".into()));
        assert_eq!(exclude("a//./b/"), Ok("a/b".into()));
        for path in ["", ".", "/etc", "..", "a/../.."] {
            assert!(exclude(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn shares_do_not_overlap() {
        let home = share("/home/me", "/home/me");
        let overlap = |other: Share| {
            no_overlap(&other, std::slice::from_ref(&home))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            overlap(share("/home/me/src", "/src")),
            "/home/me and /home/me/src overlap; a file can be in one share only. /home/me/src is shared with /home/me \
             already, or share it alone"
        );
        assert!(overlap(share("/home", "/h")).contains("/home/me is shared with /home already"));
        assert!(overlap(share("/home/me", "/h")).contains("Name it once"));
        assert!(overlap(share("/data", "/home/me/data")).contains("both be on /home/me/data"));
        assert!(overlap(share("/data", "/home")).contains("both be on /home/me"));
        for other in [share("/home/mean", "/home/mean"), share("/data", "/data")] {
            no_overlap(&other, std::slice::from_ref(&home)).unwrap();
        }
    }
}
