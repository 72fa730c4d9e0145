//! The data disk: a sparse file made on the first start, which only ever grows.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::size::Size;

/// With less than this free, a machine is not started: its first writes would fail in ways nobody understands.
pub const MIN_FREE: Size = Size::from_mib(256);

/// Why there is no disk to start with.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The host's disk is full.
    #[error(
        "the disk of {} is full ({free} left, a machine needs at least {MIN_FREE}); free some space or move berth's data with $XDG_DATA_HOME",
        path.display()
    )]
    HostFull {
        /// The data disk.
        path: PathBuf,
        /// What is left.
        free: Size,
    },
    /// It could not be made.
    #[error("cannot make the data disk {path} with a size of {size}")]
    Make {
        /// The data disk.
        path: PathBuf,
        /// Its size.
        size: Size,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("the data disk {0} is not a file; move away what stands there")]
    NotAFile(PathBuf),
}

/// What [`prepare`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// Made a new disk.
    Made,
    /// It is as it was.
    Kept,
    /// Made it larger; it had this size.
    Grown(Size),
    /// It is larger than asked for and stays so; it has this size.
    StaysLarger(Size),
}

/// Sees to it that there is a disk of at least `size` at `path`.
pub fn prepare(path: &Path, size: Size) -> Result<Prepared, DiskError> {
    let failed = |source| DiskError::Make {
        path: path.to_owned(),
        size,
        source,
    };
    check_free(path).map_err(failed)?.map_or(Ok(()), |free| {
        Err(DiskError::HostFull {
            path: path.to_owned(),
            free,
        })
    })?;
    let new = !path.try_exists().map_err(failed)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(DiskError::NotAFile(path.to_owned()));
    }
    let before = Size::from_bytes(metadata.len());
    if before >= size {
        return Ok(if before == size {
            Prepared::Kept
        } else {
            Prepared::StaysLarger(before)
        });
    }
    if let Err(error) = file.set_len(size.bytes()) {
        if new {
            // Best effort: an empty disk that stays is made larger the next time.
            let _ = fs::remove_file(path);
        }
        return Err(failed(error));
    }
    Ok(if before.bytes() == 0 {
        Prepared::Made
    } else {
        Prepared::Grown(before)
    })
}

/// The free space where `path` is or will be, if it is too little.
fn check_free(path: &Path) -> io::Result<Option<Size>> {
    let free = free_space(path.parent().unwrap_or(path))?;
    Ok((free < MIN_FREE).then_some(free))
}

/// What to tell the user of a machine whose data disk is or will be at `path`, while that can still grow and soon cannot.
/// None when there is room, or nobody can tell.
pub fn shortage(path: &Path) -> Option<String> {
    // Before a machine's first start its directory may not be there.
    let dir = path.ancestors().skip(1).find(|dir| dir.is_dir())?;
    warn_of(free_space(dir).ok()?, path)
}

fn warn_of(free: Size, path: &Path) -> Option<String> {
    (free < MIN_FREE).then(|| {
        format!(
            "the host's disk is full, or soon will be: {free} of space left for {}; on a full disk, writes of the machine fail. \
             Free some space on the host",
            path.display()
        )
    })
}

/// The space an ordinary user may still fill on the file system of `path`.
pub fn free_space(path: &Path) -> io::Result<Size> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(Size::from_bytes(stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// The apparent size of the disk at `path`, and what it really takes of the host's disk.
pub fn usage(path: &Path) -> io::Result<(Size, Size)> {
    let metadata = fs::metadata(path)?;
    Ok((
        Size::from_bytes(metadata.len()),
        Size::from_bytes(metadata.blocks() * 512),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_made_sparse_and_only_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.img");
        let gib = Size::from_gib;
        assert_eq!(prepare(&path, gib(4)).unwrap(), Prepared::Made);
        assert_eq!(usage(&path).unwrap(), (gib(4), Size::from_bytes(0)));
        assert_eq!(prepare(&path, gib(4)).unwrap(), Prepared::Kept);
        assert_eq!(prepare(&path, gib(8)).unwrap(), Prepared::Grown(gib(4)));
        assert_eq!(prepare(&path, gib(2)).unwrap(), Prepared::StaysLarger(gib(8)));
        assert_eq!(usage(&path).unwrap().0, gib(8));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn little_room_on_the_host_is_warned_of_before_it_is_gone() {
        let path = Path::new("/d/data.img");
        assert_eq!(warn_of(MIN_FREE, path), None);
        let warning = warn_of(Size::from_mib(255), path).unwrap();
        for part in ["full", "space", "255 MiB", "/d/data.img"] {
            assert!(warning.contains(part), "{warning}");
        }
        assert!(warn_of(Size::from_bytes(0), path).is_some());
    }

    #[test]
    fn a_disk_that_cannot_be_made_leaves_nothing_and_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.img");
        // More than any file system can say.
        let error = prepare(&path, Size::from_bytes(i64::MAX as u64)).unwrap_err();
        assert!(error.to_string().contains("data.img"), "{error}");
        assert!(!path.exists());
        fs::create_dir(&path).unwrap();
        assert!(prepare(&path, Size::from_gib(1)).is_err());
    }
}
