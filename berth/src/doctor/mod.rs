//! The checks of `berth doctor`: one by one what berth needs on this host, what was found, and how to fix what is wrong.

mod checks;
mod shares;

use std::fmt;

use serde::Serialize;

pub use checks::{Subject, run};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// There is nothing to check now.
    Skipped,
    /// As it should be.
    Ok,
    /// Machines run, and something is worse than it could be.
    Warning,
    /// Machines do not run, or not as configured.
    Failed,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// Its name, the same for ever.
    pub name: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// What was found, in a sentence without a full stop.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// What was measured.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub figures: serde_json::Value,
}

impl Check {
    fn new(name: &'static str, outcome: Outcome, found: impl Into<String>) -> Check {
        Check {
            name,
            outcome,
            found: found.into(),
            fix: None,
            figures: serde_json::Value::Null,
        }
    }

    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check::new(name, Outcome::Ok, found)
    }

    fn skipped(name: &'static str, why: impl Into<String>) -> Check {
        Check::new(name, Outcome::Skipped, why)
    }

    fn warning(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Check {
        Check {
            fix: Some(fix.into()),
            ..Check::new(name, Outcome::Warning, found)
        }
    }

    fn failed(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Check {
        Check {
            fix: Some(fix.into()),
            ..Check::new(name, Outcome::Failed, found)
        }
    }

    fn with_figures(mut self, figures: impl Serialize) -> Check {
        // Figures are plain data; should one not be representable, the check is worth telling without.
        self.figures = serde_json::to_value(figures).unwrap_or_default();
        self
    }
}

/// All checks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// One by one.
    pub checks: Vec<Check>,
}

impl Report {
    /// The worst outcome.
    pub fn worst(&self) -> Outcome {
        self.checks
            .iter()
            .map(|check| check.outcome)
            .max()
            .unwrap_or(Outcome::Ok)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .checks
            .iter()
            .map(|check| check.name.len())
            .max()
            .unwrap_or(0);
        for check in &self.checks {
            let mark = match check.outcome {
                Outcome::Ok => "ok  ",
                Outcome::Warning => "warn",
                Outcome::Failed => "FAIL",
                Outcome::Skipped => "-   ",
            };
            writeln!(f, "{mark}  {:<width$}  {}", check.name, check.found)?;
            if let Some(fix) = &check.fix {
                writeln!(f, "      {:<width$}  fix: {fix}", "")?;
            }
        }
        let count = |outcome| {
            self.checks
                .iter()
                .filter(|check| check.outcome == outcome)
                .count()
        };
        match (count(Outcome::Failed), count(Outcome::Warning)) {
            (0, 0) => write!(f, "everything is as it should be"),
            (0, warnings) => write!(f, "machines can run; {warnings} could be better"),
            (failed, _) => write!(f, "{failed} to fix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_outcome_counts() {
        let report = |outcomes: &[Outcome]| Report {
            checks: outcomes
                .iter()
                .map(|outcome| Check::new("x", *outcome, ""))
                .collect(),
        };
        use Outcome::{Failed, Ok, Skipped, Warning};
        assert_eq!(report(&[Ok, Skipped]).worst(), Ok);
        assert_eq!(report(&[Ok, Warning]).worst(), Warning);
        assert_eq!(report(&[Failed, Warning]).worst(), Failed);
    }

    #[test]
    fn a_fix_stands_below_what_it_fixes() {
        let report = Report {
            checks: vec![
                Check::ok("kvm", "works"),
                Check::failed("image", "gone", "get it"),
            ],
        };
        assert_eq!(
            report.to_string(),
            "ok    kvm    works\nFAIL  image  gone\n             fix: get it\n1 to fix"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][1]["outcome"], "failed");
        assert_eq!(json["checks"][1]["fix"], "get it");
        assert!(json["checks"][0].get("fix").is_none());
    }
}
