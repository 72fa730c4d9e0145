//! What commands print: results on standard output, for people or as JSON; everything else on standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// As JSON rather than for people.
    pub json: bool,
}

impl Output {
    /// Prints a command's result: `human`, or `value` as JSON.
    pub fn result(self, value: &impl Serialize, human: &impl Display) -> Result<()> {
        let text = if self.json {
            serde_json::to_string_pretty(value)?
        } else {
            human.to_string()
        };
        print(&text)
    }

    /// Prints a line that is not a result, for people only.
    pub fn remark(self, line: impl Display) {
        if !self.json {
            say(line);
        }
    }
}

/// Prints `text` and a newline if it does not end with one.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let end = if text.ends_with('\n') || text.is_empty() {
        ""
    } else {
        "\n"
    };
    let written = write!(out, "{text}{end}").and_then(|()| out.flush());
    ignore_closed_pipe(written).context("cannot write to standard output")
}

/// A reader that has seen enough (`berth list | head -1`) is not an error.
pub fn ignore_closed_pipe(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes a line to standard error. If that cannot be written to, there is nobody to tell.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Whether a person watches standard error.
pub fn is_watched() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A number of seconds as people say it: `42 s`, `3 min 5 s`, `2 h 7 min`, `3 d 4 h`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// Lines of a label and a value, the values in one column.
pub fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    rows.iter()
        .map(|(label, value)| format!("{label:<width$}  {value}\n"))
        .collect()
}

/// Rows of columns, each as wide as its widest value; the first row is the head.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let line: Vec<_> = row
            .iter()
            .zip(widths)
            .map(|(value, width)| format!("{value:<width$}"))
            .collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (185, "3 min 5 s"),
            (7620, "2 h 7 min"),
            (273_600, "3 d 4 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_value() {
        let rows = [["A", "LONG"], ["bcd", ""], ["é", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "A    LONG\nbcd\né    x\n");
    }

    #[test]
    fn values_stand_in_one_column() {
        assert_eq!(
            table(&[("a", "1".into()), ("long", "2".into())]),
            "a     1\nlong  2\n"
        );
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_no_error() {
        assert!(ignore_closed_pipe(Err(io::ErrorKind::BrokenPipe.into())).is_ok());
        assert!(ignore_closed_pipe(Err(io::ErrorKind::StorageFull.into())).is_err());
    }
}
