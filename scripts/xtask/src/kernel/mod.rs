//! `xtask kernel`: the guest kernel from a pinned source and our own fragments, verified option by option.

mod build;
pub(crate) mod kconfig;
mod patches;
pub(crate) mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::cache::{Cache, Existing};
use crate::digest::Inputs;
use crate::{Output, command, paths, progress};
use kconfig::{DotConfig, Group};
use patches::Patches;
use source::Source;

/// Changed whenever the code here would make a different kernel from the same inputs.
const VERSION: u32 = 2;

/// The fragments, in the order they are applied. Another architecture brings a second file in the place of the last.
const FRAGMENTS: [&str; 2] = ["berth.config", "x86_64.config"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernel source to use: a tree or a tarball [default: $BERTH_KERNEL_SOURCE, else Debian's package]
    #[arg(long, value_name = "PATH")]
    source: Option<PathBuf>,
    /// Print where the kernel is or would be, and build nothing
    #[arg(long)]
    print_path: bool,
    /// Build again even if the cache has this kernel
    #[arg(long, conflicts_with = "print_path")]
    force: bool,
}

/// The kernel configuration of the checkout.
pub(crate) struct Configuration {
    /// All fragments, one after the other.
    text: String,
    groups: Vec<Group>,
    required: Vec<(String, String)>,
    patches: Patches,
}

impl Configuration {
    /// Reads the fragments, the list of what Docker needs, and the patches.
    ///
    /// # Errors
    /// When a file cannot be read or breaks its own rules (a reason for every group and patch).
    pub(crate) fn load(root: &Path) -> Result<Self> {
        let dir = root.join("kernel-config");
        let mut text = String::new();
        let mut groups = Vec::new();
        for name in FRAGMENTS {
            let path = dir.join(name);
            let fragment =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            groups.extend(
                kconfig::parse_fragment(&fragment).with_context(|| format!("in {}", path.display()))?,
            );
            text.push_str(&fragment);
        }
        let path = dir.join("docker.required");
        let list = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let required = kconfig::parse_required(&list).with_context(|| format!("in {}", path.display()))?;
        Ok(Self {
            text,
            groups,
            required,
            patches: Patches::load(&dir.join("patches"))?,
        })
    }

    /// Refuses a `.config` in which an option of the fragments did not survive or Docker lacks something.
    fn verify(&self, config: &DotConfig) -> Result<()> {
        let mut complaints = config.lost(&self.groups);
        complaints.extend(config.missing(&self.required));
        if complaints.is_empty() {
            return Ok(());
        }
        bail!(
            "the kernel's configuration is not what kernel-config/ asks for; an option that does not exist in this \
             kernel or lacks a dependency is dropped silently by the kernel's own tools:\n  {}",
            complaints.join("\n  ")
        )
    }
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    let cache = Cache::open()?;
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Keep
    };
    let source = source::find(args.source.as_deref(), &cache)?;
    let configuration = Configuration::load(&paths::workspace_root()?)?;
    let hash = hash(&configuration, &source, &cache)?;
    if args.print_path {
        let dir = cache.root().join(format!("kernel-{hash}"));
        let built = dir.is_dir();
        output.result(
            &dir.join("vmlinux"),
            || json!({ "kernel": dir.join("vmlinux"), "built": built }),
        );
        return Ok(());
    }
    let kernel = make(&configuration, &source, &hash, &cache, existing)?;
    let vmlinux = kernel.join("vmlinux");
    let facts =
        fs::read_to_string(kernel.join("build.json")).context("cannot read the kernel's build.json")?;
    let facts: serde_json::Value =
        serde_json::from_str(&facts).context("the kernel's build.json is damaged")?;
    output.result(
        &vmlinux,
        || json!({ "kernel": vmlinux, "config": kernel.join("config"), "build": facts }),
    );
    Ok(())
}

/// The directory of the kernel that belongs to this checkout, built if the cache does not have it.
///
/// # Errors
/// When there is no source, an option does not survive, or the build fails.
pub(crate) fn ensure(cache: &Cache) -> Result<PathBuf> {
    let source = source::find(None, cache)?;
    let configuration = Configuration::load(&paths::workspace_root()?)?;
    let hash = hash(&configuration, &source, cache)?;
    make(&configuration, &source, &hash, cache, Existing::Keep)
}

fn make(
    configuration: &Configuration,
    source: &Source,
    hash: &str,
    cache: &Cache,
    existing: Existing,
) -> Result<PathBuf> {
    let product = cache.product("kernel", hash, existing, |staging| {
        progress::note(&format!(
            "building the guest kernel from {} (minutes)",
            source.path().display()
        ));
        build::build(configuration, source, cache, &format!("kernel-{hash}"), staging)
    })?;
    Ok(product.dir)
}

/// Everything the kernel is made from: configuration, source, tools, and the version of this code.
fn hash(configuration: &Configuration, source: &Source, cache: &Cache) -> Result<String> {
    let mut inputs = Inputs::new("kernel", VERSION);
    inputs.add("fragments", &configuration.text);
    // Not the list of required options: it decides whether a kernel is accepted, not what it is. A stricter list must
    // still be checked against a kernel in the cache, so its names count.
    for (name, _) in &configuration.required {
        inputs.add("required", name);
    }
    configuration.patches.add_to(&mut inputs);
    inputs.add("source", source.identity(cache)?);
    for tool in ["gcc", "ld"] {
        let version = command::output(Command::new(tool).arg("--version").env("LC_ALL", "C"))
            .context("the kernel needs a C compiler and linker; install the packages gcc and binutils")?;
        inputs.add(tool, version.lines().next().unwrap_or_default());
    }
    Ok(inputs.finish())
}
