//! What the icon does on the user's desktop, through programs and services that are there, or not.

pub(crate) mod autostart;
pub(crate) mod browser;
pub(crate) mod clipboard;
pub(crate) mod notify;
pub(crate) mod panels;
pub(crate) mod programs;
pub(crate) mod terminal;

/// Why something could not be done on this desktop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DesktopError {
    /// None of the programs that could do it is there.
    #[error("{what}; install {install}")]
    Missing {
        /// What is missing.
        what: &'static str,
        /// What to install.
        install: &'static str,
    },
    /// A program could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {message}")]
    Failed {
        /// Which.
        program: String,
        /// How.
        message: String,
    },
}
