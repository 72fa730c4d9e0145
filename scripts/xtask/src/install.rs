//! `xtask install`: what a machine needs, copied into the user's data directory.
//!
//! Copies, not links: a cleaned cache must not break a machine. Each directory is made whole beside the old one and then
//! takes its place in one step, so that a start at the wrong moment sees the old set or the new, never a mixture.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cache::{Cache, remove_tree};
use crate::{Output, client, digest, image, kernel, paths, progress};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Install the guest and the docker client only, not berth and its status icon
    #[arg(long)]
    no_berth: bool,
}

/// berth's programs, which are named as their packages are.
const PROGRAMS: [&str; 2] = ["berth", "berth-tray"];

/// What `guest/manifest.json` says about a file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    sha256: String,
    /// Bytes.
    size: u64,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    let data = paths::data_dir()?;
    install(&Cache::open()?, &data, !args.no_berth)?;
    output.result(
        &data,
        || json!({ "data": data, "guest": data.join("guest"), "docker": data.join("docker"), "berth": data.join("bin/berth") }),
    );
    Ok(())
}

/// Builds what is missing and puts it in `data`. Does nothing that is already done.
///
/// # Errors
/// When something does not build or the directory cannot be written.
pub(crate) fn install(cache: &Cache, data: &Path, with_berth: bool) -> Result<()> {
    fs::create_dir_all(data).with_context(|| format!("cannot create {}", data.display()))?;
    let kernel = kernel::ensure(cache)?;
    let image = image::ensure(cache)?;
    let client = client::ensure(cache)?;
    let guest = [
        ("vmlinux", kernel.join("vmlinux")),
        ("rootfs.erofs", image.join("rootfs.erofs")),
    ];
    install_set(&data.join("guest"), &guest, 0o644)?;
    let docker = [
        ("docker", client.join("docker")),
        (
            "cli-plugins/docker-compose",
            client.join("cli-plugins/docker-compose"),
        ),
        (
            "cli-plugins/docker-buildx",
            client.join("cli-plugins/docker-buildx"),
        ),
    ];
    install_set(&data.join("docker"), &docker, 0o755)?;
    if with_berth {
        let built = build_berth()?;
        for program in PROGRAMS {
            install_program(&built.join(program), &data.join("bin").join(program))?;
        }
    }
    Ok(())
}

/// Builds berth and its status icon with cargo's release profile and returns the directory they are in.
fn build_berth() -> Result<PathBuf> {
    progress::note("building berth");
    let mut cargo = Command::new(paths::cargo());
    cargo
        .args(["build", "--quiet", "--locked", "--release"])
        .args(PROGRAMS.iter().flat_map(|program| ["--package", program]))
        .current_dir(paths::workspace_root()?)
        .stdin(Stdio::null())
        // Our stdout is for our result.
        .stdout(Stdio::null());
    let status = cargo.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("berth does not build ({status})");
    }
    Ok(paths::cargo_target_dir()?.join("release"))
}

/// A single file is replaced by a rename; a running berth keeps the one it started from.
fn install_program(built: &Path, target: &Path) -> Result<()> {
    if target.is_file() && digest::file_sha256(target)? == digest::file_sha256(built)? {
        return Ok(());
    }
    let dir = target.parent().context("the target has no directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let name = target
        .file_name()
        .context("the target has no name")?
        .to_string_lossy();
    let staged = dir.join(format!(".{name}-{}", std::process::id()));
    copy(built, &staged, 0o755)?;
    fs::rename(&staged, target).with_context(|| format!("cannot replace {}", target.display()))?;
    progress::note(&format!("installed {}", target.display()));
    Ok(())
}

/// Puts files and a manifest of them into `target`, replacing the directory as a whole, unless it already has them.
fn install_set(target: &Path, files: &[(&str, PathBuf)], mode: u32) -> Result<()> {
    let mut manifest = BTreeMap::new();
    for (name, source) in files {
        manifest.insert((*name).to_owned(), describe(source)?);
    }
    if is_installed(target, &manifest) {
        return Ok(());
    }
    let parent = target.parent().context("the target has no parent directory")?;
    let name = target
        .file_name()
        .context("the target has no name")?
        .to_string_lossy();
    let staging = parent.join(format!(".{name}.new-{}", std::process::id()));
    remove_tree(&staging)?;
    let result = fill(&staging, files, &manifest, mode).and_then(|()| put_in_place(&staging, target));
    // On success it is the old set; on failure half of the new one.
    remove_tree(&staging)?;
    result?;
    progress::note(&format!("installed {}", target.display()));
    Ok(())
}

fn fill(
    staging: &Path,
    files: &[(&str, PathBuf)],
    manifest: &BTreeMap<String, Entry>,
    mode: u32,
) -> Result<()> {
    fs::create_dir(staging).with_context(|| format!("cannot create {}", staging.display()))?;
    for (name, source) in files {
        let copied = staging.join(name);
        if let Some(dir) = copied.parent() {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        copy(source, &copied, mode)?;
        if manifest.get(*name) != Some(&describe(&copied)?) {
            bail!(
                "the copy of {} is not like the original; is the disk damaged?",
                source.display()
            );
        }
    }
    let path = staging.join("manifest.json");
    let text = serde_json::to_string_pretty(manifest).context("cannot write the manifest")? + "\n";
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    File::open(&path)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("cannot sync {}", path.display()))
}

/// Exchanges the two directories when there is an old one, else renames.
fn put_in_place(staging: &Path, target: &Path) -> Result<()> {
    let exchanged = match renameat_with(CWD, staging, CWD, target, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::NOENT) => fs::rename(staging, target),
        // A file system that cannot exchange: the old set goes first.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            remove_tree(target)?;
            fs::rename(staging, target)
        }
        other => other.map_err(io::Error::from),
    };
    exchanged.with_context(|| format!("cannot put the new files in the place of {}", target.display()))
}

/// Whether `target` has this manifest and files of these sizes and contents.
fn is_installed(target: &Path, manifest: &BTreeMap<String, Entry>) -> bool {
    let Ok(text) = fs::read_to_string(target.join("manifest.json")) else {
        return false;
    };
    let Ok(installed) = serde_json::from_str::<BTreeMap<String, Entry>>(&text) else {
        return false;
    };
    installed == *manifest
        && manifest
            .iter()
            .all(|(name, entry)| describe(&target.join(name)).is_ok_and(|found| found == *entry))
}

fn describe(path: &Path) -> Result<Entry> {
    let size = fs::metadata(path)
        .with_context(|| format!("cannot stat {}", path.display()))?
        .len();
    Ok(Entry {
        sha256: digest::file_sha256(path)?,
        size,
    })
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", to.display()))?;
    File::open(to)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("cannot sync {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        target: PathBuf,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("data/guest");
            fs::create_dir(dir.path().join("data")).unwrap();
            Self { dir, target }
        }

        fn install(&self, content: &str) -> Result<()> {
            let source = self.dir.path().join("vmlinux");
            fs::write(&source, content).unwrap();
            install_set(&self.target, &[("sub/vmlinux", source)], 0o644)
        }
    }

    #[test]
    fn a_set_is_installed_with_a_manifest_and_replaced_as_a_whole() {
        let fixture = Fixture::new();
        fixture.install("old").unwrap();
        fs::write(fixture.target.join("left-over"), "").unwrap();

        fixture.install("newer").unwrap();

        assert_eq!(
            fs::read_to_string(fixture.target.join("sub/vmlinux")).unwrap(),
            "newer"
        );
        let manifest = fs::read_to_string(fixture.target.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(manifest["sub/vmlinux"]["size"], 5);
        assert_eq!(manifest["sub/vmlinux"]["sha256"].as_str().unwrap().len(), 64);
        assert!(!fixture.target.join("left-over").exists());
        let data: Vec<_> = fs::read_dir(fixture.dir.path().join("data"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(data, ["guest"]);
    }

    #[test]
    fn nothing_is_written_when_the_set_is_there_and_whole() {
        use std::os::unix::fs::MetadataExt;
        let fixture = Fixture::new();
        fixture.install("same").unwrap();
        let inode = fs::metadata(&fixture.target).unwrap().ino();

        fixture.install("same").unwrap();
        assert_eq!(fs::metadata(&fixture.target).unwrap().ino(), inode);

        // As long as the original, but damaged.
        fs::write(fixture.target.join("sub/vmlinux"), "sama").unwrap();
        fixture.install("same").unwrap();
        assert_eq!(
            fs::read_to_string(fixture.target.join("sub/vmlinux")).unwrap(),
            "same"
        );
    }

    #[test]
    fn a_missing_source_leaves_the_old_set_alone() {
        let fixture = Fixture::new();
        fixture.install("old").unwrap();

        let result = install_set(
            &fixture.target,
            &[("vmlinux", fixture.dir.path().join("absent"))],
            0o644,
        );

        assert!(result.is_err());
        assert_eq!(
            fs::read_to_string(fixture.target.join("sub/vmlinux")).unwrap(),
            "old"
        );
    }
}
