//! How `berth` ends: its exit codes (`docs/seams.md`, "Exit codes of `berth`") and the error that carries one.

use std::fmt;

/// Why a command ended as it did, as its exit code tells scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// It could not be done.
    Failed,
    /// Wrong options, or a wrong value in the configuration.
    Usage,
    /// The machine is not running.
    NotRunning,
    /// Something berth needs is missing or cannot be used.
    Unavailable,
    /// `exec` and `shell`: berth itself failed, so that there is no code of the command's own.
    Exec,
    /// `exec` and `shell`: the command is there and cannot be executed.
    NotExecutable,
    /// `exec` and `shell`: there is no such command.
    NotFound,
    /// `exec` and `shell`: the command's own code, 128+N for signal N.
    Command(u8),
}

impl Code {
    /// The number.
    pub fn number(self) -> u8 {
        match self {
            Code::Failed => 1,
            Code::Usage => 2,
            Code::NotRunning => 3,
            Code::Unavailable => 4,
            Code::Exec => 125,
            Code::NotExecutable => 126,
            Code::NotFound => 127,
            Code::Command(code) => code,
        }
    }

    /// The code for what a process in the guest ended with: 0 to 255, or 128 + a signal. What no process can end with
    /// becomes 255 rather than a false 0.
    pub fn of_command(code: i32) -> Code {
        Code::Command(u8::try_from(code).unwrap_or(255))
    }
}

/// An error with the exit code it makes. `anyhow` carries it up as the outermost error; without one the code is 1.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: Code,
    message: Option<String>,
    source: Option<anyhow::Error>,
}

impl Failure {
    /// A failure in one sentence.
    pub fn because(code: Code, message: impl Into<String>) -> anyhow::Error {
        Failure {
            code,
            message: Some(message.into()),
            source: None,
        }
        .into()
    }

    /// Gives an error an exit code and leaves its words.
    pub fn wrap(code: Code, error: impl Into<anyhow::Error>) -> anyhow::Error {
        Failure {
            code,
            message: None,
            source: Some(error.into()),
        }
        .into()
    }

    /// An exit code without a word: what is to be said has been said.
    pub fn silent(code: Code) -> anyhow::Error {
        Failure {
            code,
            message: None,
            source: None,
        }
        .into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.message, &self.source) {
            (Some(message), _) => f.write_str(message),
            (None, Some(source)) => source.fmt(f),
            (None, None) => Ok(()),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // With no message of its own it shows the source's, so the chain goes on behind that.
        match (&self.message, &self.source) {
            (Some(_), Some(source)) => Some(source.as_ref()),
            (None, Some(source)) => source.source(),
            (_, None) => None,
        }
    }
}

/// The exit code for an error.
pub fn code_of(error: &anyhow::Error) -> Code {
    // `downcast_ref` sees through context that was added on the way up.
    error
        .downcast_ref::<Failure>()
        .map_or(Code::Failed, |failure| failure.code)
}

/// The whole chain of an error on one line, each part once; empty for [`Failure::silent`].
pub fn chain(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !text.is_empty() && !parts.last().is_some_and(|last| last.ends_with(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn codes_are_those_of_the_documentation() {
        let codes = [
            Code::Failed,
            Code::Usage,
            Code::NotRunning,
            Code::Unavailable,
            Code::Exec,
            Code::NotExecutable,
            Code::NotFound,
        ];
        assert_eq!(codes.map(Code::number), [1, 2, 3, 4, 125, 126, 127]);
        assert_eq!(Code::of_command(0).number(), 0);
        assert_eq!(Code::of_command(128 + 15).number(), 143);
        assert_eq!(Code::of_command(256).number(), 255);
        assert_eq!(Code::of_command(-1).number(), 255);
    }

    #[test]
    fn a_code_survives_added_context_and_no_text_is_said_twice() {
        let io = std::io::Error::other("disk on fire");
        let error = Err::<(), _>(Failure::wrap(
            Code::Unavailable,
            anyhow::Error::from(io).context("cannot read x"),
        ))
        .context("cannot start")
        .unwrap_err();
        assert_eq!(code_of(&error), Code::Unavailable);
        assert_eq!(chain(&error), "cannot start: cannot read x: disk on fire");
        assert_eq!(code_of(&anyhow::anyhow!("x")), Code::Failed);
        assert_eq!(chain(&Failure::silent(Code::NotRunning)), "");
    }
}
