//! Whether the directories a machine is to share can be shared.

use super::Check;
use crate::config::Config;
use crate::machine::settings::base_shares;
use crate::machine::shares::command;
use crate::name::MachineName;
use crate::shares::Share;
use crate::shares::choice::ShareChanges;
use crate::shares::health::{self, Health};

const NAME: &str = "shares";

/// Looks at all of them.
pub(super) fn check(name: &MachineName, changes: &ShareChanges, config: &Config) -> Check {
    of(&changes.apply(&base_shares(config)), &command(name))
}

fn of(shares: &[Share], command: &str) -> Check {
    if shares.is_empty() {
        return Check::warning(
            NAME,
            "no directory of this host is shared; `docker run -v` can have none",
            format!("`{command} add DIRECTORY`"),
        );
    }
    let mut unusable = Vec::new();
    let mut limited = Vec::new();
    for share in shares {
        match health::look(share) {
            Health::Good => {}
            Health::Limited(what) => limited.push(what),
            Health::Unusable(what) => unusable.push(what),
        }
    }
    let check = if !unusable.is_empty() {
        unusable.append(&mut limited);
        Check::warning(
            NAME,
            unusable.join("; "),
            format!("make it a directory of yours, or take it away with `{command} remove`"),
        )
    } else if !limited.is_empty() {
        Check::warning(
            NAME,
            limited.join("; "),
            "share a directory of yours on ext4, XFS or Btrfs if containers are to own files in it",
        )
    } else {
        let paths: Vec<String> = shares
            .iter()
            .map(|share| share.path.display().to_string())
            .collect();
        Check::ok(NAME, format!("{} can be shared", paths.join(", ")))
    };
    check.with_figures(serde_json::json!({ "shares": shares }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Outcome;

    #[test]
    fn a_share_that_cannot_be_had_is_named_with_a_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let share = |name: &str| Share::new(&dir.path().join(name), None, true, &[]).unwrap();
        std::fs::create_dir(dir.path().join("there")).unwrap();
        let good = of(&[share("there")], "berth share");
        assert_eq!(good.outcome, Outcome::Ok);
        assert!(good.found.ends_with("there can be shared"), "{}", good.found);
        let bad = of(&[share("there"), share("gone")], "berth share -m x");
        assert_eq!(bad.outcome, Outcome::Warning);
        assert!(bad.found.ends_with("gone is not there"), "{}", bad.found);
        assert!(bad.fix.unwrap().contains("`berth share -m x remove`"));
        assert_eq!(of(&[], "berth share").outcome, Outcome::Warning);
    }
}
