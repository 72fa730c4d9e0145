//! Where berth keeps what the icon looks at (`docs/seams.md`, "Host paths"), and where desktops look for what they start.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Why there are no paths.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    /// Neither the variable nor a home directory.
    #[error("cannot tell where things are kept: HOME is not set to an absolute path")]
    NoHome,
    /// A variable has to name an absolute path.
    #[error("${name} is {value:?}, which is not an absolute path; set it to one or unset it")]
    NotAbsolute {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: PathBuf,
    },
}

/// The directories of a user's berth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Paths {
    /// One directory per machine there is.
    pub(crate) machines: PathBuf,
    /// One directory per machine that runs, with its sockets.
    pub(crate) runtime: PathBuf,
    /// The docker client that berth installs.
    pub(crate) docker_client: PathBuf,
    /// What desktops start at login.
    pub(crate) autostart: PathBuf,
}

impl Paths {
    /// From the process's environment.
    pub(crate) fn from_env() -> Result<Paths, PathError> {
        Self::from_variables(|name| std::env::var_os(name), rustix::process::geteuid().as_raw())
    }

    fn from_variables(get: impl Fn(&str) -> Option<OsString>, uid: u32) -> Result<Paths, PathError> {
        let absolute = |name: &'static str| match get(name).filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) if Path::new(&value).is_absolute() => Ok(Some(PathBuf::from(value))),
            Some(value) => Err(PathError::NotAbsolute {
                name,
                value: value.into(),
            }),
        };
        let base = |name, fallback: &str| {
            absolute(name)?
                .or(absolute("HOME")?.map(|home| home.join(fallback)))
                .ok_or(PathError::NoHome)
        };
        let data = base("XDG_DATA_HOME", ".local/share")?.join("berth");
        Ok(Paths {
            machines: data.join("machines"),
            runtime: absolute("XDG_RUNTIME_DIR")?
                .unwrap_or_else(|| format!("/tmp/berth-{uid}").into())
                .join("berth"),
            docker_client: data.join("docker/docker"),
            autostart: base("XDG_CONFIG_HOME", ".config")?.join("autostart"),
        })
    }

    /// Where a machine's daemon listens.
    pub(crate) fn api_socket(&self, machine: &str) -> PathBuf {
        self.runtime.join(machine).join("api.sock")
    }

    /// Where a machine's Docker is.
    pub(crate) fn docker_socket(&self, machine: &str) -> PathBuf {
        self.runtime.join(machine).join("docker.sock")
    }
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
    fn paths_are_those_of_the_documentation() {
        let paths = with(&[("HOME", "/home/u"), ("XDG_DATA_HOME", "")]).unwrap();
        assert_eq!(paths.machines, Path::new("/home/u/.local/share/berth/machines"));
        assert_eq!(paths.autostart, Path::new("/home/u/.config/autostart"));
        assert_eq!(
            paths.api_socket("default"),
            Path::new("/tmp/berth-1000/berth/default/api.sock")
        );
        let paths = with(&[
            ("HOME", "/home/u"),
            ("XDG_RUNTIME_DIR", "/run/user/1000"),
            ("XDG_CONFIG_HOME", "/c"),
        ])
        .unwrap();
        assert_eq!(paths.runtime, Path::new("/run/user/1000/berth"));
        assert_eq!(paths.autostart, Path::new("/c/autostart"));
    }

    #[test]
    fn variables_must_be_absolute() {
        let error = with(&[("HOME", "/home/u"), ("XDG_CONFIG_HOME", "c")]).unwrap_err();
        assert!(error.to_string().contains("$XDG_CONFIG_HOME is \"c\""));
        assert!(matches!(with(&[]), Err(PathError::NoHome)));
    }
}
