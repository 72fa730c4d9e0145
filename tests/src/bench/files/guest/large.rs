//! One large file, by one thread or several that have a part of it each.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, anyhow};

/// What programs that copy files read and write at once.
const CHUNK: usize = 128 << 10;
/// What databases do.
const PAGE: usize = 4 << 10;

/// A file and who works on it.
pub(super) struct Large {
    pub(super) path: PathBuf,
    pub(super) mib: u32,
    pub(super) threads: u32,
}

impl Large {
    /// Makes it, until it is on the disk.
    pub(super) fn write(&self) -> Result<()> {
        let file = File::create_new(&self.path).context("cannot make the file")?;
        self.in_parts(|part| {
            let buffer = vec![0x5a; CHUNK];
            part.chunks()
                .try_for_each(|offset| file.write_all_at(&buffer, offset))
                .context("cannot write")
        })?;
        file.sync_all().context("cannot sync")
    }

    /// Reads all of it.
    pub(super) fn read(&self) -> Result<()> {
        let file = File::open(&self.path).context("cannot open the file")?;
        self.in_parts(|part| {
            let mut buffer = vec![0; CHUNK];
            part.chunks()
                .try_for_each(|offset| file.read_exact_at(&mut buffer, offset))
                .context("cannot read")
        })
    }

    /// Reads pages here and there, `operations` in all.
    pub(super) fn read_random(&self, operations: u32) -> Result<()> {
        let file = File::open(&self.path).context("cannot open the file")?;
        self.in_parts(|part| {
            let mut buffer = vec![0; PAGE];
            part.pages(operations / self.threads)
                .try_for_each(|offset| file.read_exact_at(&mut buffer, offset))
                .context("cannot read")
        })
    }

    /// Writes pages here and there, `operations` in all, until they are on the disk.
    pub(super) fn write_random(&self, operations: u32) -> Result<()> {
        let file = File::options()
            .write(true)
            .open(&self.path)
            .context("cannot open the file")?;
        self.in_parts(|part| {
            let buffer = vec![0xa5; PAGE];
            part.pages(operations / self.threads)
                .try_for_each(|offset| file.write_all_at(&buffer, offset))
                .context("cannot write")
        })?;
        file.sync_all().context("cannot sync")
    }

    fn in_parts(&self, work: impl Fn(Part) -> Result<()> + Sync) -> Result<()> {
        let size = (u64::from(self.mib) << 20) / u64::from(self.threads);
        let part = |number: u32| Part {
            start: size * u64::from(number),
            size,
        };
        if self.threads == 1 {
            return work(part(0));
        }
        thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = (0..self.threads)
                .map(|number| scope.spawn(move || work(part(number))))
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
            })
        })
    }
}

/// A part of the file, in bytes.
#[derive(Clone, Copy)]
struct Part {
    start: u64,
    size: u64,
}

impl Part {
    fn chunks(self) -> impl Iterator<Item = u64> {
        (self.start..self.start + self.size).step_by(CHUNK)
    }

    /// Places of pages, the same every time, spread evenly enough (xorshift64).
    fn pages(self, count: u32) -> impl Iterator<Item = u64> {
        let pages = self.size / PAGE as u64;
        let mut state = 0x9e37_79b9_7f4a_7c15 ^ (self.start + 1);
        (0..count).map(move |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            self.start + state % pages * PAGE as u64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_file_and_random_places_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        for threads in [1, 4] {
            let path = dir.path().join(format!("{threads}"));
            let file = Large {
                path,
                mib: 2,
                threads,
            };
            file.write().unwrap();
            let whole = std::fs::read(&file.path).unwrap();
            assert!(whole.len() == 2 << 20 && whole.iter().all(|byte| *byte == 0x5a));
            file.read().unwrap();
            file.read_random(100).unwrap();
            file.write_random(100).unwrap();
            let after = std::fs::read(&file.path).unwrap();
            assert_eq!(after.len(), whole.len());
            let changed = after
                .chunks(PAGE)
                .filter(|page| page.iter().all(|byte| *byte == 0xa5));
            assert!(changed.count() > 50);
        }
    }
}
