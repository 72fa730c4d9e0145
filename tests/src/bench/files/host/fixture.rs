//! What is there when the guest starts: the same trees in each server's directory and on the guest's disk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::tools::Tools;
use crate::bench::files::guest::trees;
use crate::bench::files::plan::{Contender, Group, Plan};
use crate::program::Program;

/// Room on the guest's disk. The file is sparse.
const DISK_GIB: u64 = 8;

/// The trees, made once.
pub(super) struct Fixture {
    dir: PathBuf,
}

impl Fixture {
    /// Makes the trees that the plan needs in `dir`.
    pub(super) fn make(dir: &Path, plan: &Plan) -> Result<Fixture> {
        let fixture = Fixture { dir: dir.to_owned() };
        let root = fixture.root();
        fs::create_dir(&root).with_context(|| format!("cannot make {}", root.display()))?;
        for group in &plan.groups {
            match group {
                Group::Small => trees::make_small(&root, plan.small_files)?,
                Group::Packages => trees::make_packages(&root, plan.packages)?,
                Group::Git => {
                    trees::make_tracked(&root, plan.tracked_files)?;
                    track(&root.join(trees::TRACKED))?;
                }
                Group::Changes | Group::Unpack | Group::Large => {}
            }
        }
        Ok(fixture)
    }

    fn root(&self) -> PathBuf {
        self.dir.join("fixture")
    }

    /// The archive that is unpacked; empty when the plan needs none.
    pub(super) fn archive(&self, plan: &Plan) -> Result<PathBuf> {
        let archive = self.dir.join("source.tar");
        let source = self.dir.join("source");
        fs::create_dir(&source).with_context(|| format!("cannot make {}", source.display()))?;
        if plan.groups.contains(&Group::Unpack) {
            trees::make_source(&source, plan.source_files)?;
        }
        Program::new("tar")
            .args(["--owner=0", "--group=0", "--numeric-owner", "-C"])
            .arg(&source)
            .arg("-cf")
            .arg(&archive)
            .arg(".")
            .ok()?;
        Ok(archive)
    }

    /// A directory with the trees for a server.
    pub(super) fn copy_for(&self, contender: Contender) -> Result<PathBuf> {
        let share = self.dir.join(contender.name());
        Program::new("cp")
            .arg("-a")
            .args([self.root(), share.clone()])
            .ok()?;
        Ok(share)
    }

    /// The guest's disk with the trees on it.
    pub(super) fn disk(&self, tools: &Tools) -> Result<PathBuf> {
        let disk = self.dir.join("ext4.img");
        File::create(&disk)
            .and_then(|file| file.set_len(DISK_GIB << 30))
            .with_context(|| format!("cannot make {}", disk.display()))?;
        tools
            .program("usr/sbin/mke2fs")
            // Nothing is left to be done in the background while the guest measures.
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
            ])
            .args(["-N", "400000", "-d"])
            .args([self.root(), disk.clone()])
            .ok()?;
        Ok(disk)
    }
}

/// Puts a tree under git. Of a file's state only the time in seconds and the size count, which survive being copied to
/// another file system.
pub(in crate::bench) fn track(tree: &Path) -> Result<()> {
    let git = |arguments: &[&str]| {
        Program::new("git")
            .args(["-c", "user.name=bench", "-c", "user.email=bench@example.invalid"])
            .args([
                "-c",
                "core.fsync=none",
                "-c",
                "gc.auto=0",
                "-c",
                "safe.directory=*",
            ])
            .args(arguments)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .in_dir(tree)
            .ok()
            .map(drop)
    };
    git(&["init", "--quiet"])?;
    for (key, value) in [("core.checkStat", "minimal"), ("core.trustctime", "false")] {
        git(&["config", key, value])?;
    }
    git(&["add", "--all"])?;
    git(&["commit", "--quiet", "--no-verify", "--message=bench"])
}
