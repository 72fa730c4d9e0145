//! git in containers, on repositories that containers make and on those that the host has.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{Shared, TARGET, USER, all_ours, no_image, walk};
use crate::docker::{Container, STATE_LIMIT, same};
use crate::options::on_path;
use crate::processes::wait_until;
use crate::suite::{Context, Verdict};

/// What every call of git has in its environment. With fixed dates, the same steps make the same commits anywhere.
const ENVIRONMENT: [&str; 14] = [
    "-e",
    "HOME=/tmp",
    "-e",
    "GIT_CONFIG_NOSYSTEM=1",
    "-e",
    "GIT_AUTHOR_NAME=Author",
    "-e",
    "GIT_AUTHOR_EMAIL=author@example.org",
    "-e",
    "GIT_COMMITTER_NAME=Committer",
    "-e",
    "GIT_COMMITTER_EMAIL=committer@example.org",
    "-e",
    "GIT_AUTHOR_DATE=1700000000 +0100",
];

pub(super) fn git_works_as_root_and_as_a_plain_user(context: &Context) -> Result<Verdict> {
    let Some(shared) = Shared::new(context, "git")? else {
        return Ok(no_image());
    };
    for (user, name) in [("0:0", "root"), (USER, "user")] {
        let options = [&["-u", user][..], &ENVIRONMENT].concat();
        shared
            .run(&options)
            .args(["sh", "/programs/git.sh", &format!("{TARGET}/{name}")])
            .ok()
            .with_context(|| format!("as {name}"))?;
        looks_right(&shared, &shared.dir.join(name).join("repo"))
            .with_context(|| format!("what {name} left on the host"))?;
    }
    all_ours(&shared.dir)?;
    Ok(Verdict::Passed)
}

/// The host's half: a repository like any other, for the host's git too where there is one.
fn looks_right(shared: &Shared, repo: &Path) -> Result<()> {
    let mode = |name: &str| -> Result<u32> {
        let metadata = fs::metadata(repo.join(name)).with_context(|| format!("no {name}"))?;
        Ok(metadata.permissions().mode() & 0o777)
    };
    same("mode of run.sh after the merge", &mode("run.sh")?, &0o644)?;
    let tree = repo.with_file_name("fetched");
    ensure!(tree.join(".git/HEAD").is_file(), "the clone has no HEAD");
    let target = fs::read_link(repo.join("link")).context("the link")?;
    same("target of the link", &target.as_path(), &Path::new("run.sh"))?;
    let mut packs = 0;
    walk(&repo.join(".git/objects/pack"), &mut |path, _| {
        packs += usize::from(path.extension().is_some_and(|extension| extension == "pack"));
        Ok(())
    })?;
    same("packs after gc", &packs, &1)?;
    let Some(git) = on_path("git") else {
        return Ok(());
    };
    for arguments in [
        &["fsck", "--strict", "--no-progress"][..],
        &["diff", "--exit-code", "HEAD"],
    ] {
        shared
            .machine
            .program(&git)
            .arg("-C")
            .arg(repo)
            .args(arguments)
            .ok()
            .context("the host's git")?;
    }
    Ok(())
}

pub(super) fn a_repository_made_on_the_host_needs_no_safe_directory(context: &Context) -> Result<Verdict> {
    let Some(shared) = Shared::new(context, "host-repository")? else {
        return Ok(no_image());
    };
    // As `git init` leaves it.
    let repo = shared.dir.join(".git");
    for dir in ["objects", "refs/heads"] {
        fs::create_dir_all(repo.join(dir)).with_context(|| format!("cannot make {dir}"))?;
    }
    for (name, text) in [
        ("HEAD", "ref: refs/heads/main\n"),
        (
            "config",
            "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n",
        ),
        ("../file", "host\n"),
    ] {
        fs::write(repo.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    let start = |user: &str| {
        let options = [&["-u", user][..], &ENVIRONMENT].concat();
        shared.container(context.name("git"), &options, &["sleep", "100000"])
    };
    let (root, user, reader) = (start("0:0")?, start(USER)?, start("4242:4242")?);
    let commit = |container: &Container, name: &str| {
        let script = format!(
            "set -e; git status --porcelain >/dev/null; echo {name} >{name}; git add -A; git commit -qm {name}"
        );
        container.exec(&script).ok().with_context(|| name.to_owned())
    };

    // In turns: what one has looked at must not be what the next one sees.
    for round in 0..3 {
        // Root may be shown what a user was for as long as attributes are cached (fileshare's `passthrough`).
        wait_until("git to take the repository for root's", STATE_LIMIT, || {
            Ok(root.exec("git status").run()?.code() == Some(0))
        })?;
        commit(&root, &format!("root-{round}"))?;
        commit(&user, &format!("user-{round}"))?;
        // What the user has made is the user's, and anybody else may only read it.
        let read = reader
            .exec("git status --porcelain && git log --format=%s -n 1")
            .ok()?;
        same("read by another user", &read, &format!("user-{round}"))?;
    }
    let log = user
        .exec("git log --format=%s --reverse && git fsck --strict")
        .ok()?;
    let configured = root.exec("git config --get-all safe.directory").run()?;

    same(
        "commits",
        &log.lines().collect::<Vec<_>>(),
        &vec!["root-0", "user-0", "root-1", "user-1", "root-2", "user-2"],
    )?;
    same("safe.directory", &configured.text().as_str(), &"")?;
    all_ours(&shared.dir)?;
    Ok(Verdict::Passed)
}
