//! Finding the kernel's source: a tree or tarball the user names, the distribution's package, or Debian's archive.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Existing};
use crate::debian::Archive;
use crate::digest::{self, Inputs};
use crate::{paths, progress};

/// The kernel's source.
pub(crate) enum Source {
    /// A clean, unpacked tree; it is built beside, not in it.
    Tree(PathBuf),
    /// A tarball with one directory at its top.
    Tarball(PathBuf),
}

/// `kernel-config/source.pin`: where the source comes from when nobody names another.
#[derive(Debug, PartialEq, Eq)]
struct Pin {
    package: String,
    tarball: PathBuf,
}

impl Pin {
    fn load() -> Result<Self> {
        let path = paths::workspace_root()?.join("kernel-config/source.pin");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut values = BTreeMap::new();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let (key, value) = line
                .split_once('=')
                .with_context(|| format!("{line:?} is not KEY = VALUE"))?;
            values.insert(key.trim(), value.trim());
        }
        let get = |key| {
            values
                .get(key)
                .with_context(|| format!("there is no line \"{key} = …\""))
        };
        get("version")?;
        Ok(Self {
            package: (*get("package")?).to_owned(),
            tarball: PathBuf::from(get("tarball")?),
        })
    }
}

/// The source to build: `named`, else `$BERTH_KERNEL_SOURCE`, else the distribution's package, else the same package
/// from Debian's archive, downloaded into the cache (a distribution other than Debian does not carry it).
///
/// # Errors
/// When what was named does not exist or is not a kernel, or the package cannot be had.
pub(crate) fn find(named: Option<&Path>, cache: &Cache) -> Result<Source> {
    let from_environment = env::var_os("BERTH_KERNEL_SOURCE")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    if let Some(path) = named.map(Path::to_path_buf).or(from_environment) {
        return open(&path);
    }
    let pin = Pin::load()?;
    if pin.tarball.is_file() {
        return Ok(Source::Tarball(pin.tarball));
    }
    let mut inputs = Inputs::new("source", 1);
    inputs.add("package", &pin.package);
    let hash = inputs.finish();
    let product = cache
        .product("source", &hash, Existing::Keep, |staging| {
            progress::note(&format!(
                "{} is not installed; fetching it from Debian's archive",
                pin.package
            ));
            let archive = Archive::open(cache, &format!("source-{hash}"))?;
            let tree = archive.unpack(&[&pin.package])?;
            let tarball = tree
                .path()
                .join(pin.tarball.strip_prefix("/").unwrap_or(&pin.tarball));
            fs::copy(&tarball, staging.join("linux.tar.xz"))
                .with_context(|| format!("Debian's package does not have {}", pin.tarball.display()))?;
            Ok(())
        })
        .with_context(|| {
            format!(
                "no kernel source: install the package {}, or name a Linux tree or tarball with --source or \
                 BERTH_KERNEL_SOURCE",
                pin.package
            )
        })?;
    Ok(Source::Tarball(product.dir.join("linux.tar.xz")))
}

fn open(path: &Path) -> Result<Source> {
    let path =
        fs::canonicalize(path).with_context(|| format!("cannot use the kernel source {}", path.display()))?;
    if path.is_file() {
        return Ok(Source::Tarball(path));
    }
    if !path.join("Kconfig").is_file() || !path.join("Makefile").is_file() {
        bail!(
            "{} is not a kernel source tree: it has no Kconfig and Makefile",
            path.display()
        );
    }
    if path.join(".config").exists() || path.join("include/config").exists() {
        bail!(
            "the kernel tree {} has been built in place; run `make mrproper` in it",
            path.display()
        );
    }
    Ok(Source::Tree(path))
}

impl Source {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Tree(path) | Self::Tarball(path) => path,
        }
    }

    /// What stands for the source in the cache key: a tarball's SHA-256; for a tree, its path and the size and time of
    /// every file.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub(crate) fn identity(&self, cache: &Cache) -> Result<String> {
        match self {
            Self::Tarball(path) => remembered_sha256(path, cache),
            Self::Tree(path) => {
                let mut inputs = Inputs::new("tree", 1);
                inputs.add("path", path.as_os_str().as_encoded_bytes());
                add_tree(&mut inputs, path)?;
                Ok(inputs.finish())
            }
        }
    }
}

fn add_tree(inputs: &mut Inputs, dir: &Path) -> Result<()> {
    let mut entries = fs::read_dir(dir)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot list {}", dir.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name() == ".git" {
            continue;
        }
        let stat = entry
            .metadata()
            .with_context(|| format!("cannot stat {}", entry.path().display()))?;
        inputs.add("name", entry.file_name().as_encoded_bytes());
        if stat.is_dir() {
            add_tree(inputs, &entry.path())?;
        } else {
            inputs.add(
                "stat",
                format!("{} {} {}", stat.len(), stat.mtime(), stat.mtime_nsec()),
            );
        }
    }
    Ok(())
}

/// The SHA-256 of a large file that seldom changes, kept in the cache beside the size and time it was taken at.
fn remembered_sha256(path: &Path, cache: &Cache) -> Result<String> {
    let stat = fs::metadata(path).with_context(|| format!("cannot stat {}", path.display()))?;
    let key = format!(
        "{} {} {}.{:09}",
        path.display(),
        stat.len(),
        stat.mtime(),
        stat.mtime_nsec()
    );
    let mut inputs = Inputs::new("digest", 1);
    inputs.add("file", &key);
    let product = cache.product("digest", &inputs.finish(), Existing::Keep, |staging| {
        let digest = digest::file_sha256(path)?;
        fs::write(staging.join("sha256"), digest).context("cannot write the digest")
    })?;
    fs::read_to_string(product.dir.join("sha256")).context("cannot read a digest in the cache")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pin_of_this_checkout_is_readable() {
        let pin = Pin::load().unwrap();

        assert_eq!(pin.package, "linux-source-6.12");
        assert!(pin.tarball.is_absolute());
    }

    #[test]
    fn a_pin_without_a_package_is_refused() {
        assert!(
            Pin::parse("version = 6.12\ntarball = /x\n")
                .unwrap_err()
                .to_string()
                .contains("package")
        );
        assert!(Pin::parse("nonsense").is_err());
    }

    #[test]
    fn a_tarball_is_known_by_its_content_and_noticed_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let tarball = dir.path().join("linux.tar");
        let identity = |content: &str| {
            fs::write(&tarball, content).unwrap();
            open(&tarball).unwrap().identity(&cache).unwrap()
        };

        let first = identity("one");
        let second = identity("four");

        assert_ne!(first, second);
        assert_eq!(first, identity("one"));
    }

    #[test]
    fn a_tree_is_refused_unless_it_is_a_clean_kernel() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(dir.path()).is_err());

        for name in ["Kconfig", "Makefile"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert!(matches!(open(dir.path()), Ok(Source::Tree(_))));

        fs::write(dir.path().join(".config"), "").unwrap();
        assert!(open(dir.path()).err().unwrap().to_string().contains("mrproper"));
    }
}
