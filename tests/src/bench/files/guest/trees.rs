//! The trees that the work is done on: made on the host, where that is quick, and known by name in the guest.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::bench::files::plan::FILES_PER_DIRECTORY;

/// The tree of small files.
pub const SMALL: &str = "small";
/// The tree under git.
pub const TRACKED: &str = "tracked";
/// The project whose modules are looked up.
pub const PACKAGES: &str = "packages";

/// How many others a package requires.
const REQUIRED: u32 = 5;

/// The names of the small files, below [`SMALL`].
pub fn small(files: u32) -> Vec<PathBuf> {
    names(files)
}

fn names(files: u32) -> Vec<PathBuf> {
    (0..files)
        .map(|number| {
            let (dir, file) = (number / FILES_PER_DIRECTORY, number % FILES_PER_DIRECTORY);
            PathBuf::from(format!("{}/dir-{dir}/file-{file}", dir / 10))
        })
        .collect()
}

/// The name of a package.
pub fn package(number: u32) -> String {
    format!("package-{number}")
}

/// What a package requires, out of so many.
pub fn requires(package: u32, packages: u32) -> impl Iterator<Item = u32> {
    (1..=REQUIRED).map(move |step| (package + step * step * 7) % packages)
}

/// Makes [`SMALL`] in `dir`: files of one to five KiB.
pub fn make_small(dir: &Path, files: u32) -> Result<()> {
    make(&dir.join(SMALL), files, |number| {
        1024 + number as usize * 977 % 4096
    })
}

/// Makes a tree like a program's source in `dir`: files of up to 16 KiB, most of them smaller.
pub fn make_source(dir: &Path, files: u32) -> Result<()> {
    make(dir, files, |number| 256 + (number as usize * 7919 % 128).pow(2))
}

/// Makes the files of [`TRACKED`] in `dir`, older than any index that git will write. Many have the same content, which
/// spares git the time to store them.
pub fn make_tracked(dir: &Path, files: u32) -> Result<()> {
    let dir = dir.join(TRACKED);
    make(&dir, files, |number| 100 + number as usize % 16)?;
    let times = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(3600));
    for name in names(files) {
        let path = dir.join(name);
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_times(times))
            .with_context(|| format!("cannot set the time of {}", path.display()))?;
    }
    Ok(())
}

fn make(dir: &Path, files: u32, size: impl Fn(u32) -> usize) -> Result<()> {
    for (number, name) in (0..).zip(names(files)) {
        write(&dir.join(name), &vec![b'a' + (number % 16) as u8; size(number)])?;
    }
    Ok(())
}

/// Makes [`PACKAGES`] in `dir`.
pub fn make_packages(dir: &Path, packages: u32) -> Result<()> {
    let modules = dir.join(PACKAGES).join("node_modules");
    for number in 0..packages {
        let package = modules.join(package(number));
        let description = format!(
            "{{\n  \"name\": \"package-{number}\",\n  \"version\": \"1.0.{number}\",\n  \"main\": \"lib/index\"\n}}\n"
        );
        write(&package.join("package.json"), description.as_bytes())?;
        write(&package.join("README.md"), &[b'#'; 700])?;
        write(&package.join("lib/index.js"), &[b';'; 1500])?;
        write(&package.join("lib/other.js"), &[b';'; 2500])?;
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(path);
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(path, content))
        .with_context(|| format!("cannot write {}", path.display()))
}
