//! The progress of a machine's start or stop, phase by phase, on standard error: a spinner for a person who watches, plain
//! lines for everything else.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// How often the spinner turns.
const TURN: Duration = Duration::from_millis(100);

/// Shows phases, each with the time it took.
#[derive(Debug)]
pub struct Progress {
    spinner: Option<ProgressBar>,
    current: Option<(String, u64)>,
}

impl Progress {
    /// Shows nothing yet.
    pub fn new() -> Progress {
        let spinner = output::is_watched().then(|| {
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                spinner.set_style(style);
            }
            spinner
        });
        Progress {
            spinner,
            current: None,
        }
    }

    /// The phase `what` begins, `at_ms` after the beginning; the one before is done.
    pub fn phase(&mut self, what: impl Into<String>, at_ms: u64) {
        self.done(at_ms);
        let what = what.into();
        if let Some(spinner) = &self.spinner {
            spinner.reset_elapsed();
            spinner.set_message(what.clone());
            spinner.enable_steady_tick(TURN);
        }
        self.current = Some((what, at_ms));
    }

    /// The current phase is done, `at_ms` after the beginning.
    pub fn done(&mut self, at_ms: u64) {
        if let Some((what, began)) = self.current.take() {
            self.line(&format!("{what}: {}", seconds(at_ms.saturating_sub(began))));
        }
    }

    /// A line of its own.
    pub fn line(&self, line: &str) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| output::say(line)),
            None => output::say(line),
        }
    }

    /// Nothing more to show; what was under way was not done.
    pub fn end(&mut self) {
        self.current = None;
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Progress::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Milliseconds as seconds with one decimal.
pub fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_one_decimal() {
        assert_eq!(seconds(0), "0.0 s");
        assert_eq!(seconds(1999), "1.9 s");
        assert_eq!(seconds(61_050), "61.0 s");
    }
}
