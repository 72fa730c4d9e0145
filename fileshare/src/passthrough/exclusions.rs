//! Paths of a share that the guest is not to see.
//!
//! A tree of names. A node of the file system carries its position in it, found step by step from the share's root as
//! it is looked up, so that no path has to be put together. Position 0 is "off the tree", where nothing is excluded;
//! nearly every node is there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Where in the tree a node is.
pub(super) type Position = u16;

/// Off the tree.
pub(super) const OFF: Position = 0;

/// What is at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing that concerns exclusions, or something further down when the position is on the tree.
    Open(Position),
    /// Excluded.
    Hidden,
}

/// The excluded paths of one share.
#[derive(Debug, Default)]
pub(super) struct Exclusions {
    /// Children by position; the root's are at 1. A child of position 0 is excluded itself.
    positions: Vec<Vec<(Box<[u8]>, Position)>>,
}

impl Exclusions {
    /// Builds the tree. Returns the path that makes no sense: absolute, empty, or with a `..`.
    pub(super) fn new(paths: &[PathBuf]) -> Result<Exclusions, PathBuf> {
        let mut tree = Exclusions::default();
        for path in paths {
            tree.add(path).ok_or_else(|| path.clone())?;
        }
        Ok(tree)
    }

    fn add(&mut self, path: &Path) -> Option<()> {
        let mut names = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => names.push(name),
                Component::CurDir => {}
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
            }
        }
        let (last, ancestors) = names.split_last()?;
        if self.positions.is_empty() {
            self.positions = vec![Vec::new(), Vec::new()];
        }
        let mut at = 1;
        for name in ancestors {
            match self.child(at, name) {
                Some(OFF) => return Some(()), // all of it is excluded already
                Some(next) => at = next,
                None => {
                    let next = Position::try_from(self.positions.len()).ok()?;
                    self.positions.push(Vec::new());
                    self.positions[usize::from(at)].push((name.as_bytes().into(), next));
                    at = next;
                }
            }
        }
        let children = &mut self.positions[usize::from(at)];
        children.retain(|(name, _)| **name != *last.as_bytes());
        children.push((last.as_bytes().into(), OFF));
        Some(())
    }

    fn child(&self, at: Position, name: &OsStr) -> Option<Position> {
        let children = self.positions.get(usize::from(at))?;
        children
            .iter()
            .find(|(child, _)| **child == *name.as_bytes())
            .map(|(_, position)| *position)
    }

    /// The position of the share's root.
    pub(super) fn root(&self) -> Position {
        if self.positions.is_empty() { OFF } else { 1 }
    }

    /// What is at `name` in the directory at position `at`.
    pub(super) fn step(&self, at: Position, name: &[u8]) -> Step {
        if at == OFF {
            return Step::Open(OFF);
        }
        match self.child(at, OsStr::from_bytes(name)) {
            Some(OFF) => Step::Hidden,
            Some(position) => Step::Open(position),
            None => Step::Open(OFF),
        }
    }

    /// The names that are excluded right in the directory at position `at`.
    pub(super) fn hidden_in(&self, at: Position) -> impl Iterator<Item = &[u8]> {
        let children = if at == OFF {
            None
        } else {
            self.positions.get(usize::from(at))
        };
        children
            .into_iter()
            .flatten()
            .filter(|(_, position)| *position == OFF)
            .map(|(name, _)| &**name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[&str]) -> Exclusions {
        Exclusions::new(&paths.iter().map(PathBuf::from).collect::<Vec<_>>()).unwrap()
    }

    fn walk(tree: &Exclusions, path: &str) -> Step {
        path.split('/')
            .fold(Step::Open(tree.root()), |step, name| match step {
                Step::Open(at) => tree.step(at, name.as_bytes()),
                Step::Hidden => Step::Hidden,
            })
    }

    #[test]
    fn hides_what_is_named_and_nothing_else() {
        let tree = tree(&[".ssh", "a/b/secret", "./a/c", "a/b/other"]);
        assert_eq!(walk(&tree, ".ssh"), Step::Hidden);
        assert_eq!(walk(&tree, ".ssh2"), Step::Open(OFF));
        assert_eq!(walk(&tree, "a/b/secret"), Step::Hidden);
        assert_eq!(walk(&tree, "a/b/other"), Step::Hidden);
        assert_eq!(walk(&tree, "a/c"), Step::Hidden);
        assert_eq!(walk(&tree, "a/secret"), Step::Open(OFF));
        assert_eq!(walk(&tree, "x/a/b/secret"), Step::Open(OFF));
        assert!(
            matches!(walk(&tree, "a/b"), Step::Open(at) if at != OFF),
            "an ancestor is on the tree"
        );
        assert_eq!(tree.hidden_in(tree.root()).collect::<Vec<_>>(), [b".ssh"]);
        assert_eq!(tree.hidden_in(OFF).count(), 0);
    }

    #[test]
    fn an_excluded_ancestor_covers_what_is_below_in_either_order() {
        for paths in [["a", "a/b"], ["a/b", "a"]] {
            let tree = tree(&paths);
            assert_eq!(walk(&tree, "a"), Step::Hidden);
        }
    }

    #[test]
    fn paths_that_make_no_sense_are_refused() {
        for bad in ["/etc", "..", "a/../b", "", "."] {
            assert_eq!(
                Exclusions::new(&[PathBuf::from(bad)]).unwrap_err(),
                PathBuf::from(bad)
            );
        }
        assert_eq!(tree(&[]).root(), OFF);
    }
}
