//! watchdog (Python), watchfiles (Rust, in Python) and chokidar (JavaScript) print what they are told of edits on the host.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Watching, directory, save, write};
use crate::cases::share_programs::no_image;
use crate::cases::shares::told_of_changes;
use crate::suite::{Context, Verdict};

/// What is there before.
const FILES: [(&str, &str); 4] = [
    ("src/written", "1\n"),
    ("src/saved", "1\n"),
    ("src/old", "1\n"),
    ("src/sub/in", "1\n"),
];

/// What it is, and what does it to the directory.
type Edit = (&'static str, fn(&Path) -> Result<()>);

/// What is done on the host, each to names of its own, so that nothing is told of two.
const EDITS: [Edit; 8] = [
    ("writing in place", |dir| write(&dir.join("src/written"), "2\n")),
    ("saving by a file that takes the place", |dir| {
        save(&dir.join("src/saved"), "2\n")
    }),
    ("a new file", |dir| write(&dir.join("src/made"), "1\n")),
    ("a new directory with a file", |dir| {
        fs::create_dir(dir.join("src/dir")).context("cannot make a directory")?;
        write(&dir.join("src/dir/in"), "1\n")
    }),
    ("writing in that", |dir| write(&dir.join("src/dir/in"), "2\n")),
    ("a rename", |dir| {
        fs::rename(dir.join("src/made"), dir.join("src/moved")).context("cannot rename")
    }),
    ("a removal", |dir| {
        fs::remove_file(dir.join("src/old")).context("cannot remove")
    }),
    ("removal of a directory", |dir| {
        fs::remove_dir_all(dir.join("src/sub")).context("cannot remove a directory")
    }),
];

/// The one of them after which there is more to watch.
const NEW_DIRECTORY: usize = 3;

/// Lets a program watch, and expects the lines of `told` for each of [`EDITS`].
fn is_told(context: &Context, stem: &str, command: &[&str], told: [&[&str]; EDITS.len()]) -> Result<Verdict> {
    let Some(shared) = directory(context, stem, &FILES)? else {
        return Ok(no_image());
    };
    if let Some(verdict) = told_of_changes(&shared.machine)? {
        return Ok(verdict);
    }
    let mut watching = Watching::start(&shared, context.name(stem), command, "ready")?;
    let watches = watching.watches()?;
    for (at, ((what, edit), told)) in EDITS.iter().zip(told).enumerate() {
        edit(&shared.dir)?;
        watching.says(told).context(*what)?;
        if at == NEW_DIRECTORY {
            // It may have printed that before it has begun to.
            watching.comes_to_watch(watches + 1)?;
        }
    }
    Ok(Verdict::Passed)
}

pub(in super::super) fn watchdog_is_told_of_edits_on_the_host(context: &Context) -> Result<Verdict> {
    is_told(
        context,
        "watchdog",
        &["python3", "/programs/watch_watchdog.py"],
        [
            &["modified src/written", "closed src/written"],
            &["created src/saved.new", "moved src/saved.new src/saved"],
            &["created src/made", "closed src/made", "modified src"],
            &["created src/dir", "created src/dir/in"],
            &["modified src/dir/in", "closed src/dir/in"],
            &["moved src/made src/moved"],
            &["deleted src/old"],
            &["deleted src/sub/in", "deleted src/sub"],
        ],
    )
}

pub(in super::super) fn watchfiles_is_told_of_edits_on_the_host(context: &Context) -> Result<Verdict> {
    is_told(
        context,
        "watchfiles",
        &["python3", "/programs/watch_watchfiles.py"],
        [
            &["modified src/written"],
            &["added src/saved"],
            &["added src/made"],
            // Of what is in it before it is watched it does not tell, on no host.
            &["added src/dir"],
            &["modified src/dir/in"],
            &["deleted src/made", "added src/moved"],
            &["deleted src/old"],
            &["deleted src/sub/in", "deleted src/sub"],
        ],
    )
}

pub(in super::super) fn chokidar_is_told_of_edits_on_the_host(context: &Context) -> Result<Verdict> {
    is_told(
        context,
        "chokidar",
        &["node", "/programs/watch_chokidar.mjs"],
        [
            &["change src/written"],
            &["change src/saved"],
            &["add src/made"],
            &["addDir src/dir", "add src/dir/in"],
            &["change src/dir/in"],
            &["unlink src/made", "add src/moved"],
            &["unlink src/old"],
            &["unlink src/sub/in", "unlinkDir src/sub"],
        ],
    )
}
