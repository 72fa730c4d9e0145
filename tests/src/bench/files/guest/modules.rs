//! How Node.js finds modules: many names that are not there, then a package.json and the file it leads to.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::small::read_whole;
use super::trees;

/// Every package requires some others. As at the start of a program: nothing found is remembered from one package to the
/// next, which is a process's own business.
pub(in crate::bench) fn resolve(root: &Path, packages: u32) -> Result<()> {
    let mut buffer = vec![0; 16 << 10];
    for package in 0..packages {
        let here = root
            .join("node_modules")
            .join(trees::package(package))
            .join("lib");
        for required in trees::requires(package, packages) {
            resolve_one(root, &here, &trees::package(required), &mut buffer)
                .with_context(|| format!("cannot find package {required} from package {package}"))?;
        }
    }
    Ok(())
}

fn resolve_one(root: &Path, from: &Path, name: &str, buffer: &mut [u8]) -> Result<()> {
    // From where the requiring file is upwards, up to the project.
    for dir in from.ancestors().take_while(|dir| dir.starts_with(root)) {
        if dir.file_name().is_some_and(|name| name == "node_modules") {
            continue;
        }
        let modules = dir.join("node_modules");
        let package = modules.join(name);
        if !is_there(&modules)? || !is_there(&package)? {
            continue;
        }
        read_whole(&package.join("package.json"), buffer)?;
        // "main" says lib/index: that name as it is, then with one extension after the other.
        for extension in ["", ".ts", ".json", ".js"] {
            let file = package.join(format!("lib/index{extension}"));
            if is_there(&file)? {
                // Where it really is: a look at every part of the path.
                for part in file.ancestors().take_while(|part| part.starts_with(root)) {
                    let metadata = fs::symlink_metadata(part).context("a part of the path is gone")?;
                    ensure!(!metadata.is_symlink(), "{} is a link", part.display());
                }
                return read_whole(&file, buffer);
            }
        }
        break;
    }
    anyhow::bail!("{name} is nowhere")
}

fn is_there(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot stat {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_found_and_a_missing_one_noticed() {
        let dir = tempfile::tempdir().unwrap();
        trees::make_packages(dir.path(), 12).unwrap();
        let root = dir.path().join(trees::PACKAGES);
        resolve(&root, 12).unwrap();

        let index = root
            .join("node_modules")
            .join(trees::package(5))
            .join("lib/index.js");
        fs::remove_file(index).unwrap();
        assert!(resolve(&root, 12).is_err());
    }
}
