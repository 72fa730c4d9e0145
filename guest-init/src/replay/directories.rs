//! Directories that the agent has open.
//!
//! Opening a directory by its handle makes Linux ask for its name again at the next use, so that it pays to keep those
//! that are used again and again.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::io::Errno;

/// The most directories that are kept.
const MOST: usize = 64;

/// Open directories by their node id, the one that was used last at the end.
#[derive(Debug, Default)]
pub(super) struct Directories(Vec<(u64, Rc<OwnedFd>)>);

impl Directories {
    /// The directory `node`, which `open` opens when it is not here.
    ///
    /// # Errors
    /// Those of `open`.
    pub(super) fn get(
        &mut self,
        node: u64,
        open: impl FnOnce() -> Result<OwnedFd, Errno>,
    ) -> Result<Rc<OwnedFd>, Errno> {
        let directory = match self.0.iter().position(|(kept, _)| *kept == node) {
            Some(at) => self.0.remove(at).1,
            None => Rc::new(open()?),
        };
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push((node, Rc::clone(&directory)));
        Ok(directory)
    }

    /// Whether none is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets go of all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Lets go of those that were removed. As long as one is open here, its watchers do not see that it is gone.
    pub(super) fn let_go_of_removed(&mut self) {
        self.0.retain(|(_, directory)| is_there(directory));
    }
}

/// Whether an open directory still has a name, as Linux knows it: no attribute is wanted, so the file server is not asked.
fn is_there(directory: &impl AsFd) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(directory, c"", flags, StatxFlags::empty()).is_ok_and(|known| known.stx_nlink > 0)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::{create_dir, remove_dir};
    use std::path::Path;

    use rustix::fs::{CWD, Mode, OFlags, openat};

    use super::*;

    fn open(path: &Path) -> Result<OwnedFd, Errno> {
        openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    }

    #[test]
    fn the_one_not_used_for_longest_makes_room() {
        let here = tempfile::tempdir().unwrap();
        let mut directories = Directories::default();
        let opened = Cell::new(0);
        let mut get = |node| {
            let counted = || {
                opened.set(opened.get() + 1);
                open(here.path())
            };
            directories.get(node, counted).unwrap();
            opened.get()
        };
        let most = MOST as u64;
        for node in 1..=most {
            get(node);
        }
        assert_eq!(get(1), most);
        // In the place of 2.
        assert_eq!(get(most + 1), most + 1);
        assert_eq!(get(1), most + 1);
        assert_eq!(get(2), most + 2);
        assert_eq!(directories.0.len(), MOST);
        directories.clear();
        assert!(directories.is_empty());
    }

    #[test]
    fn one_that_cannot_be_opened_is_not_kept() {
        let mut directories = Directories::default();
        assert_eq!(
            directories.get(1, || Err(Errno::STALE)).unwrap_err(),
            Errno::STALE
        );
        assert!(directories.is_empty());
    }

    #[test]
    fn those_that_were_removed_are_let_go() {
        let here = tempfile::tempdir().unwrap();
        let removed = here.path().join("removed");
        create_dir(&removed).unwrap();
        let mut directories = Directories::default();
        directories.get(1, || open(here.path())).unwrap();
        directories.get(2, || open(&removed)).unwrap();
        directories.let_go_of_removed();
        assert_eq!(directories.0.len(), 2);
        remove_dir(&removed).unwrap();
        directories.let_go_of_removed();
        assert_eq!(
            directories.0.iter().map(|(node, _)| *node).collect::<Vec<_>>(),
            [1]
        );
    }
}
