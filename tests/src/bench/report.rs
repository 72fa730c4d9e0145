//! The table a person reads and the JSON a program does.

use std::fmt::Write;

use serde::Serialize;

/// One figure, for berth and for what it is compared with.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The unit of the figures.
    pub unit: &'static str,
    /// berth on KVM.
    pub berth: Option<f64>,
    /// QEMU's microvm on KVM.
    pub qemu: Option<f64>,
    /// What the project aims for, where it aims at something.
    pub bar: Option<f64>,
}

/// All figures of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a figure.
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// The table.
    pub fn table(&self) -> String {
        let width = self
            .rows
            .iter()
            .map(|row| row.what.chars().count())
            .max()
            .unwrap_or(0)
            .max(4);
        let mut text = format!(
            "{:width$}  {:>10} {:>10} {:>7} {:>8}  unit\n",
            "", "berth", "QEMU", "ratio", "bar"
        );
        for row in &self.rows {
            let figure = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
            let ratio = match (row.berth, row.qemu) {
                (Some(berth), Some(qemu)) if qemu > 0.0 => format!("{:.2}", berth / qemu),
                _ => "-".to_owned(),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{:width$}  {:>10} {:>10} {ratio:>7} {:>8}  {}",
                row.what,
                figure(row.berth),
                figure(row.qemu),
                figure(row.bar),
                row.unit
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_needs_both_figures() {
        let mut report = Report::default();
        let row = |berth, qemu| Row {
            what: "boot".into(),
            unit: "ms",
            berth,
            qemu,
            bar: None,
        };
        report.add(row(Some(50.0), Some(100.0)));
        report.add(row(Some(50.0), None));

        let table = report.table();
        let lines: Vec<Vec<_>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();

        assert_eq!(lines[1], ["boot", "50.0", "100.0", "0.50", "-", "ms"]);
        assert_eq!(lines[2], ["boot", "50.0", "-", "-", "-", "ms"]);
    }
}
