//! Making, renaming and removing files.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What is in a file.
const CONTENT: &[u8] = &[b'x'; 100];

/// Makes files with a few bytes in them.
pub(in crate::bench) fn create(dir: &Path, count: u32) -> Result<()> {
    for number in 0..count {
        let path = dir.join(format!("new-{number}"));
        File::create_new(&path)
            .and_then(|mut file| file.write_all(CONTENT))
            .with_context(|| format!("cannot make {}", path.display()))?;
    }
    Ok(())
}

/// Renames what [`create`] made.
pub(in crate::bench) fn rename(dir: &Path, count: u32) -> Result<()> {
    for number in 0..count {
        let path = dir.join(format!("new-{number}"));
        fs::rename(&path, dir.join(format!("renamed-{number}")))
            .with_context(|| format!("cannot rename {}", path.display()))?;
    }
    Ok(())
}

/// Removes what [`rename`] left.
pub(in crate::bench) fn remove(dir: &Path, count: u32) -> Result<()> {
    for number in 0..count {
        let path = dir.join(format!("renamed-{number}"));
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Unpacks an archive with the real tar.
pub(super) fn unpack(archive: &Path, dir: &Path) -> Result<()> {
    let status = Command::new("tar")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(dir)
        .status()
        .context("cannot run tar")?;
    ensure!(status.success(), "tar failed ({status})");
    Ok(())
}

/// `rm -r`.
pub(super) fn remove_tree(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), 5).unwrap();
        assert_eq!(fs::read(dir.path().join("new-4")).unwrap(), CONTENT);
        assert!(create(dir.path(), 1).is_err(), "it is there");
        rename(dir.path(), 5).unwrap();
        assert!(rename(dir.path(), 1).is_err(), "it is gone");
        remove(dir.path(), 5).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
