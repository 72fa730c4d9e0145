//! A small file that is read again when it has changed, which is looked at each time it is needed.

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// A file that was written this recently may be written once more without looking different: file systems keep time in
/// steps of some milliseconds, some of a second or two.
const UNSETTLED: Duration = Duration::from_secs(3);

/// A file and what it was understood to say.
#[derive(Debug)]
pub(super) struct Fresh<T> {
    path: PathBuf,
    limit: u64,
    parse: fn(&str) -> T,
    kept: Mutex<Option<Kept<T>>>,
}

#[derive(Debug)]
struct Kept<T> {
    /// What the file looked like; none when there was none.
    stamp: Option<Stamp>,
    settled: bool,
    value: Arc<T>,
}

/// By what a file that has changed is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl<T> Fresh<T> {
    /// The file at `path`, of which `limit` bytes are read at most.
    pub(super) fn new(path: PathBuf, limit: u64, parse: fn(&str) -> T) -> Fresh<T> {
        Fresh {
            path,
            limit,
            parse,
            kept: Mutex::new(None),
        }
    }

    /// What it says now; what an empty one would say when there is none or it cannot be read.
    pub(super) fn get(&self) -> Arc<T> {
        // Anything but a file could keep us waiting.
        let metadata = fs::metadata(&self.path).ok().filter(Metadata::is_file);
        let stamp = metadata.as_ref().map(Stamp::of);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.as_ref()
            && kept.stamp == stamp
            && kept.settled
        {
            return Arc::clone(&kept.value);
        }
        let text = metadata.as_ref().map(|_| self.read()).unwrap_or_default();
        let value = Arc::new((self.parse)(&text));
        *kept = Some(Kept {
            stamp,
            settled: metadata.is_none_or(|metadata| is_settled(&metadata)),
            value: Arc::clone(&value),
        });
        value
    }

    fn read(&self) -> String {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(self.limit).read_to_end(&mut bytes));
        if let Err(error) = read {
            tracing::warn!(%error, path = %self.path.display(), "cannot read");
            return String::new();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn is_settled(metadata: &Metadata) -> bool {
    let seconds = u64::try_from(metadata.mtime().max(metadata.ctime())).unwrap_or(0);
    let written = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    // A time to come is no reason to look again for ever; a change then shows by the other marks.
    SystemTime::now()
        .duration_since(written)
        .map_or(true, |age| age > UNSETTLED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_seen_however_soon_it_comes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let fresh = Fresh::new(path.clone(), 4, |text| text.to_owned());
        assert_eq!(*fresh.get(), "");
        for text in ["one", "two", "six"] {
            fs::write(&path, text).unwrap();
            assert_eq!(*fresh.get(), text);
        }
        let new = dir.path().join("new");
        fs::write(&new, "ten more").unwrap();
        fs::rename(&new, &path).unwrap();
        assert_eq!(*fresh.get(), "ten ", "as much as the limit");
        fs::remove_file(&path).unwrap();
        assert_eq!(*fresh.get(), "");
        fs::create_dir(&path).unwrap();
        assert_eq!(*fresh.get(), "");
    }

    #[test]
    fn what_has_not_changed_for_a_while_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "text").unwrap();
        let fresh = Fresh::new(path, 100, |text| text.to_owned());
        let first = fresh.get();
        fresh.kept.lock().unwrap().as_mut().unwrap().settled = true;
        assert!(Arc::ptr_eq(&first, &fresh.get()));
    }
}
