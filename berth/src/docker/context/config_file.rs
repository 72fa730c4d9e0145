//! The docker client's `config.json`, of which berth changes a key or two and keeps the rest.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::files::{self, FileError};

/// Why `config.json` could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// It is not a JSON object.
    #[error("{path} is not what the docker client writes, so berth leaves it alone; correct or remove it")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A `config.json` in memory.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    content: Map<String, Value>,
    changed: bool,
}

impl ConfigFile {
    /// Reads it. One that is not there, or empty, is an empty object, as it is for the docker client.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigFileError> {
        let bytes = files::read(path)?.unwrap_or_default();
        let content = if bytes.trim_ascii().is_empty() {
            Map::new()
        } else {
            serde_json::from_slice(&bytes).map_err(|source| ConfigFileError::Corrupt {
                path: path.to_owned(),
                source,
            })?
        };
        Ok(ConfigFile {
            path: path.to_owned(),
            content,
            changed: false,
        })
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.content.get(key)
    }

    /// Sets or removes a key.
    pub(super) fn set(&mut self, key: &str, value: Option<Value>) {
        if self.content.get(key) == value.as_ref() {
            return;
        }
        self.changed = true;
        match value {
            Some(value) => self.content.insert(key.to_owned(), value),
            None => self.content.shift_remove(key),
        };
    }

    /// Writes it if anything was changed, indented as the docker client does.
    pub(super) fn write(&self) -> Result<(), ConfigFileError> {
        if !self.changed {
            return Ok(());
        }
        let mut text = Vec::new();
        let indent = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, indent);
        self.content
            .serialize(&mut serializer)
            .map_err(|source| ConfigFileError::Corrupt {
                path: self.path.clone(),
                source,
            })?;
        Ok(files::write(&self.path, &text)?)
    }
}
