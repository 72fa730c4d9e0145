//! The guest's kernel and image: where they are, and whether they are what was installed.
//!
//! Sizes and magic numbers are looked at before every start, which is cheap; the checksums only when a boot has failed, or
//! when `doctor` is asked.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// The kernel's file name.
const KERNEL: &str = "vmlinux";
/// The image's file name.
const IMAGE: &str = "rootfs.erofs";
const MANIFEST: &str = "manifest.json";
/// `EROFS_SUPER_MAGIC_V1`, little-endian, at byte 1024 of the image.
const EROFS_MAGIC: [u8; 4] = [0xe2, 0xe1, 0xf5, 0xe0];
const EROFS_MAGIC_AT: u64 = 1024;
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

/// What to do about a guest that is missing or damaged.
pub const FIX: &str =
    "install the guest again with `cargo xtask install`, or name another directory with $BERTH_GUEST_DIR";

/// Why the guest cannot be started. Exit code 4.
#[derive(Debug, thiserror::Error)]
pub enum GuestFilesError {
    /// A file is not there.
    #[error("{what} is missing: {path}")]
    Missing {
        /// "the guest kernel" or "the guest image".
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not what was installed.
    #[error("{what} {path} is damaged: {how}")]
    Damaged {
        /// "the guest kernel" or "the guest image".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// How that shows.
        how: String,
    },
    /// The manifest cannot be understood.
    #[error("the guest's manifest {path} is damaged")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What the manifest says of a file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Expected {
    sha256: String,
    size: u64,
}

/// The guest's files.
#[derive(Debug, Clone)]
pub struct GuestFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// The image.
    pub image: PathBuf,
    /// Empty when there is no manifest: a kernel and an image somebody put there by hand.
    manifest: BTreeMap<String, Expected>,
}

/// One of the two files, for a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReport {
    /// Its path.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Its checksum in hexadecimal digits.
    pub sha256: String,
    /// Whether a manifest vouches for the checksum.
    pub in_manifest: bool,
}

impl GuestFiles {
    /// Finds the files in `dir` and checks what can be checked without reading them.
    pub fn find(dir: &Path) -> Result<GuestFiles, GuestFilesError> {
        let files = Self::locate(dir)?;
        files.check_kernel()?;
        files.check_image()?;
        Ok(files)
    }

    /// Names the files in `dir` and reads the manifest.
    pub fn locate(dir: &Path) -> Result<GuestFiles, GuestFilesError> {
        let path = dir.join(MANIFEST);
        let manifest = match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|source| GuestFilesError::Manifest { path, source })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(GuestFilesError::Read { path, source }),
        };
        Ok(GuestFiles {
            kernel: dir.join(KERNEL),
            image: dir.join(IMAGE),
            manifest,
        })
    }

    /// Checks the kernel's size and magic number.
    pub fn check_kernel(&self) -> Result<(), GuestFilesError> {
        self.check("the guest kernel", &self.kernel, KERNEL, 0, ELF_MAGIC)
    }

    /// Checks the image's size and magic number.
    pub fn check_image(&self) -> Result<(), GuestFilesError> {
        self.check("the guest image", &self.image, IMAGE, EROFS_MAGIC_AT, EROFS_MAGIC)
    }

    fn check(
        &self,
        what: &'static str,
        path: &Path,
        name: &str,
        magic_at: u64,
        magic: [u8; 4],
    ) -> Result<(), GuestFilesError> {
        let file = open(what, path)?;
        let read_error = |source| GuestFilesError::Read {
            path: path.to_owned(),
            source,
        };
        let damaged = |how: String| {
            Err(GuestFilesError::Damaged {
                what,
                path: path.to_owned(),
                how,
            })
        };
        let size = file.metadata().map_err(read_error)?.len();
        if let Some(expected) = self.manifest.get(name).filter(|expected| expected.size != size) {
            return damaged(format!("it has {size} bytes instead of {}", expected.size));
        }
        let mut found = [0; 4];
        match file.read_exact_at(&mut found, magic_at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                damaged(format!("it is too short ({size} bytes)"))
            }
            Err(error) => Err(read_error(error)),
            Ok(()) if found != magic => damaged("it does not begin as such a file does".into()),
            Ok(()) => Ok(()),
        }
    }

    /// Reads the whole kernel and compares its checksum with the manifest's.
    pub fn verify_kernel(&self) -> Result<FileReport, GuestFilesError> {
        self.check_kernel()?;
        self.verify("the guest kernel", &self.kernel, KERNEL)
    }

    /// Reads the whole image and compares its checksum with the manifest's.
    pub fn verify_image(&self) -> Result<FileReport, GuestFilesError> {
        self.check_image()?;
        self.verify("the guest image", &self.image, IMAGE)
    }

    fn verify(&self, what: &'static str, path: &Path, name: &str) -> Result<FileReport, GuestFilesError> {
        let (size, sha256) = digest(open(what, path)?).map_err(|source| GuestFilesError::Read {
            path: path.to_owned(),
            source,
        })?;
        let expected = self.manifest.get(name);
        if let Some(expected) = expected.filter(|expected| !expected.sha256.eq_ignore_ascii_case(&sha256)) {
            return Err(GuestFilesError::Damaged {
                what,
                path: path.to_owned(),
                how: format!("its SHA-256 is {sha256} instead of {}", expected.sha256),
            });
        }
        Ok(FileReport {
            path: path.to_owned(),
            size,
            sha256,
            in_manifest: expected.is_some(),
        })
    }
}

/// An error and what to do about it.
pub fn explain(error: GuestFilesError) -> String {
    format!("{}; {FIX}", crate::exit::chain(&error.into()))
}

fn open(what: &'static str, path: &Path) -> Result<File, GuestFilesError> {
    File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => GuestFilesError::Missing {
            what,
            path: path.to_owned(),
        },
        _ => GuestFilesError::Read {
            path: path.to_owned(),
            source,
        },
    })
}

fn digest(mut file: File) -> io::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        size += n as u64;
        hash.update(&buffer[..n]);
    }
    let hex = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((size, hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with a kernel and an image that pass, and the manifest that says so.
    fn guest() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(KERNEL), b"\x7fELF and more").unwrap();
        let mut image = vec![0; 2048];
        image[1024..1028].copy_from_slice(&EROFS_MAGIC);
        fs::write(dir.path().join(IMAGE), image).unwrap();
        let entry = |name: &str| {
            let (size, sha256) = digest(File::open(dir.path().join(name)).unwrap()).unwrap();
            serde_json::json!({ "size": size, "sha256": sha256 })
        };
        let manifest = serde_json::json!({ KERNEL: entry(KERNEL), IMAGE: entry(IMAGE) });
        fs::write(dir.path().join(MANIFEST), manifest.to_string()).unwrap();
        dir
    }

    #[test]
    fn a_whole_guest_passes_and_is_vouched_for() {
        let dir = guest();
        let files = GuestFiles::find(dir.path()).unwrap();
        assert!(files.verify_kernel().unwrap().in_manifest);
        let report = files.verify_image().unwrap();
        assert_eq!((report.size, report.sha256.len()), (2048, 64));
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = guest();
        fs::remove_file(dir.path().join(IMAGE)).unwrap();
        let error = GuestFiles::find(dir.path()).unwrap_err().to_string();
        assert!(error.starts_with("the guest image is missing: "), "{error}");
    }

    #[test]
    fn a_cut_file_and_a_wrong_one_are_found_before_the_start() {
        let dir = guest();
        let kernel = dir.path().join(KERNEL);
        fs::write(&kernel, b"\x7fELF and mor").unwrap();
        let error = GuestFiles::find(dir.path()).unwrap_err().to_string();
        assert!(error.contains("it has 12 bytes instead of 13"), "{error}");
        fs::write(&kernel, b"#!/bin/sh\nexi").unwrap();
        let error = GuestFiles::find(dir.path()).unwrap_err().to_string();
        assert!(error.contains("does not begin as such a file does"), "{error}");
        fs::remove_file(dir.path().join(MANIFEST)).unwrap();
        fs::write(&kernel, b"\x7f").unwrap();
        let error = GuestFiles::find(dir.path()).unwrap_err().to_string();
        assert!(error.contains("it is too short (1 bytes)"), "{error}");
    }

    #[test]
    fn a_changed_byte_is_found_by_the_checksum() {
        let dir = guest();
        fs::write(dir.path().join(KERNEL), b"\x7fELF and mote").unwrap();
        let files = GuestFiles::find(dir.path()).unwrap();
        assert!(files.verify_image().is_ok());
        let error = files.verify_kernel().unwrap_err().to_string();
        assert!(
            error.starts_with("the guest kernel ") && error.contains("SHA-256"),
            "{error}"
        );
    }

    #[test]
    fn a_guest_without_a_manifest_is_used_and_not_vouched_for() {
        let dir = guest();
        fs::remove_file(dir.path().join(MANIFEST)).unwrap();
        let files = GuestFiles::find(dir.path()).unwrap();
        assert!(!files.verify_kernel().unwrap().in_manifest);
        fs::write(dir.path().join(MANIFEST), "{").unwrap();
        assert!(matches!(
            GuestFiles::find(dir.path()),
            Err(GuestFilesError::Manifest { .. })
        ));
    }
}
