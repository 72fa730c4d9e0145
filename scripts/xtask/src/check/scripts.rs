//! Shell scripts that the shell itself can at least read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Directories with scripts a person or CI starts, and those inside a guest.
const DIRECTORIES: [&str; 3] = ["scripts", ".ci", "scripts/xtask/src/lab"];

/// One complaint for each script that `sh -n` refuses or that cannot be started.
///
/// # Errors
/// When a directory cannot be read, or there is no script at all, which would mean this rule looks in the wrong place.
pub(super) fn malformed(root: &Path) -> Result<Vec<String>> {
    let mut found = 0;
    let mut complaints = Vec::new();
    for dir in DIRECTORIES
        .map(|dir| root.join(dir))
        .iter()
        .filter(|dir| dir.is_dir())
    {
        for path in files(dir)? {
            let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if !content.starts_with(b"#!") {
                continue;
            }
            found += 1;
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            if !content.starts_with(b"#!/bin/sh") && !content.starts_with(b"#!/bin/busybox sh") {
                complaints.push(format!("{name}: scripts here are for /bin/sh"));
                continue;
            }
            let output = Command::new("sh")
                .arg("-n")
                .arg(&path)
                .output()
                .context("cannot run sh")?;
            if !output.status.success() {
                complaints.push(format!(
                    "{name}: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                ));
            }
        }
    }
    if found == 0 {
        bail!("there are no scripts under {}", root.display());
    }
    Ok(complaints)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .with_context(|| format!("cannot list {}", dir.display()))?;
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_the_shell_cannot_read_is_named() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("scripts");
        fs::create_dir(&dir).unwrap();
        assert!(malformed(root.path()).is_err());
        fs::write(dir.join("good"), "#!/bin/sh\nexit 0\n").unwrap();
        fs::write(dir.join("notes"), "if then (\n").unwrap();
        assert_eq!(malformed(root.path()).unwrap(), Vec::<String>::new());

        fs::write(dir.join("bad"), "#!/bin/sh\nif true; then\n").unwrap();
        fs::write(dir.join("bash"), "#!/bin/bash\n").unwrap();

        let complaints = malformed(root.path()).unwrap();
        assert_eq!(complaints.len(), 2);
        assert!(complaints[0].starts_with("scripts/bad: "), "{complaints:?}");
        assert!(complaints[1].starts_with("scripts/bash: "), "{complaints:?}");
    }
}
