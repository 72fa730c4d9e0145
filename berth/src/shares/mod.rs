//! Shares: directories of the host that containers can have.
//!
//! What a share is and which ones cannot be ([`Share`], [`rules`]), which ones a machine has ([`choice`]), and what a path
//! of the host is called in the guest ([`sources`], with [`foreign`] for paths as other systems write them and [`time_zone`] for two files). Nothing here
//! talks to a guest: that is [`crate::machine::shares`].

pub mod choice;
pub mod foreign;
pub mod health;
pub mod rules;
pub mod sources;
pub mod time_zone;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use rules::ShareError;

/// A directory of the host that a machine has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The directory on the host: absolute, without `.` and `..`.
    pub path: PathBuf,
    /// Where the guest has it, of the same form.
    pub target: PathBuf,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// What of it the guest does not see, relative to `path`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<PathBuf>,
}

impl Share {
    /// A share of `path` at `target`, or at the same path in the guest when there is none.
    ///
    /// # Errors
    /// When it would be no directory, or hide what the guest itself needs ([`rules`]).
    pub fn new(
        path: &Path,
        target: Option<&Path>,
        read_only: bool,
        exclude: &[PathBuf],
    ) -> Result<Share, ShareError> {
        let path = rules::path(path)?;
        let target = match target {
            Some(target) => rules::target(target)?,
            None => rules::default_target(&path)?,
        };
        rules::is_no_file(&path)?;
        let exclude = exclude
            .iter()
            .map(|excluded| rules::exclude(excluded))
            .collect::<Result<_, _>>()?;
        Ok(Share {
            path,
            target,
            read_only,
            exclude,
        })
    }
}

/// Whether both are one, or one lies in the other.
pub(crate) fn nested(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}
