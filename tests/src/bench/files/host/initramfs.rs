//! The guest's root: the measuring program as its init, the programs of the host that it runs, and what it works with.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::bench::files::guest;
use crate::bench::files::plan::Plan;
use crate::carried::libraries_of;
use crate::options::on_path;
use crate::program::Program;

/// Makes the initramfs in `dir`.
pub(super) fn make(dir: &Path, init: &Path, archive: &Path, with_git: bool, plan: &Plan) -> Result<PathBuf> {
    let root = Root {
        path: dir.join("initramfs"),
    };
    for name in ["bin", "dev", "mnt", "proc", "sys", "tmp"] {
        let path = root.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    root.copy(init, "init")?;
    root.copy(archive, guest::ARCHIVE)?;
    let plan = serde_json::to_vec(plan).context("cannot write the plan as JSON")?;
    fs::write(root.at(guest::PLAN), plan).context("cannot write the plan")?;
    root.program("tar")?;
    if with_git {
        root.program("git")?;
    }
    root.pack(&dir.join("initramfs.cpio"))
}

struct Root {
    path: PathBuf,
}

impl Root {
    /// Where a path of the guest is here.
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn copy(&self, from: &Path, to: impl AsRef<Path>) -> Result<()> {
        let to = self.at(to);
        let dir = to.parent().unwrap_or(&to);
        fs::create_dir_all(dir)
            .and_then(|()| fs::copy(from, &to))
            .map(drop)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    }

    /// Brings a program of the host along, with the libraries it needs where it looks for them.
    fn program(&self, name: &str) -> Result<()> {
        let program = on_path(name).with_context(|| format!("there is no {name}"))?;
        self.copy(&program, Path::new("bin").join(name))?;
        for library in libraries_of(&program)? {
            self.copy(&library, &library)?;
        }
        Ok(())
    }

    fn pack(&self, archive: &Path) -> Result<PathBuf> {
        let mut names = Vec::new();
        self.list(&self.path, &mut names)?;
        Program::new("busybox")
            .args(["cpio", "-o", "-H", "newc"])
            .in_dir(&self.path)
            .input(names)
            .output_file(archive)
            .ok()
            .context("is the package busybox-static installed?")?;
        Ok(archive.to_owned())
    }

    /// Everything below `dir`, a line each, directories before what is in them.
    fn list(&self, dir: &Path, names: &mut Vec<u8>) -> Result<()> {
        let listing = || format!("cannot list {}", dir.display());
        for entry in fs::read_dir(dir).with_context(listing)? {
            let entry = entry.with_context(listing)?;
            let path = entry.path();
            let name = path.strip_prefix(&self.path).context("a name below the root")?;
            ensure!(
                !name.as_os_str().as_bytes().contains(&b'\n'),
                "{} has a line break",
                name.display()
            );
            names.extend_from_slice(name.as_os_str().as_bytes());
            names.push(b'\n');
            if entry.file_type().with_context(listing)?.is_dir() {
                self.list(&path, names)?;
            }
        }
        Ok(())
    }
}
