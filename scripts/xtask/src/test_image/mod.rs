//! `xtask test-image`: the programs of the end-to-end tests on shares, as the root file system of a container image.
//!
//! What users run on a directory of the host is what has to work there: PostgreSQL, git, tar, sqlite (in python), and
//! what watches files. They come from Debian's archive, unpacked like the guest image's packages, so that neither a registry
//! of images nor root is needed; those that watch come from where their users get them ([`watchers`]).

mod compiled;
mod watchers;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use crate::cache::{Cache, Existing};
use crate::debian::{self, Archive};
use crate::digest::Inputs;
use crate::{Output, command, paths, progress};
use watchers::Watchers;

/// Changed whenever the code here would make a different image from the same lists.
const VERSION: u32 = 2;

/// The archive in the product's directory.
const ARCHIVE: &str = "rootfs.tar";

/// The packages; what they depend on comes with them.
const PACKAGES: &[&str] = &[
    // A system to stand on.
    "base-files",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "libc-bin",
    "tar",
    // setpriv, with which a root entrypoint becomes a user.
    "util-linux",
    // What is tried. python also runs the checks that no program makes, and has sqlite.
    "git",
    "postgresql-17",
    "python3.13",
    // What most programs that watch are written in.
    "nodejs",
];

/// Packages that come as dependencies and are not unpacked: PostgreSQL's compiler of queries, and perl, in which
/// nothing is written that the tests run. Together more than half of everything.
const LEFT_OUT: &[&str] = &[
    "libllvm",
    "libperl",
    "libz3-",
    "openssl",
    "perl",
    "postgresql-common",
];

/// What is left out of the packages: patterns for tar.
const TRIM: &[&str] = &[
    "./usr/bin/git-shell",
    "./usr/bin/scalar",
    "./usr/include",
    "./usr/lib/git-core/git-daemon",
    "./usr/lib/git-core/git-http-*",
    "./usr/lib/git-core/git-imap-send",
    "./usr/lib/git-core/git-remote-*",
    "./usr/lib/git-core/git-sh-i18n--envsubst",
    "./usr/lib/git-core/git-shell",
    "./usr/lib/git-core/scalar",
    "./usr/lib/postgresql/17/lib/bitcode",
    "./usr/lib/postgresql/17/lib/llvmjit*",
    "./usr/lib/python3.13/test",
    "./usr/lib/x86_64-linux-gnu/gconv",
    "./usr/lib/x86_64-linux-gnu/libmvec*",
    "./usr/lib/x86_64-linux-gnu/security",
    "./usr/share/bash-completion",
    "./usr/share/doc",
    "./usr/share/i18n",
    "./usr/share/info",
    "./usr/share/lintian",
    "./usr/share/locale",
    "./usr/share/man",
    "./usr/share/nodejs/@types",
    "./usr/share/nodejs/corepack",
    "./usr/share/postgresql/17/man",
    "./usr/share/zoneinfo/right",
];

/// The users that maintainer scripts would make, and one who is nobody in particular.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                      postgres:x:999:999:PostgreSQL:/var/lib/postgresql:/bin/sh\n\
                      user:x:1000:1000:user:/tmp:/bin/sh\n\
                      nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\npostgres:x:999:\nuser:x:1000:\nnogroup:x:65534:\n";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fetch the packages again, for their updates
    #[arg(long)]
    refresh: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    let existing = if args.refresh {
        Existing::Replace
    } else {
        Existing::Keep
    };
    let archive = make(&Cache::open()?, existing)?;
    output.result(&archive, || json!({ "archive": archive }));
    Ok(())
}

/// The root file system as a tar archive for `docker import`, made if the cache does not have it.
///
/// # Errors
/// When the packages cannot be fetched.
pub(crate) fn ensure(cache: &Cache) -> Result<PathBuf> {
    make(cache, Existing::Keep)
}

fn make(cache: &Cache, existing: Existing) -> Result<PathBuf> {
    let mut inputs = Inputs::new("testimage", VERSION);
    inputs
        .add("suite", debian::SUITE)
        .add("architecture", debian::ARCHITECTURE);
    for (name, list) in [("package", PACKAGES), ("left out", LEFT_OUT), ("trim", TRIM)] {
        for item in list {
            inputs.add(name, item);
        }
    }
    inputs.add("passwd", PASSWD).add("group", GROUP);
    let watchers = Watchers::read(&paths::workspace_root()?)?;
    watchers.add_to(&mut inputs);
    let hash = inputs.finish();
    let product = cache.product("testimage", &hash, existing, |staging| {
        progress::note(&format!(
            "fetching the programs of the end-to-end tests (Debian {})",
            debian::SUITE
        ));
        let archive = Archive::open(cache, &format!("testimage-{hash}"))?;
        let packages: Vec<_> = PACKAGES.iter().map(|&name| name.to_owned()).collect();
        let mut files = archive.download_with_dependencies(&packages)?;
        files.retain(|file| !is_left_out(&debian::file_name(file)));
        let root = cache.scratch(&format!(".root-testimage-{hash}"))?;
        let trim: Vec<_> = TRIM.iter().map(|&pattern| pattern.to_owned()).collect();
        debian::extract_all(&files, root.path(), &trim, "test image: packages unpacked")?;
        finish(root.path())?;
        let scratch = cache.scratch(&format!(".watchers-{hash}"))?;
        watchers.install(root.path(), scratch.path())?;
        compiled::install(&watchers.compile(cache)?, root.path())?;
        pack(root.path(), &staging.join(ARCHIVE))
    })?;
    Ok(product.dir.join(ARCHIVE))
}

/// Whether a package's file is of one of [`LEFT_OUT`].
fn is_left_out(file: &str) -> bool {
    LEFT_OUT.iter().any(|prefix| file.starts_with(prefix))
}

/// What maintainer scripts would have done.
fn finish(root: &Path) -> Result<()> {
    for (name, text) in [("etc/passwd", PASSWD), ("etc/group", GROUP)] {
        fs::write(root.join(name), text).with_context(|| format!("cannot write /{name} of the image"))?;
    }
    let python = root.join("usr/bin/python3");
    if python.symlink_metadata().is_err() {
        symlink("python3.13", &python).context("cannot make the link for python3")?;
    }
    let tmp = root.join("tmp");
    fs::create_dir_all(&tmp).context("cannot make /tmp of the image")?;
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).context("cannot set the mode of /tmp")
}

fn pack(root: &Path, archive: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args([
        "--create",
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--directory",
    ]);
    command::output(tar.arg(root).arg("--file").arg(archive).arg(".")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_left_out_whatever_their_version() {
        let files = [
            "perl-base_5.40.1-6_amd64.deb",
            "libperl5.40_5.40.1-6_amd64.deb",
            "libllvm19_19.1.7-3+b1_amd64.deb",
            "libpq5_17.6-0+deb13u1_amd64.deb",
        ];

        assert_eq!(files.map(is_left_out), [true, true, true, false]);
    }

    #[test]
    fn nothing_that_is_asked_for_is_left_out() {
        for package in PACKAGES {
            assert!(!is_left_out(&format!("{package}_1_amd64.deb")), "{package}");
        }
    }
}
