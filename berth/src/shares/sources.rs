//! What a bind source, as a Docker client names it, is called in the guest.
//!
//! A client names paths of the host. The guest has those of the shares, at their targets, and a few of its own that
//! containers are commonly given ([`GUESTS_OWN`]). Everything else is not there, and dockerd would make an empty directory
//! of it or complain of a path the user sees before them; so it is refused here, with the way to share it.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::foreign::{Mapped, PathTable};
use super::{Share, rules, time_zone};

/// Where the guest has dockerd's own socket, as containers expect it.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// Paths that mean the guest's own, with everything in them: what a container wants of "the machine Docker runs on".
const GUESTS_OWN: &[&str] = &[
    "/dev",
    "/lib/modules",
    "/proc",
    "/run/containerd/containerd.sock",
    "/run/docker.sock",
    "/sys",
    "/usr/lib/modules",
    "/var/lib/docker",
    "/var/run/docker.sock",
];

/// Paths that mean the guest's own by themselves: agents that watch the whole system are given these.
const GUESTS_OWN_EXACTLY: &[&str] = &["/", "/run", "/var/run"];

/// A share that the guest has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// What it is.
    pub share: Share,
    /// Its directory on the host without any symbolic link.
    pub real: PathBuf,
    /// What of it the guest does not see, relative to `real`: what the share excludes, and what berth keeps to itself.
    pub hidden: Vec<PathBuf>,
}

/// Why a source is not in the guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It is in no share.
    #[error(
        "{}{} is on the host and outside every share of the berth machine; share it with `{fix}`",
        path.display(),
        really(path, real)
    )]
    Outside {
        /// As it was asked for.
        path: PathBuf,
        /// Without symbolic links.
        real: PathBuf,
        /// The command that shares it.
        fix: String,
    },
    /// Neither it nor a directory it could be in can be shared.
    #[error("{}{} is on the host and cannot be shared with the berth machine; use a directory that can, such as one in your home", path.display(), really(path, real))]
    Never {
        /// As it was asked for.
        path: PathBuf,
        /// Without symbolic links.
        real: PathBuf,
    },
    /// Its share leaves it out.
    #[error(
        "{}{} is excluded from the share {}; `{command} list` shows what a share excludes, and berth's own machines always are",
        path.display(),
        really(path, real),
        share.display()
    )]
    Excluded {
        /// As it was asked for.
        path: PathBuf,
        /// Without symbolic links.
        real: PathBuf,
        /// The share's directory.
        share: PathBuf,
        /// `berth share`, for this machine.
        command: String,
    },
    /// A path of Windows that no line of the table is for.
    #[error(
        "{0} is a path of Windows, and berth is not told which directory of this host it stands for; add it to `paths` in \
         berth's configuration (`berth config --path` says where that is)"
    )]
    Windows(String),
}

fn really(path: &Path, real: &Path) -> String {
    if path == real {
        String::new()
    } else {
        format!(" (that is {})", real.display())
    }
}

/// The shares the guest has, and how sources are looked up in them. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Sources(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mounted: RwLock<Vec<Mounted>>,
    paths: PathTable,
    docker_socket: PathBuf,
    /// `berth share`, with the machine's name where it needs one.
    command: String,
}

impl Sources {
    /// No share yet. `docker_socket` is the machine's own on the host; `command` is what the user types before `add`.
    pub fn new(paths: PathTable, docker_socket: PathBuf, command: String) -> Sources {
        Sources(Arc::new(Inner {
            mounted: RwLock::default(),
            paths,
            docker_socket,
            command,
        }))
    }

    /// The guest has these shares from now on.
    pub fn set(&self, mounted: Vec<Mounted>) {
        *self.0.mounted.write().unwrap_or_else(PoisonError::into_inner) = mounted;
    }

    /// What the guest calls `source`, a path as a client gives it; none when that is what `source` is. Looks at the host's
    /// file system.
    ///
    /// # Errors
    /// When the guest has no such path.
    pub fn find(&self, source: &str) -> Result<Option<String>, SourceError> {
        let path = match self.0.paths.map(source) {
            Mapped::To(path) => path,
            Mapped::Nowhere => return Err(SourceError::Windows(source.to_owned())),
            // A volume's name, or something for dockerd to refuse.
            Mapped::AsItIs if !source.starts_with('/') => return Ok(None),
            Mapped::AsItIs => PathBuf::from(source),
        };
        let path = clean(&path);
        let found = self.in_guest(&path)?;
        // A path of the guest is made of a share's target, which is UTF-8, and of the source, which is.
        let found = found.into_os_string().into_string().unwrap_or_default();
        Ok((found != source).then_some(found))
    }

    fn in_guest(&self, path: &Path) -> Result<PathBuf, SourceError> {
        if is_guests_own(path) {
            return Ok(path.to_owned());
        }
        let real = resolve(path);
        if path == self.0.docker_socket || real == resolve(&self.0.docker_socket) {
            return Ok(DOCKER_SOCKET.into());
        }
        let mounted = self.0.mounted.read().unwrap_or_else(PoisonError::into_inner);
        let inside = mounted
            .iter()
            .find_map(|mounted| Some((mounted, real.strip_prefix(&mounted.real).ok()?)));
        let Some((Mounted { share, hidden, .. }, rest)) = inside else {
            // A path of the guest, as `docker inspect` tells it, where the host has nothing of that name.
            let guests = mounted
                .iter()
                .any(|mounted| path.starts_with(&mounted.share.target));
            if guests && fs::symlink_metadata(path).is_err() {
                return Ok(path.to_owned());
            }
            if let Some(copy) = time_zone::in_guest(path) {
                return Ok(copy.into());
            }
            return Err(self.outside(path, real));
        };
        if hidden.iter().any(|hidden| rest.starts_with(hidden)) {
            return Err(SourceError::Excluded {
                path: path.to_owned(),
                share: share.path.clone(),
                command: self.0.command.clone(),
                real,
            });
        }
        // Not `join` of an empty rest, which would add a slash.
        Ok(rest
            .components()
            .fold(share.target.clone(), |path, name| path.join(name)))
    }

    fn outside(&self, path: &Path, real: PathBuf) -> SourceError {
        let path = path.to_owned();
        // The nearest directory there is: a file cannot be shared, nor what is still to be made.
        let Some(dir) = real
            .ancestors()
            .find(|dir| dir.is_dir())
            .filter(|dir| rules::path(dir).is_ok())
        else {
            return SourceError::Never { path, real };
        };
        let mut fix = format!("{} add {}", self.0.command, quoted(dir));
        if rules::hides(dir).is_some() {
            fix.push_str(&format!(" --target {}", quoted(&rules::elsewhere(dir))));
        }
        SourceError::Outside { path, real, fix }
    }
}

fn is_guests_own(path: &Path) -> bool {
    GUESTS_OWN.iter().any(|own| path.starts_with(own))
        || GUESTS_OWN_EXACTLY.iter().any(|own| path == Path::new(own))
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+@%:,".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// As dockerd has it (Go's `path.Clean`): `..` takes the name before it away, whatever that is.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// `path` without symbolic links as far as it is there; what is not there stays as it is, so that dockerd makes it, or
/// finds it missing, where the user meant it. So does a link that leads nowhere.
pub fn resolve(path: &Path) -> PathBuf {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Ok(real), ..) => real,
        (Err(_), Some(parent), Some(name)) => resolve(parent).join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests;
