//! `xtask image`: the guest's root file system, one read-only erofs file.
//!
//! Two products: the trimmed tree of Debian packages, which is slow to make and changes seldom, and the image, which is
//! that tree with our layout, files and init on top.

pub(crate) mod guest_init;
mod layout;
mod packages;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::cache::{Cache, Existing, Scratch};
use crate::digest::{self, Inputs};
use crate::{Output, command, paths, progress};
use layout::Layout;

/// Changed whenever the code here would make a different image from the same inputs.
const VERSION: u32 = 1;

/// lz4 in 64 KiB clusters: of erofs's algorithms the fastest to read, which decides how soon dockerd is up, and known to
/// every release of erofs-utils. Level 6 is 1 % larger than the highest and made twenty times sooner.
const COMPRESSION: [&str; 2] = ["-zlz4hc,6", "-C65536"];

/// One time for every file, and one identity for the file system: the same inputs give the same bytes.
const TIME: &str = "-T1735689600";
const UUID: &str = "-U62657274-6800-4000-8000-000000000001";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fetch the Debian packages again, for their updates
    #[arg(long)]
    refresh: bool,
    /// An init to use instead of building guest-init
    #[arg(long, value_name = "PATH")]
    init: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    let cache = Cache::open()?;
    let existing = if args.refresh {
        Existing::Replace
    } else {
        Existing::Keep
    };
    let image = make(&cache, existing, args.init.as_deref())?;
    let file = image.join("rootfs.erofs");
    let size = fs::metadata(&file)
        .with_context(|| format!("cannot stat {}", file.display()))?
        .len();
    output.result(&file, || json!({ "image": file, "size": size }));
    Ok(())
}

/// The directory of the image that belongs to this checkout, built if the cache does not have it.
///
/// # Errors
/// When the packages cannot be fetched, guest-init does not build, or mkfs.erofs fails.
pub(crate) fn ensure(cache: &Cache) -> Result<PathBuf> {
    make(cache, Existing::Keep, None)
}

fn make(cache: &Cache, existing: Existing, init: Option<&Path>) -> Result<PathBuf> {
    let sources = paths::workspace_root()?.join("guest-init/image");
    let init = match init {
        Some(path) => path.to_path_buf(),
        None => guest_init::build()?,
    };
    let tree = packages::tree(cache, &sources, existing)?;
    let layout = Layout::load(&sources)?;
    let tool = mkfs_version()?;

    let mut inputs = Inputs::new("image", VERSION);
    inputs.add("packages", &tree.identity);
    inputs.add("layout", layout.text());
    for (path, content) in layout.files() {
        inputs
            .add("file", path.as_os_str().as_encoded_bytes())
            .add("content", content);
    }
    inputs.add("init", digest::file_sha256(&init)?);
    inputs.add("mkfs", &tool).add("options", COMPRESSION.join(" "));
    let hash = inputs.finish();

    let product = cache.product("image", &hash, Existing::Keep, |staging| {
        progress::note("making the guest image");
        let log = cache.log_file(&format!("image-{hash}"))?;
        let root = cache.scratch(&format!(".root-image-{hash}"))?;
        populate(&tree.root, &root, &layout, &init)?;
        let file = staging.join("rootfs.erofs");
        let mut mkfs = Command::new("mkfs.erofs");
        mkfs.args(["--quiet", "-x-1", "--all-root", TIME, UUID])
            .args(COMPRESSION)
            .arg(&file)
            .arg(root.path());
        command::logged(&mut mkfs, &log, |_| {})?;
        let size = fs::metadata(&file)
            .with_context(|| format!("cannot stat {}", file.display()))?
            .len();
        progress::note(&format!(
            "guest image: {:.1} MiB",
            size as f64 / f64::from(1 << 20)
        ));
        Ok(())
    })?;
    Ok(product.dir)
}

/// The packages' tree as hard links (nothing below writes into a file that is there), then ours over it.
fn populate(packages: &Path, root: &Scratch, layout: &Layout, init: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.args(["--archive", "--link", "--no-target-directory"])
        .arg(packages)
        .arg(root.path());
    command::output(&mut copy)?;
    layout.apply(root.path())?;
    layout::certificates(root.path())?;
    let target = root.path().join("usr/sbin/init");
    layout::install(init, &target, 0o755)
}

/// The first line of `mkfs.erofs -V`. Release 1.5 prints it and then fails, not knowing the option.
fn mkfs_version() -> Result<String> {
    let output = Command::new("mkfs.erofs")
        .arg("-V")
        .output()
        .context("the guest image needs mkfs.erofs; install the package erofs-utils")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().next().unwrap_or_default().trim();
    if !version.starts_with("mkfs.erofs") {
        bail!("mkfs.erofs does not say its version; is it the one of the package erofs-utils?");
    }
    Ok(version.to_owned())
}
