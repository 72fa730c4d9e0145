//! A machine's record, `machine.json`: that it exists, and what was chosen for it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::settings::Chosen;

/// The version of the file's form.
const VERSION: u32 = 1;

/// Held while a record is read, changed and written: a daemon may be asked for two changes at once.
static CHANGING: Mutex<()> = Mutex::new(());

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It could not be read.
    #[error("cannot read the machine's record {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not say what a record says.
    #[error(
        "the machine's record {path} is damaged; remove that file to start with default settings (the disk stays)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A newer berth wrote it.
    #[error(
        "the machine's record {path} is of version {found}, and this berth knows up to {VERSION}; use the newer berth"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It could not be written.
    #[error("cannot write the machine's record {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    version: u32,
    /// When the machine was made, in seconds since the Unix epoch.
    pub created: u64,
    /// What was chosen for it.
    pub chosen: Chosen,
}

impl MachineRecord {
    /// The record of a machine that is being made now.
    pub fn new(chosen: Chosen) -> MachineRecord {
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        MachineRecord {
            version: VERSION,
            created,
            chosen,
        }
    }

    /// Reads the record at `path`; none when there is no machine.
    pub fn load(path: &Path) -> Result<Option<MachineRecord>, RecordError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(RecordError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let record: MachineRecord = serde_json::from_slice(&text).map_err(|source| RecordError::Damaged {
            path: path.to_owned(),
            source,
        })?;
        if record.version > VERSION {
            return Err(RecordError::Newer {
                path: path.to_owned(),
                found: record.version,
            });
        }
        Ok(Some(record))
    }

    /// Keeps these choices in the record at `path`, for the machine's next starts too.
    pub fn remember(path: &Path, chosen: &Chosen) -> Result<(), RecordError> {
        MachineRecord::update(path, |before| *before = chosen.or(before))
    }

    /// Changes the choices in the record at `path`, which is made when there is none. Not for two processes at once.
    pub fn update(path: &Path, change: impl FnOnce(&mut Chosen)) -> Result<(), RecordError> {
        let _one_at_a_time = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
        let found = MachineRecord::load(path)?;
        let is_new = found.is_none();
        let mut record = found.unwrap_or_else(|| MachineRecord::new(Chosen::default()));
        let before = record.chosen.clone();
        change(&mut record.chosen);
        if record.chosen == before && !is_new {
            return Ok(());
        }
        record.store(path)
    }

    /// Writes the record to `path`, whole or not at all.
    pub fn store(&self, path: &Path) -> Result<(), RecordError> {
        write_whole(path, self).map_err(|source| RecordError::Write {
            path: path.to_owned(),
            source,
        })
    }
}

/// Writes `value` as JSON to `path` so that a crash or a full disk leaves the old file or the new one.
pub(crate) fn write_whole(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let aside = path.with_extension("new");
    let write = || {
        let mut file = fs::File::create(&aside)?;
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().inspect_err(|_| {
        // Best effort: what is left is a small file that the next write replaces.
        let _ = fs::remove_file(&aside);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.json");
        assert_eq!(MachineRecord::load(&path).unwrap(), None);
        let record = MachineRecord::new(Chosen {
            cpus: Some(3),
            engine: Some(crate::config::EngineChoice::Qemu),
            ..Chosen::default()
        });
        record.store(&path).unwrap();
        assert_eq!(MachineRecord::load(&path).unwrap(), Some(record));
    }

    #[test]
    fn choices_are_remembered_with_those_from_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.json");
        let choices = [
            Chosen {
                cpus: Some(3),
                ..Chosen::default()
            },
            Chosen {
                engine: Some(crate::config::EngineChoice::Qemu),
                ..Chosen::default()
            },
            Chosen::default(),
        ];
        for chosen in choices {
            MachineRecord::remember(&path, &chosen).unwrap();
        }
        let chosen = MachineRecord::load(&path).unwrap().unwrap().chosen;
        assert_eq!(
            (chosen.cpus, chosen.engine),
            (Some(3), Some(crate::config::EngineChoice::Qemu))
        );
    }

    #[test]
    fn a_damaged_or_newer_record_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.json");
        fs::write(&path, "{").unwrap();
        assert!(
            MachineRecord::load(&path)
                .unwrap_err()
                .to_string()
                .contains("remove that file")
        );
        fs::write(&path, r#"{"version":2,"created":1,"chosen":{}}"#).unwrap();
        assert!(matches!(
            MachineRecord::load(&path),
            Err(RecordError::Newer { found: 2, .. })
        ));
    }
}
