//! What the guest tells the host: a JSON object a line, on a virtio port of its own.

use serde::{Deserialize, Serialize};

use super::plan::{Contender, Group};

/// The port's name in the guest.
pub const PORT: &str = "results";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Message {
    /// The guest is up; its clock starts here.
    Ready {
        /// Its kernel.
        kernel: String,
        /// The git it has; none when it has none.
        git: Option<String>,
    },
    /// A group begins.
    Began {
        /// From 0.
        round: u32,
        /// Which.
        group: Group,
    },
    /// A row was measured.
    Sample {
        /// On what.
        contender: Contender,
        /// The row's id.
        row: String,
        /// From 0.
        round: u32,
        /// How long it took, in milliseconds.
        ms: f64,
    },
    /// Something failed; nothing more comes.
    Failed {
        /// Why.
        message: String,
    },
    /// All is measured.
    Done {
        /// Milliseconds since [`Message::Ready`], by the guest's clock.
        ms: f64,
    },
}
