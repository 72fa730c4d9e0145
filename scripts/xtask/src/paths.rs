//! Where the checkout, the cache and the data directory are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The root of the checkout this program was built from.
///
/// # Errors
/// When the checkout has been moved or deleted since the program was built.
pub(crate) fn workspace_root() -> Result<PathBuf> {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = built_in
        .ancestors()
        .nth(2)
        .context("the build tool was built outside the checkout")?;
    if !root.join("Cargo.toml").is_file() {
        bail!(
            "the checkout {} is gone; build xtask again from the new place with `cargo run -p xtask`",
            root.display()
        );
    }
    Ok(root.to_path_buf())
}

/// Where cargo puts what it builds: `$CARGO_TARGET_DIR`, else `target` in the checkout.
pub(crate) fn cargo_target_dir() -> Result<PathBuf> {
    let root = workspace_root()?;
    Ok(env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir)))
}

/// The cargo that runs this program, or the one on the path.
pub(crate) fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// `$BERTH_CACHE_DIR`, else `${XDG_CACHE_HOME:-~/.cache}/berth`.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = absolute("BERTH_CACHE_DIR")? {
        return Ok(dir);
    }
    Ok(xdg("XDG_CACHE_HOME", ".cache")?.join("berth"))
}

/// `${XDG_DATA_HOME:-~/.local/share}/berth`.
pub(crate) fn data_dir() -> Result<PathBuf> {
    Ok(xdg("XDG_DATA_HOME", ".local/share")?.join("berth"))
}

/// An XDG base directory. The specification says to ignore a relative value.
fn xdg(variable: &str, under_home: &str) -> Result<PathBuf> {
    if let Some(dir) = env::var_os(variable).map(PathBuf::from)
        && dir.is_absolute()
    {
        return Ok(dir);
    }
    let home = env::var_os("HOME")
        .filter(|home| !home.is_empty())
        .with_context(|| format!("neither {variable} nor HOME is set; set one of them"))?;
    Ok(PathBuf::from(home).join(under_home))
}

fn absolute(variable: &str) -> Result<Option<PathBuf>> {
    match env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
    {
        Some(dir) if dir.is_absolute() => Ok(Some(dir)),
        Some(dir) => bail!("{variable} is {}, which is not an absolute path", dir.display()),
        None => Ok(None),
    }
}
