//! Times, how they compare, and whether that is good enough.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::bench::files::plan::{Contender, Plan, Row};

/// What berth is compared with in the table.
const OTHERS: [Contender; 3] = [
    Contender::VirtiofsdAuto,
    Contender::VirtiofsdAlways,
    Contender::Ext4,
];
/// How far the guest's clock may be from the host's: beyond that, neither can be believed.
const CLOCK_TOLERANCE: f64 = 0.05;

/// Everything measured.
pub(super) struct Results {
    plan: Plan,
    /// In milliseconds, by row and file system.
    samples: BTreeMap<(String, Contender), Vec<f64>>,
    /// What the servers took, with start and end.
    processor_times: BTreeMap<Contender, Duration>,
    /// By the host's clock and by the guest's.
    took: Option<(Duration, Duration)>,
}

impl Results {
    /// Of a plan, still empty.
    pub(super) fn new(plan: Plan) -> Results {
        Results {
            plan,
            samples: BTreeMap::new(),
            processor_times: BTreeMap::new(),
            took: None,
        }
    }

    /// Adds a time.
    pub(super) fn add(&mut self, contender: Contender, row: &str, ms: f64) {
        self.samples
            .entry((row.to_owned(), contender))
            .or_default()
            .push(ms);
    }

    /// Adds what a server took of the host's processors.
    pub(super) fn add_processor_time(&mut self, contender: Contender, time: Duration) {
        self.processor_times.insert(contender, time);
    }

    /// Sets how long it all took, by two clocks.
    pub(super) fn finish(&mut self, host: Duration, guest: Duration) {
        self.took = Some((host, guest));
    }

    fn rows(&self) -> impl Iterator<Item = &'static Row> {
        self.plan.groups.iter().flat_map(|group| group.rows())
    }

    fn samples(&self, row: &Row, contender: Contender) -> &[f64] {
        self.samples
            .get(&(row.id.to_owned(), contender))
            .map_or(&[], Vec::as_slice)
    }

    fn median(&self, row: &Row, contender: Contender) -> Option<f64> {
        let mut sorted = self.samples(row, contender).to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len().checked_sub(1)? / 2;
        // Of an even number the mean of the two in the middle.
        Some((sorted[middle] + sorted[sorted.len() / 2]) / 2.0)
    }

    fn least(&self, row: &Row, contender: Contender) -> Option<f64> {
        self.samples(row, contender).iter().copied().reduce(f64::min)
    }

    /// berth's time as a share of another's.
    fn ratio(&self, row: &Row, other: Contender) -> Option<f64> {
        let (berth, other) = (self.median(row, Contender::Berth)?, self.median(row, other)?);
        (other > 0.0).then(|| berth / other)
    }

    fn met(&self, row: &Row) -> Option<bool> {
        self.ratio(row, Contender::VirtiofsdAuto)
            .map(|ratio| ratio <= row.bar)
    }

    /// What of the clocks is not to be believed.
    fn clock_warning(&self) -> Option<String> {
        let (host, guest) = self.took?;
        let rate = guest.as_secs_f64() / host.as_secs_f64();
        ((rate - 1.0).abs() > CLOCK_TOLERANCE).then(|| {
            format!("the guest's clock ran at {rate:.2} times the host's: only ratios are to be believed")
        })
    }

    /// The table that a person reads.
    pub(super) fn table(&self) -> String {
        let width = self
            .rows()
            .map(|row| self.plan.describe(row).chars().count())
            .max()
            .unwrap_or(0);
        let mut text = format!("{:width$}", "milliseconds: median (least)");
        let mut line = |words: &str| text += words;
        for contender in &self.plan.contenders {
            line(&format!(" {:>17}", contender.name()));
        }
        line("   berth/auto /always   /ext4    bar\n");
        let mut missed = Vec::new();
        for row in self.rows() {
            let what = self.plan.describe(row);
            line(&format!("{what:width$}"));
            for contender in &self.plan.contenders {
                let cell = match (self.median(row, *contender), self.least(row, *contender)) {
                    (Some(median), Some(least)) => format!("{median:.0} ({least:.0})"),
                    _ => "-".to_owned(),
                };
                line(&format!(" {cell:>17}"));
            }
            line("    ");
            for other in OTHERS {
                let cell = self
                    .ratio(row, other)
                    .map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
                line(&format!(" {cell:>8}"));
            }
            let bar = match self.met(row) {
                None => "-".to_owned(),
                Some(true) => format!("{:.1} ok", row.bar),
                Some(false) => format!("{:.1} NO", row.bar),
            };
            line(&format!(" {bar:>7}\n"));
            if self.met(row) == Some(false) {
                missed.push(what);
            }
        }
        // Writing to a String cannot fail.
        let _ = match missed.as_slice() {
            [] => writeln!(text, "every bar that could be measured is met"),
            missed => writeln!(text, "bars missed: {}", missed.join("; ")),
        };
        if let Some((host, _)) = self.took {
            let _ = write!(text, "the guest worked for {:.0} s", host.as_secs_f64());
            for (contender, time) in &self.processor_times {
                let _ = write!(
                    text,
                    ", {} for {:.1} s of processor time",
                    contender.name(),
                    time.as_secs_f64()
                );
            }
            text.push('\n');
        }
        if let Some(warning) = self.clock_warning() {
            let _ = writeln!(text, "{warning}");
        }
        text
    }

    /// The same for programs, with every single time.
    pub(super) fn json(&self, setting: &impl Serialize) -> Value {
        let rows: Vec<Value> = self
            .rows()
            .map(|row| {
                let times: BTreeMap<_, _> = self
                    .plan
                    .contenders
                    .iter()
                    .map(|contender| {
                        let times = json!({
                            "median": self.median(row, *contender),
                            "least": self.least(row, *contender),
                            "all": self.samples(row, *contender),
                        });
                        (contender.name(), times)
                    })
                    .collect();
                let ratios: BTreeMap<_, _> = OTHERS
                    .iter()
                    .map(|other| (other.name(), self.ratio(row, *other)))
                    .collect();
                json!({
                    "row": row.id,
                    "what": self.plan.describe(row),
                    "milliseconds": times,
                    "berth_relative_to": ratios,
                    "bar": row.bar,
                    "met": self.met(row),
                })
            })
            .collect();
        json!({
            "setting": setting,
            "plan": self.plan,
            "host_seconds": self.took.map(|(host, _)| host.as_secs_f64()),
            "guest_seconds": self.took.map(|(_, guest)| guest.as_secs_f64()),
            "server_processor_seconds": self.processor_times.iter()
                .map(|(contender, time)| (contender.name(), time.as_secs_f64()))
                .collect::<BTreeMap<_, _>>(),
            "warning": self.clock_warning(),
            "rows": rows,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::files::plan::Group;

    fn results() -> Results {
        let mut results = Results::new(Plan {
            groups: vec![Group::Changes],
            ..Plan::full()
        });
        for (contender, row, times) in [
            (Contender::Berth, "create", [40.0, 90.0, 60.0]),
            (Contender::VirtiofsdAuto, "create", [100.0, 200.0, 130.0]),
            (Contender::Berth, "rename", [70.0, 70.0, 70.0]),
            (Contender::VirtiofsdAuto, "rename", [100.0, 100.0, 100.0]),
            (Contender::Ext4, "rename", [10.0, 10.0, 10.0]),
        ] {
            for time in times {
                results.add(contender, row, time);
            }
        }
        results
    }

    #[test]
    fn ratios_are_of_medians_and_bars_are_judged_by_them() {
        let results = results();
        let [create, rename, remove] = Group::Changes.rows() else {
            panic!()
        };
        assert_eq!(results.median(create, Contender::Berth), Some(60.0));
        assert_eq!(results.met(create), Some(true));
        assert_eq!(results.ratio(rename, Contender::Ext4), Some(7.0));
        assert_eq!(results.met(rename), Some(false));
        assert_eq!(results.met(remove), None);
    }

    #[test]
    fn the_table_and_the_json_name_what_is_missed() {
        let mut results = results();
        let table = results.table();
        assert!(table.contains("60 (40)"), "{table}");
        assert!(table.contains("bars missed: rename 1000 files\n"), "{table}");
        assert!(!table.contains("clock"), "{table}");
        let json = results.json(&json!({}));
        assert_eq!(json["rows"][0]["milliseconds"]["berth"]["all"][1], 90.0);
        assert_eq!(json["rows"][1]["berth_relative_to"]["virtiofsd-auto"], 0.7);
        assert_eq!(json["rows"][1]["met"], false);

        results.finish(Duration::from_secs(100), Duration::from_secs(80));
        assert!(results.table().contains("0.80 times"));
    }

    #[test]
    fn an_even_number_has_a_median_too() {
        let mut results = Results::new(Plan::quick());
        let row = &Group::Small.rows()[0];
        for time in [4.0, 1.0, 2.0, 10.0] {
            results.add(Contender::Ext4, row.id, time);
        }
        assert_eq!(results.median(row, Contender::Ext4), Some(3.0));
        assert_eq!(results.median(row, Contender::Berth), None);
    }
}
