//! `xtask client`: the docker command line with its compose and buildx plugins, without installing anything.
//!
//! Debian's packages of the client need nothing but a C library that Debian 12 and Ubuntu 22.04 already have, so the
//! programs are taken out of the packages and used as they are.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use crate::cache::{Cache, Existing};
use crate::debian::{self, Archive};
use crate::digest::Inputs;
use crate::{Output, progress};

/// Changed whenever the code here would make a different client from the same packages.
const VERSION: u32 = 1;

/// Package, file in it, file in the product.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("docker-cli", "usr/bin/docker", "docker"),
    (
        "docker-compose",
        "usr/libexec/docker/cli-plugins/docker-compose",
        "cli-plugins/docker-compose",
    ),
    (
        "docker-buildx",
        "usr/libexec/docker/cli-plugins/docker-buildx",
        "cli-plugins/docker-buildx",
    ),
];

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
    let dir = make(&Cache::open()?, existing)?;
    output.result(
        &dir,
        || json!({ "client": dir, "docker": dir.join("docker"), "plugins": dir.join("cli-plugins") }),
    );
    Ok(())
}

/// The directory with the client, filled if the cache does not have it.
///
/// # Errors
/// When the packages cannot be fetched.
pub(crate) fn ensure(cache: &Cache) -> Result<PathBuf> {
    make(cache, Existing::Keep)
}

fn make(cache: &Cache, existing: Existing) -> Result<PathBuf> {
    let mut inputs = Inputs::new("client", VERSION);
    inputs
        .add("suite", debian::SUITE)
        .add("architecture", debian::ARCHITECTURE);
    for (package, file, name) in PROGRAMS {
        inputs.add("package", package).add("file", file).add("name", name);
    }
    let hash = inputs.finish();
    let product = cache.product("client", &hash, existing, |staging| {
        progress::note("fetching the docker client");
        let archive = Archive::open(cache, &format!("client-{hash}"))?;
        let tree = archive.unpack(&PROGRAMS.map(|(package, ..)| package))?;
        fs::create_dir(staging.join("cli-plugins")).context("cannot create the directory of the plugins")?;
        for (package, file, name) in PROGRAMS {
            let target = staging.join(name);
            fs::copy(tree.path().join(file), &target)
                .with_context(|| format!("Debian's package {package} does not have {file}"))?;
            fs::set_permissions(&target, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("cannot set the mode of {}", target.display()))?;
        }
        Ok(())
    })?;
    Ok(product.dir)
}
