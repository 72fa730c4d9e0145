//! Installing packages as managers for JavaScript do: `install.py` does to the directory what they do, without being
//! one.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Context as _, Result, ensure};

use super::{Shared, TARGET, USER, all_ours, no_image};
use crate::docker::same;
use crate::suite::{Context, Verdict};

/// Packages to install, of some thirty files each.
const PACKAGES: usize = 40;

pub(super) fn packages_are_installed_as_root_and_as_a_plain_user(context: &Context) -> Result<Verdict> {
    let Some(shared) = Shared::new(context, "install")? else {
        return Ok(no_image());
    };
    for user in ["0:0", USER] {
        let name = user.replace(':', "-");
        let project = shared.dir.join(&name);
        fs::create_dir(&project).context("cannot make the project's directory")?;

        let made = shared
            .python(
                &["-u", user],
                "install.py",
                &[&format!("{TARGET}/{name}"), &PACKAGES.to_string()],
            )
            .ok()
            .with_context(|| format!("as {user}"))?;

        same("files", &made, &format!("files {}", PACKAGES * 25))?;
        let entries = all_ours(&project)?;
        ensure!(entries > PACKAGES * 30, "the host has only {entries} entries");
        let modules = project.join("node_modules");
        let tool = modules.join(".bin/tool-5");
        let target = fs::read_link(&tool).context("the link of a tool")?;
        same(
            "a link of .bin",
            &target.display().to_string().as_str(),
            &"../@scope/package-5/cli.sh",
        )?;
        let mode = fs::metadata(&tool).context("a tool")?.permissions().mode();
        same("its mode", &(mode & 0o777), &0o755)?;
        let file = |number: usize| {
            let path = modules.join("package-1").join(format!("file-{number}.js"));
            fs::metadata(&path).with_context(|| format!("cannot look at {}", path.display()))
        };
        ensure!(
            file(0)?.nlink() > 1,
            "a file of the store is not a hard link on the host"
        );
        same(
            "time of a file",
            &(file(4)?.mtime(), file(4)?.mtime_nsec()),
            &(499_162_500, 0),
        )?;
        let lock = fs::read_to_string(project.join("package-lock.json")).context("the lock file")?;
        same(
            "the lock file",
            &lock,
            &format!("{{\"installed\": {PACKAGES}, \"version\": \"2.0.0\"}}"),
        )?;
    }
    Ok(Verdict::Passed)
}
