//! Which shares a machine has: those of the configuration, else the home directory, with what `berth share` has added to
//! and taken from them.
//!
//! The changes are kept as changes, in the machine's record, so that what is later written in the configuration still
//! counts.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Share;
use super::rules::{self, ShareError};

/// What `berth share` has changed for a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareChanges {
    /// Shares that were added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<Share>,
    /// Directories whose share was removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<PathBuf>,
}

impl ShareChanges {
    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }

    /// The shares there are when `base` are those without the changes.
    pub fn apply(&self, base: &[Share]) -> Vec<Share> {
        let replaced = |share: &&Share| self.added.iter().all(|added| added.path != share.path);
        base.iter()
            .filter(|share| !self.removed.contains(&share.path))
            .filter(replaced)
            .chain(&self.added)
            .cloned()
            .collect()
    }

    /// `share` was added.
    pub fn add(&mut self, share: Share, base: &[Share]) {
        self.forget(&share.path);
        if !base.contains(&share) {
            self.added.push(share);
        }
    }

    /// The share of `path` was removed.
    pub fn remove(&mut self, path: &Path, base: &[Share]) {
        self.forget(path);
        if base.iter().any(|share| share.path == path) {
            self.removed.push(path.to_owned());
        }
    }

    fn forget(&mut self, path: &Path) {
        self.added.retain(|added| added.path != path);
        self.removed.retain(|removed| removed != path);
    }
}

/// The shares a machine has without changes: those of the configuration, else the home directory.
///
/// A home that cannot be shared (`/`, `/usr/…`) is none: nobody asked for it. [`unshared_home`] tells.
pub fn base(configured: Option<Vec<Share>>, home: Option<&Path>) -> Vec<Share> {
    configured.unwrap_or_else(|| home_share(home).and_then(Result::ok).into_iter().collect())
}

/// Why the home directory is not shared though nothing else was configured.
pub fn unshared_home(configured: bool, home: Option<&Path>) -> Option<ShareError> {
    home_share(home).filter(|_| !configured)?.err()
}

fn home_share(home: Option<&Path>) -> Option<Result<Share, ShareError>> {
    home.map(|home| Share::new(home, None, false, &[]))
}

/// Says no to shares of which two overlap. Those of the configuration have been checked among themselves, but not with
/// those that were added.
pub fn check(shares: &[Share]) -> Result<(), ShareError> {
    for (index, share) in shares.iter().enumerate() {
        rules::no_overlap(share, &shares[..index])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(path: &str) -> Share {
        Share::new(Path::new(path), None, false, &[]).unwrap()
    }

    fn paths(shares: &[Share]) -> Vec<&str> {
        shares.iter().map(|share| share.path.to_str().unwrap()).collect()
    }

    #[test]
    fn changes_are_laid_over_whatever_the_configuration_says_later() {
        let before = [share("/home/me"), share("/data")];
        let mut changes = ShareChanges::default();
        changes.add(share("/srv"), &before);
        changes.remove(Path::new("/data"), &before);
        assert_eq!(paths(&changes.apply(&before)), ["/home/me", "/srv"]);
        let later = [share("/home/me"), share("/data"), share("/work")];
        assert_eq!(paths(&changes.apply(&later)), ["/home/me", "/work", "/srv"]);
    }

    #[test]
    fn what_was_added_is_removed_without_a_trace_and_the_other_way_round() {
        let base = [share("/home/me")];
        let mut changes = ShareChanges::default();
        changes.add(share("/srv"), &base);
        changes.remove(Path::new("/srv"), &base);
        changes.remove(Path::new("/home/me"), &base);
        assert_eq!(paths(&changes.apply(&base)), [""; 0]);
        changes.add(share("/home/me"), &base);
        assert!(changes.is_empty());
    }

    #[test]
    fn an_added_share_takes_the_place_of_the_configured_one() {
        let base = [share("/home/me")];
        let read_only = Share {
            read_only: true,
            ..share("/home/me")
        };
        let mut changes = ShareChanges::default();
        changes.add(read_only.clone(), &base);
        assert_eq!(changes.apply(&base), [read_only]);
    }

    #[test]
    fn the_home_is_shared_when_nothing_else_is_said() {
        let home = Some(Path::new("/home/me"));
        assert_eq!(paths(&base(None, home)), ["/home/me"]);
        assert_eq!(paths(&base(Some(Vec::new()), home)), [""; 0]);
        assert_eq!(paths(&base(None, Some(Path::new("/")))), [""; 0]);
        assert!(unshared_home(false, home).is_none() && unshared_home(true, Some(Path::new("/"))).is_none());
        assert!(unshared_home(false, Some(Path::new("/usr/x"))).is_some());
    }

    #[test]
    fn an_added_share_may_overlap_with_what_the_configuration_says_now() {
        let error = check(&[share("/data"), share("/srv"), share("/data/x")]).unwrap_err();
        assert!(error.to_string().contains("overlap"), "{error}");
        check(&[share("/data"), share("/srv")]).unwrap();
    }
}
