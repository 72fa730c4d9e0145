//! What people run on directories of the host, run on one: PostgreSQL, git, an installation of packages, archives,
//! sqlite, the rules of POSIX that all of them stand on, and programs that watch files.
//!
//! The programs are Debian's, in an image that `xtask test-image` makes. Each case has a half in containers and a
//! half on the host, which looks at what the containers left.

mod git;
mod install;
mod posix;
mod postgresql;
mod sqlite;
mod together;
mod trees;
mod watching;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::docker::{Container, same};
use crate::machine::Machine;
use crate::program::Program;
use crate::programs_image::{self, IMAGE};
use crate::suite::{Context, Verdict};
use git::{a_repository_made_on_the_host_needs_no_safe_directory, git_works_as_root_and_as_a_plain_user};
use install::packages_are_installed_as_root_and_as_a_plain_user;
use posix::the_rules_of_posix_hold_for_root_and_for_a_plain_user;
use postgresql::postgresql_keeps_its_data_when_stopped_and_when_killed;
use sqlite::two_containers_write_one_sqlite_database;
use together::{
    containers_and_the_host_lock_each_other_out, containers_see_each_others_files_maps_and_sockets,
};
use trees::trees_are_copied_and_unpacked_unchanged;
use watching::{
    chokidar_is_told_of_edits_on_the_host, nodemon_restarts_on_edits_on_the_host,
    vite_replaces_modules_edited_on_the_host, watchdog_is_told_of_edits_on_the_host,
    watchexec_restarts_a_command_on_edits_on_the_host, watchfiles_is_told_of_edits_on_the_host,
    webpack_bundles_anew_on_edits_on_the_host,
};

cases!("share_programs":
    the_rules_of_posix_hold_for_root_and_for_a_plain_user,
    containers_see_each_others_files_maps_and_sockets,
    containers_and_the_host_lock_each_other_out,
    trees_are_copied_and_unpacked_unchanged,
    packages_are_installed_as_root_and_as_a_plain_user,
    git_works_as_root_and_as_a_plain_user,
    a_repository_made_on_the_host_needs_no_safe_directory,
    two_containers_write_one_sqlite_database,
    postgresql_keeps_its_data_when_stopped_and_when_killed,
    watchdog_is_told_of_edits_on_the_host,
    watchfiles_is_told_of_edits_on_the_host,
    chokidar_is_told_of_edits_on_the_host,
    nodemon_restarts_on_edits_on_the_host,
    vite_replaces_modules_edited_on_the_host,
    webpack_bundles_anew_on_edits_on_the_host,
    watchexec_restarts_a_command_on_edits_on_the_host,
);

/// Where containers have the directory.
const TARGET: &str = "/x";
/// The files that containers have under `/programs`.
const PROGRAMS: [(&str, &str); 18] = [
    ("agent.py", include_str!("programs/agent.py")),
    ("entrypoint.sh", include_str!("programs/entrypoint.sh")),
    ("git.sh", include_str!("programs/git.sh")),
    ("install.py", include_str!("programs/install.py")),
    ("posix.py", include_str!("programs/posix.py")),
    ("posix_files.py", include_str!("programs/posix_files.py")),
    ("posix_harness.py", include_str!("programs/posix_harness.py")),
    ("posix_names.py", include_str!("programs/posix_names.py")),
    ("posix_owners.py", include_str!("programs/posix_owners.py")),
    ("serve.sh", include_str!("programs/serve.sh")),
    ("sqlite.py", include_str!("programs/sqlite.py")),
    ("tree.py", include_str!("programs/tree.py")),
    ("trees.sh", include_str!("programs/trees.sh")),
    ("watch_chokidar.mjs", include_str!("programs/watch_chokidar.mjs")),
    ("watch_vite.mjs", include_str!("programs/watch_vite.mjs")),
    ("watch_watchdog.py", include_str!("programs/watch_watchdog.py")),
    (
        "watch_watchfiles.py",
        include_str!("programs/watch_watchfiles.py"),
    ),
    ("watch_webpack.mjs", include_str!("programs/watch_webpack.mjs")),
];
/// How long one of them may take: hundreds of processes, or thousands of files, on an emulated processor.
const LIMIT: Duration = Duration::from_secs(900);
/// The user of containers that is nobody in particular.
const USER: &str = "1000:1000";

/// A directory of the host, and containers that have it.
struct Shared {
    machine: Arc<Machine>,
    dir: PathBuf,
    /// `-v` and `-w` of the directory, and `-v` of the programs.
    mounts: Vec<String>,
}

impl Shared {
    /// A new directory in the home of a machine that has the image; none when there is no image.
    fn new(context: &Context, stem: &str) -> Result<Option<Shared>> {
        let Some(archive) = &context.setup().programs else {
            return Ok(None);
        };
        let machine = context.machine()?;
        programs_image::import(&machine, archive)?;
        let programs = machine.home().join("programs");
        fs::create_dir_all(&programs).with_context(|| format!("cannot make {}", programs.display()))?;
        for (name, text) in PROGRAMS {
            fs::write(programs.join(name), text).with_context(|| format!("cannot write {name}"))?;
        }
        let dir = machine.home().join(context.name(stem));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mounts = vec![
            "-v".to_owned(),
            format!("{}:{TARGET}", dir.display()),
            "-w".to_owned(),
            TARGET.to_owned(),
            "-v".to_owned(),
            format!("{}:/programs:ro", programs.display()),
        ];
        Ok(Some(Shared { machine, dir, mounts }))
    }

    /// `docker run --rm OPTIONS` with the directory as the working directory, still without a command.
    fn run(&self, options: &[&str]) -> Program {
        self.machine
            .docker(["run", "--rm"])
            .args(&self.mounts)
            .args(options)
            .arg(IMAGE)
            .limit(LIMIT)
    }

    /// One of [`PROGRAMS`] in python, with its arguments.
    fn python(&self, options: &[&str], program: &str, arguments: &[&str]) -> Program {
        self.run(options)
            .args(["python3", &format!("/programs/{program}")])
            .args(arguments)
    }

    /// A container that goes on running, with the directory.
    fn container(&self, name: String, options: &[&str], command: &[&str]) -> Result<Container> {
        let mut all: Vec<_> = self.mounts.iter().map(String::as_str).collect();
        all.extend(options);
        Container::of(IMAGE, &self.machine, name, &all, command)
    }
}

/// The verdict where there is no image.
fn no_image() -> Verdict {
    Verdict::NotHere(
        "there is no image with the programs; make one with `cargo run -p xtask -- test-image` and name it with --programs"
            .to_owned(),
    )
}

/// Checks that everything in a directory belongs to who runs this test, and returns how many entries there are.
fn all_ours(dir: &Path) -> Result<usize> {
    let ours = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let mut count = 0;
    walk(dir, &mut |path, metadata| {
        count += 1;
        same(
            &format!("owner of {} on the host", path.display()),
            &(metadata.uid(), metadata.gid()),
            &ours,
        )
    })?;
    Ok(count)
}

/// Calls `visit` with everything below a directory, links not followed.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry
            .with_context(|| format!("cannot list {}", dir.display()))?
            .path();
        let metadata =
            fs::symlink_metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?;
        visit(&path, &metadata)?;
        if metadata.is_dir() {
            walk(&path, visit)?;
        }
    }
    Ok(())
}
