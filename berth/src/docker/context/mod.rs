//! The docker context of a machine: how every Docker client of the user finds the machine's socket by itself.
//!
//! The files are the docker CLI's own: `contexts/meta/<sha256 of the name>/meta.json` and `currentContext` in
//! `config.json`, under `$DOCKER_CONFIG` or `~/.docker`. All else in them stays as it is, and a file that cannot be
//! understood is never written over.

mod config_file;
mod files;
pub mod plugins;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use config_file::ConfigFile;
pub use config_file::ConfigFileError;
pub use files::FileError;

/// The name of the context that is none: the socket at its default path.
const DEFAULT: &str = "default";
/// In a context's metadata, says that berth made it.
const MARK: &str = "CreatedBy";
const MARK_VALUE: &str = "berth";

/// The context of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextSpec {
    /// Its name.
    pub name: String,
    /// What `docker context ls` says about it.
    pub description: String,
    /// The machine's Docker socket.
    pub socket: PathBuf,
    /// The file in which the context to give back is kept.
    pub record: PathBuf,
}

/// Why something about contexts could not be done.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Neither `$DOCKER_CONFIG` nor `$HOME` is set.
    #[error("cannot find the docker client's configuration: neither DOCKER_CONFIG nor HOME is set")]
    NoHome,
    /// There is a context of this name that berth did not make.
    #[error(
        "there is a docker context {name} already that is not berth's; remove it with `docker context rm {name}`, or set \
         another name in berth's configuration (docker.context)"
    )]
    NotOurs {
        /// The name.
        name: String,
    },
    /// `config.json` could not be read, understood or written.
    #[error(transparent)]
    Config(#[from] ConfigFileError),
    /// Another file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Which context the user's Docker clients use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// The name of the context.
    pub name: String,
    /// The environment variable that wins over it (`DOCKER_HOST`, `DOCKER_CONTEXT`), if one is set.
    pub overridden_by: Option<String>,
}

/// Makes the context, or brings it up to date.
pub fn create(spec: &ContextSpec) -> Result<(), ContextError> {
    Store::from_env()?.create(spec)
}

/// Makes it the current one, and remembers the one before.
pub fn make_current(spec: &ContextSpec) -> Result<(), ContextError> {
    Store::from_env()?.make_current(spec)
}

/// Makes the context current again that was before [`make_current`], if ours still is.
pub fn give_back(spec: &ContextSpec) -> Result<(), ContextError> {
    Store::from_env()?.give_back(spec)
}

/// Removes the context; gives back first. That it is not there is no error.
pub fn remove(spec: &ContextSpec) -> Result<(), ContextError> {
    Store::from_env()?.remove(spec)
}

/// Which context is current.
pub fn current() -> Result<Current, ContextError> {
    let name = Store::from_env()?.current()?;
    let overridden_by = ["DOCKER_HOST", "DOCKER_CONTEXT"]
        .into_iter()
        .find(|variable| std::env::var_os(variable).is_some_and(|value| !value.is_empty()))
        .map(str::to_owned);
    Ok(Current { name, overridden_by })
}

/// What is remembered between [`make_current`] and [`give_back`].
#[derive(Debug, Serialize, Deserialize)]
struct Previous {
    context: String,
}

/// The docker client's configuration directory.
#[derive(Debug, Clone)]
struct Store {
    dir: PathBuf,
}

impl Store {
    fn from_env() -> Result<Self, ContextError> {
        let set = |name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let dir = set("DOCKER_CONFIG")
            .or_else(|| Some(set("HOME")?.join(".docker")))
            .ok_or(ContextError::NoHome)?;
        Ok(Store { dir })
    }

    fn meta_dir(&self, name: &str) -> PathBuf {
        let digest = Sha256::digest(name.as_bytes());
        let id: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.dir.join("contexts/meta").join(id)
    }

    fn exists(&self, name: &str) -> bool {
        name == DEFAULT || self.meta_dir(name).join("meta.json").exists()
    }

    fn config(&self) -> Result<ConfigFile, ContextError> {
        Ok(ConfigFile::read(&self.dir.join("config.json"))?)
    }

    fn create(&self, spec: &ContextSpec) -> Result<(), ContextError> {
        let path = self.meta_dir(&spec.name).join("meta.json");
        let meta = json!({
            "Name": spec.name,
            "Metadata": { "Description": spec.description, MARK: MARK_VALUE },
            "Endpoints": { "docker": { "Host": format!("unix://{}", spec.socket.display()), "SkipTLSVerify": false } },
        });
        let before = files::read(&path)?;
        if before.is_some_and(|before| !is_ours(&before)) {
            return Err(ContextError::NotOurs {
                name: spec.name.clone(),
            });
        }
        Ok(files::write(&path, meta.to_string().as_bytes())?)
    }

    fn current(&self) -> Result<String, ContextError> {
        Ok(current_in(&self.config()?))
    }

    fn make_current(&self, spec: &ContextSpec) -> Result<(), ContextError> {
        let mut config = self.config()?;
        let before = current_in(&config);
        if before == spec.name {
            // Left so by a daemon that was killed; what it remembered still holds.
            return Ok(());
        }
        let previous = json!(Previous { context: before });
        files::write(&spec.record, previous.to_string().as_bytes())?;
        config.set("currentContext", Some(spec.name.clone().into()));
        Ok(config.write()?)
    }

    fn give_back(&self, spec: &ContextSpec) -> Result<(), ContextError> {
        let mut config = self.config()?;
        if current_in(&config) == spec.name {
            let previous = files::read(&spec.record)?
                .and_then(|bytes| serde_json::from_slice::<Previous>(&bytes).ok())
                .map(|previous| previous.context)
                .filter(|name| name != DEFAULT && *name != spec.name && self.exists(name));
            config.set("currentContext", previous.map(Value::from));
            config.write()?;
        }
        Ok(files::remove(&spec.record)?)
    }

    fn remove(&self, spec: &ContextSpec) -> Result<(), ContextError> {
        let dir = self.meta_dir(&spec.name);
        if files::read(&dir.join("meta.json"))?.is_some_and(|meta| !is_ours(&meta)) {
            return Ok(());
        }
        self.give_back(spec)?;
        Ok(files::remove_dir(&dir)?)
    }
}

fn current_in(config: &ConfigFile) -> String {
    match config.get("currentContext").and_then(Value::as_str) {
        None | Some("") => DEFAULT.to_owned(),
        Some(name) => name.to_owned(),
    }
}

fn is_ours(meta: &[u8]) -> bool {
    serde_json::from_slice::<Value>(meta).is_ok_and(|meta| meta["Metadata"][MARK] == MARK_VALUE)
}

#[cfg(test)]
mod tests;
