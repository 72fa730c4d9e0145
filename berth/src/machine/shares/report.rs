//! How shares are, and why they could not be changed: what users get to see.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::machine::control::ControlError;
use crate::machine::record::RecordError;
use crate::machine::state::State;
use crate::shares::Share;
use crate::shares::health::{self, Health};
use crate::shares::rules::ShareError;

/// How a share is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ShareState {
    /// The machine does not run, or has not got that far.
    Configured,
    /// Containers can have it.
    Shared,
    /// They cannot.
    Failed {
        /// Why.
        message: String,
    },
}

/// A share, and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareReport {
    /// What it is.
    #[serde(flatten)]
    pub share: Share,
    /// How it is.
    #[serde(flatten)]
    pub state: ShareState,
}

impl ShareReport {
    /// Of a machine that does not run: whether the share could be had if it did.
    pub fn without_machine(share: Share) -> ShareReport {
        let state = match health::look(&share) {
            Health::Unusable(message) => ShareState::Failed { message },
            Health::Good | Health::Limited(_) => ShareState::Configured,
        };
        ShareReport { share, state }
    }
}

/// Why shares could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Not with this machine's state.
    #[error("shares can be changed while the machine runs or is stopped; it is {0}")]
    NotRunning(State),
    /// Not with the others.
    #[error(transparent)]
    Rules(#[from] ShareError),
    /// Its directory is shared otherwise.
    #[error("{} is shared already, in another way; remove that share first: `{command} remove {}`", path.display(), path.display())]
    SharedOtherwise {
        /// The directory.
        path: PathBuf,
        /// `berth share` for this machine.
        command: String,
    },
    /// The directory cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// There is no such share.
    #[error("{} is not shared; `{command} list` shows what is", path.display())]
    NoSuchShare {
        /// What was to be removed.
        path: PathBuf,
        /// `berth share` for this machine.
        command: String,
    },
    /// Containers have it.
    #[error(
        "{} is used by running containers ({}); stop them first, or take it away all the same with --force: they will get \
         errors",
        path.display(),
        containers.join(", ")
    )]
    InUse {
        /// The share.
        path: PathBuf,
        /// The names of running containers.
        containers: Vec<String>,
    },
    /// The guest did not do it.
    #[error(transparent)]
    Guest(#[from] ControlError),
    /// It is done, but will not last.
    #[error("it is done until the machine stops, and could not be kept for its next start")]
    NotKept(#[source] RecordError),
}
