//! What the user is told although he did not look.

use super::Doing;
use crate::words;

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    /// In a few words.
    pub(crate) summary: String,
    /// In full.
    pub(crate) body: String,
    /// Whether it should stay until it was seen.
    pub(crate) urgent: bool,
}

impl Notice {
    /// A start did not come to its end.
    pub(super) fn start_failed(machine: &str, reason: &str) -> Notice {
        Notice {
            summary: format!("The machine {machine} could not be started"),
            body: reason.to_owned(),
            urgent: true,
        }
    }

    /// A machine that ran ended by itself.
    pub(super) fn failed(machine: &str, reason: &str) -> Notice {
        Notice {
            summary: format!("The machine {machine} failed"),
            body: format!(
                "{reason}\nStart it again with `{}`",
                words::command(machine, "start")
            ),
            urgent: true,
        }
    }

    /// A machine has warnings that are new.
    pub(super) fn warnings(machine: &str, warnings: &[&str]) -> Notice {
        Notice {
            summary: format!("The machine {machine} has a warning"),
            body: warnings.join("\n"),
            urgent: false,
        }
    }

    /// What the user asked for was not done.
    pub(super) fn not_done(machine: &str, doing: &Doing, message: &str) -> Notice {
        let what = match doing {
            Doing::Start => return Notice::start_failed(machine, message),
            Doing::Stop => "stopped".to_owned(),
            Doing::Restart => "restarted".to_owned(),
            Doing::Profile(name) => format!("switched to the profile {name}"),
        };
        Notice::answer(
            format!("The machine {machine} could not be {what}"),
            message.to_owned(),
        )
    }

    /// The answer to something the user did.
    pub(crate) fn answer(summary: impl Into<String>, body: impl Into<String>) -> Notice {
        Notice {
            summary: summary.into(),
            body: body.into(),
            urgent: false,
        }
    }
}

/// A warning without its figures: the same warning with others is no news.
pub(super) fn gist(warning: &str) -> String {
    warning
        .split(|character: char| character.is_whitespace() || character.is_ascii_digit() || character == '.')
        .filter(|word| !word.is_empty() && !matches!(*word, "B" | "KiB" | "MiB" | "GiB" | "TiB"))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_do_not_make_a_warning_another_one() {
        assert_eq!(
            gist("the host's disk is full: 200.5 MiB of space left for /d"),
            gist("the host's disk is full: 17 KiB of space left for /d")
        );
        assert_ne!(gist("a is not there"), gist("b is not there"));
    }
}
