//! Where everything is on the host (`docs/seams.md`, "Host paths"), and the making of directories that others must not
//! get into.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::name::MachineName;

/// A Unix socket's path has at most this many bytes on Linux (`sockaddr_un.sun_path` less its final zero).
const MAX_SOCKET_PATH: usize = 107;

/// Why the paths cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// Neither the variable nor a home directory.
    #[error("cannot tell where to keep things: HOME is not set to an absolute path")]
    NoHome,
    /// A variable has to name an absolute path.
    #[error("${name} is {value:?}, which is not an absolute path; set it to one or unset it")]
    NotAbsolute {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: PathBuf,
    },
    /// A socket would not fit.
    #[error(
        "the path {0} is too long for a Unix socket (at most {MAX_SOCKET_PATH} bytes); use a shorter machine name or a shorter $XDG_RUNTIME_DIR"
    )]
    SocketTooLong(PathBuf),
    /// A directory could not be made or looked at.
    #[error("cannot make the directory {path}; make it writable for you or choose another with ${variable}")]
    Make {
        /// The directory.
        path: PathBuf,
        /// The variable that moves it.
        variable: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else could put things there.
    #[error(
        "{path} belongs to user {owner}, not to you; remove it or set $XDG_RUNTIME_DIR to a directory of yours"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
    },
    /// A link or a file stands where a directory has to be.
    #[error("{0} is not a directory; remove it")]
    NotDirectory(PathBuf),
}

/// The directories of a user's berth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// `~/.config/berth`.
    pub config_dir: PathBuf,
    /// `~/.local/share/berth`.
    pub data_dir: PathBuf,
    /// `~/.local/state/berth`.
    pub state_dir: PathBuf,
    /// `$XDG_RUNTIME_DIR/berth`.
    pub runtime_dir: PathBuf,
    /// Where the guest's kernel and image are.
    pub guest_dir: PathBuf,
}

impl Paths {
    /// From the process's environment.
    pub fn from_env() -> Result<Paths, PathError> {
        Self::from_variables(|name| std::env::var_os(name), rustix::process::geteuid().as_raw())
    }

    fn from_variables(get: impl Fn(&str) -> Option<OsString>, uid: u32) -> Result<Paths, PathError> {
        let absolute = |name: &'static str| match get(name).filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) => {
                let value = PathBuf::from(value);
                if value.is_absolute() {
                    Ok(Some(value))
                } else {
                    Err(PathError::NotAbsolute { name, value })
                }
            }
        };
        let base = |name, fallback: &str| {
            absolute(name)?
                .or(absolute("HOME")?.map(|home| home.join(fallback)))
                .ok_or(PathError::NoHome)
        };
        let data_dir = base("XDG_DATA_HOME", ".local/share")?.join("berth");
        Ok(Paths {
            config_dir: base("XDG_CONFIG_HOME", ".config")?.join("berth"),
            guest_dir: absolute("BERTH_GUEST_DIR")?.unwrap_or_else(|| data_dir.join("guest")),
            data_dir,
            state_dir: base("XDG_STATE_HOME", ".local/state")?.join("berth"),
            runtime_dir: absolute("XDG_RUNTIME_DIR")?
                .unwrap_or_else(|| format!("/tmp/berth-{uid}").into())
                .join("berth"),
        })
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.config_dir.join("config.yaml")
    }

    /// Where machines keep their disks.
    pub fn machines_dir(&self) -> PathBuf {
        self.data_dir.join("machines")
    }

    /// The paths of one machine.
    pub fn machine(&self, name: &MachineName) -> MachinePaths {
        MachinePaths {
            data_dir: self.machines_dir().join(name),
            state_dir: self.state_dir.join("machines").join(name),
            runtime_dir: self.runtime_dir.join(name),
        }
    }
}

/// The user's home directory; none when HOME is not set to an absolute path.
pub fn home() -> Option<PathBuf> {
    std::env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute())
}

/// The files of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachinePaths {
    /// Its disk and identity.
    pub data_dir: PathBuf,
    /// Its logs.
    pub state_dir: PathBuf,
    /// Its sockets, pid and lock.
    pub runtime_dir: PathBuf,
}

impl MachinePaths {
    /// The data disk.
    pub fn data_disk(&self) -> PathBuf {
        self.data_dir.join("data.img")
    }

    /// What the machine is.
    pub fn record(&self) -> PathBuf {
        self.data_dir.join("machine.json")
    }

    /// The daemon's log.
    pub fn daemon_log(&self) -> PathBuf {
        self.state_dir.join("daemon.log")
    }

    /// The guest's console.
    pub fn console_log(&self) -> PathBuf {
        self.state_dir.join("console.log")
    }

    /// What passt says.
    pub fn passt_log(&self) -> PathBuf {
        self.state_dir.join("passt.log")
    }

    /// Why the machine failed the last time, if it did.
    pub fn last_failure(&self) -> PathBuf {
        self.state_dir.join("last-failure.json")
    }

    /// The docker context to give back on stop.
    pub fn previous_context(&self) -> PathBuf {
        self.state_dir.join("previous-docker-context.json")
    }

    /// The Docker API.
    pub fn docker_socket(&self) -> PathBuf {
        self.runtime_dir.join("docker.sock")
    }

    /// The daemon's own API.
    pub fn api_socket(&self) -> PathBuf {
        self.runtime_dir.join("api.sock")
    }

    /// Held by the daemon as long as it lives.
    pub fn daemon_lock(&self) -> PathBuf {
        self.runtime_dir.join("daemon.lock")
    }

    /// Held by whoever is about to start a daemon.
    pub fn start_lock(&self) -> PathBuf {
        self.runtime_dir.join("start.lock")
    }

    /// Which process the daemon is.
    pub fn pid_file(&self) -> PathBuf {
        self.runtime_dir.join("daemon.json")
    }

    /// The daemon's helper processes.
    pub fn children_record(&self) -> PathBuf {
        self.runtime_dir.join("children.json")
    }

    /// Where passt listens.
    pub fn passt_socket(&self) -> PathBuf {
        self.runtime_dir.join("passt.sock")
    }

    /// The engine's own sockets.
    pub fn engine_dir(&self) -> PathBuf {
        self.runtime_dir.join("engine")
    }

    /// Makes the runtime directory, private to this user, and checks that its sockets' paths fit.
    pub fn make_runtime_dir(&self) -> Result<(), PathError> {
        // The longest socket name anybody makes below it.
        let longest = self.engine_dir().join("vhost-user-vsock.sock");
        if longest.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
            return Err(PathError::SocketTooLong(longest));
        }
        // From the top: `$XDG_RUNTIME_DIR` itself may have to be made when it is the one in /tmp, where others could have
        // made it first.
        let mut own: Vec<&Path> = vec![&self.runtime_dir];
        if let Some(berth) = self.runtime_dir.parent() {
            own.insert(0, berth);
            if let Some(base) = berth.parent().filter(|base| base.starts_with("/tmp")) {
                own.insert(0, base);
            }
        }
        own.into_iter()
            .try_for_each(|dir| make_private_dir(dir, "XDG_RUNTIME_DIR"))
    }

    /// Makes the directories for the disk and the logs.
    pub fn make_lasting_dirs(&self) -> Result<(), PathError> {
        make_private_dir(&self.data_dir, "XDG_DATA_HOME")?;
        make_private_dir(&self.state_dir, "XDG_STATE_HOME")
    }
}

/// Makes `dir`, with parents, for this user alone; one that is there already has to be the user's own, and is closed to
/// others if it was not.
pub fn make_private_dir(dir: &Path, variable: &'static str) -> Result<(), PathError> {
    let failed = |source| PathError::Make {
        path: dir.to_owned(),
        variable,
        source,
    };
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let metadata = fs::symlink_metadata(dir).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(PathError::NotDirectory(dir.to_owned()));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(PathError::Foreign {
            path: dir.to_owned(),
            owner: metadata.uid(),
        });
    }
    if metadata.mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Paths, PathError> {
        Paths::from_variables(
            |name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()),
            1000,
        )
    }

    #[test]
    fn without_xdg_variables_everything_is_below_home() {
        let paths = with(&[("HOME", "/home/u"), ("XDG_DATA_HOME", "")]).unwrap();
        assert_eq!(
            paths.config_file(),
            Path::new("/home/u/.config/berth/config.yaml")
        );
        assert_eq!(paths.guest_dir, Path::new("/home/u/.local/share/berth/guest"));
        let machine = paths.machine(&MachineName::default());
        assert_eq!(
            machine.data_disk(),
            Path::new("/home/u/.local/share/berth/machines/default/data.img")
        );
        assert_eq!(
            machine.daemon_log(),
            Path::new("/home/u/.local/state/berth/machines/default/daemon.log")
        );
        assert_eq!(
            machine.docker_socket(),
            Path::new("/tmp/berth-1000/berth/default/docker.sock")
        );
    }

    #[test]
    fn xdg_variables_win_and_must_be_absolute() {
        let paths = with(&[
            ("HOME", "/home/u"),
            ("XDG_RUNTIME_DIR", "/run/user/1000"),
            ("BERTH_GUEST_DIR", "/g"),
        ])
        .unwrap();
        assert_eq!(paths.runtime_dir, Path::new("/run/user/1000/berth"));
        assert_eq!(paths.guest_dir, Path::new("/g"));
        let error = with(&[("HOME", "/home/u"), ("XDG_DATA_HOME", "data")]).unwrap_err();
        assert!(error.to_string().contains("$XDG_DATA_HOME is \"data\""));
        assert!(matches!(with(&[]), Err(PathError::NoHome)));
    }

    #[test]
    fn a_socket_path_that_cannot_work_is_refused_early() {
        let machine = MachinePaths {
            data_dir: "/d".into(),
            state_dir: "/s".into(),
            runtime_dir: Path::new("/run").join("x".repeat(100)),
        };
        assert!(matches!(
            machine.make_runtime_dir(),
            Err(PathError::SocketTooLong(_))
        ));
    }

    #[test]
    fn a_private_directory_is_closed_to_others_and_no_link_is_followed() {
        let base = tempfile::tempdir().unwrap();
        let open = base.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        make_private_dir(&open, "X").unwrap();
        assert_eq!(fs::metadata(&open).unwrap().mode() & 0o777, 0o700);

        let new = base.path().join("a/b");
        make_private_dir(&new, "X").unwrap();
        assert_eq!(fs::metadata(&new).unwrap().mode() & 0o777, 0o700);

        let link = base.path().join("link");
        std::os::unix::fs::symlink(&open, &link).unwrap();
        assert!(matches!(
            make_private_dir(&link, "X"),
            Err(PathError::NotDirectory(_))
        ));
    }
}
