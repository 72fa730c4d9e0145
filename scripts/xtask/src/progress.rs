//! What a person sees while something long runs: on stderr, one line per step, a moving count on a terminal only.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

/// Prints one line to stderr.
pub(crate) fn note(text: &str) {
    // A closed stderr must not end a build.
    let _ = writeln!(io::stderr(), "{text}");
}

/// The name and duration of every step of a long command, for the table at its end.
#[derive(Default)]
pub(crate) struct Timings {
    steps: Vec<(String, Duration)>,
}

impl Timings {
    /// Announces and runs one step, and keeps its time whether it succeeds or not.
    pub(crate) fn step<T>(
        &mut self,
        name: &str,
        run: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        note(&format!("== {name}"));
        let start = Instant::now();
        let result = run();
        self.steps.push((name.to_owned(), start.elapsed()));
        result
    }

    /// One line per step and their sum.
    pub(crate) fn table(&self) -> String {
        let width = self
            .steps
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0)
            .max("total".len());
        let total: Duration = self.steps.iter().map(|(_, time)| *time).sum();
        let mut table = String::new();
        for (name, time) in self
            .steps
            .iter()
            .map(|(name, time)| (name.as_str(), *time))
            .chain([("total", total)])
        {
            // Writing to a String cannot fail.
            let _ = writeln!(table, "{name:width$}  {:>7.1} s", time.as_secs_f64());
        }
        table
    }
}

/// A count that moves on a terminal and is silent elsewhere.
pub(crate) struct Counter {
    label: String,
    count: u64,
    shown: Option<Instant>,
    terminal: bool,
}

impl Counter {
    pub(crate) fn new(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            count: 0,
            shown: None,
            terminal: io::stderr().is_terminal(),
        }
    }

    /// Counts one, and shows it at most ten times a second.
    pub(crate) fn tick(&mut self) {
        self.count += 1;
        let due = self
            .shown
            .is_none_or(|shown| shown.elapsed() >= Duration::from_millis(100));
        if self.terminal && due {
            let _ = write!(io::stderr(), "\r{}: {}", self.label, self.count);
            self.shown = Some(Instant::now());
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_step_and_the_sum_even_after_a_failure() {
        let mut timings = Timings {
            steps: vec![("kernel".to_owned(), Duration::from_millis(61_500))],
        };

        let failed: anyhow::Result<()> = timings.step("image", || anyhow::bail!("no space"));

        assert!(failed.is_err());
        let table = timings.table();
        let names: Vec<_> = table
            .lines()
            .map(|line| line.split_whitespace().next().unwrap())
            .collect();
        assert_eq!(names, ["kernel", "image", "total"]);
        assert!(table.starts_with("kernel     61.5 s\n"), "{table}");
    }
}
