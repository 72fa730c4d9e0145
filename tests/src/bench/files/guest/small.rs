//! Listing, examining and reading many small files.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::FileType;
use rustix::io::Errno;

/// Lists everything below `root`, as `find` does: without a look at the files themselves.
pub(in crate::bench) fn find(root: &Path, expected: usize) -> Result<()> {
    let mut found = 0;
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        let listing = || format!("cannot list {}", dir.display());
        for entry in fs::read_dir(&dir).with_context(listing)? {
            let entry = entry.with_context(listing)?;
            if entry.file_type().with_context(listing)?.is_dir() {
                left.push(entry.path());
            } else {
                found += 1;
            }
        }
    }
    ensure!(
        found == expected,
        "{} has {found} files, not {expected}",
        root.display()
    );
    Ok(())
}

/// Looks at each file by its name, as git, tar and find do: without asking for what FUSE has a request of its own for (the
/// time of birth, which Node.js and Rust ask for).
pub(in crate::bench) fn stat(root: &Path, names: &[PathBuf]) -> Result<()> {
    for name in names {
        let path = root.join(name);
        let found = rustix::fs::lstat(&path).with_context(|| format!("cannot stat {}", path.display()))?;
        ensure!(
            FileType::from_raw_mode(found.st_mode).is_file(),
            "{} is no file",
            path.display()
        );
    }
    Ok(())
}

/// Looks for files that are not there.
pub(in crate::bench) fn missing(root: &Path, count: usize) -> Result<()> {
    for number in 0..count {
        let path = root.join(format!("missing-{number}"));
        match rustix::fs::lstat(&path) {
            Err(Errno::NOENT) => {}
            Ok(_) => bail!("{} is there", path.display()),
            Err(error) => return Err(error).with_context(|| format!("cannot stat {}", path.display())),
        }
    }
    Ok(())
}

/// Reads each file by its name.
pub(in crate::bench) fn cat(root: &Path, names: &[PathBuf]) -> Result<()> {
    let mut buffer = vec![0; 128 << 10];
    for name in names {
        read_whole(&root.join(name), &mut buffer)?;
    }
    Ok(())
}

/// Reads a file that must not be empty as `cat` does: until nothing comes.
pub(in crate::bench) fn read_whole(path: &Path, buffer: &mut [u8]) -> Result<()> {
    let reading = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut total = 0;
    loop {
        match file.read(buffer).with_context(reading)? {
            0 => break,
            read => total += read,
        }
    }
    ensure!(total > 0, "{} is empty", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::files::guest::trees;

    #[test]
    fn a_file_that_is_missing_or_empty_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        trees::make_small(dir.path(), 40).unwrap();
        let root = dir.path().join(trees::SMALL);
        let names = trees::small(40);
        find(&root, 40).unwrap();
        stat(&root, &names).unwrap();
        cat(&root, &names).unwrap();
        missing(&root, 3).unwrap();

        fs::write(root.join(&names[7]), "").unwrap();
        assert!(cat(&root, &names).is_err());
        fs::remove_file(root.join(&names[7])).unwrap();
        assert!(find(&root, 40).is_err());
        assert!(stat(&root, &names).is_err());
        fs::write(root.join("missing-2"), "").unwrap();
        assert!(missing(&root, 3).is_err());
    }
}
