//! The program in the container: does what it is told, a line each, and says how long that took.

use std::fs;
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::bench::files::guest::{changes, git, modules, small, trees};

/// The argument that makes a program of this crate this one ([`serve`]). The words that run git come after it.
pub const ARGUMENT: &str = "--serve-as-worker";

/// Files of the tree that is listed and read.
const FILES: u32 = 3000;
/// Files under git, which the host makes.
pub(super) const TRACKED: u32 = 3000;
const PACKAGES: u32 = 100;
/// Files that are made, renamed and removed.
const CHANGES: u32 = 500;

/// What is done, one of these after the other: on files that are there all the time each by itself, again and again, and in turns
/// what makes files come and go.
pub(super) const WORK: [&[&str]; 7] = [
    &["find"],
    &["stat"],
    &["cat"],
    &["missing"],
    &["modules"],
    &["git-status"],
    &["create", "rename", "remove"],
];

/// What the table says of it.
pub(super) fn describe(work: &str) -> String {
    match work {
        "find" | "stat" | "cat" => format!("{work} {FILES} files seen before"),
        "missing" => format!("stat {FILES} names that are known to be missing"),
        "modules" => format!("find modules, {PACKAGES} packages seen before"),
        "git-status" => format!("git status, {TRACKED} files seen before"),
        "create" | "rename" | "remove" => format!("{work} {CHANGES} files"),
        other => other.to_owned(),
    }
}

/// Does what lines of `input` say, until they end: a kind of work and a directory, answered by milliseconds.
///
/// # Errors
/// When something cannot be done, or a file is not what it must be.
pub fn serve(git_words: &[&str], input: impl BufRead, mut output: impl Write) -> Result<()> {
    let names = trees::small(FILES);
    for line in input.lines() {
        let line = line.context("cannot read what to do")?;
        let (work, place) = line.split_once(' ').context("no directory")?;
        let place = Path::new(place);
        let (small_tree, packages) = (place.join(trees::SMALL), place.join(trees::PACKAGES));
        let changed = place.join("changes");
        let begin = Instant::now();
        match work {
            "make" => {
                trees::make_small(place, FILES)?;
                trees::make_packages(place, PACKAGES)?;
                fs::create_dir(&changed).with_context(|| format!("cannot make {}", changed.display()))?;
            }
            "find" => small::find(&small_tree, names.len())?,
            "stat" => small::stat(&small_tree, &names)?,
            "cat" => small::cat(&small_tree, &names)?,
            "missing" => small::missing(&small_tree, names.len())?,
            "modules" => modules::resolve(&packages, PACKAGES)?,
            "git-status" => git::status_by(git_words, &place.join(trees::TRACKED))?,
            "create" => changes::create(&changed, CHANGES)?,
            "rename" => changes::rename(&changed, CHANGES)?,
            "remove" => changes::remove(&changed, CHANGES)?,
            // "copy FROM TO": the tree under git, with its times.
            "copy" => {
                let (from, to) = line
                    .strip_prefix("copy ")
                    .and_then(|rest| rest.split_once(' '))
                    .context("copy from where to where?")?;
                let status = Command::new("cp")
                    .arg("-a")
                    .args([
                        Path::new(from).join(trees::TRACKED),
                        Path::new(to).join(trees::TRACKED),
                    ])
                    .status()
                    .context("cannot run cp")?;
                ensure!(status.success(), "cp failed ({status})");
            }
            _ => bail!("{work:?} is nothing to do"),
        }
        let ms = begin.elapsed().as_secs_f64() * 1000.0;
        writeln!(output, "{ms:.3}")
            .and_then(|()| output.flush())
            .context("cannot answer")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::files::host::fixture::track;

    #[test]
    fn the_program_in_the_container_does_all_that_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        for place in [&first, &second] {
            fs::create_dir(place).unwrap();
        }
        trees::make_tracked(&first, 5).unwrap();
        track(&first.join(trees::TRACKED)).unwrap();
        let lines = std::iter::once(format!("copy {} {}\n", first.display(), second.display()))
            .chain(
                ["make"]
                    .iter()
                    .chain(&WORK.concat())
                    .map(|work| format!("{work} {}\n", second.display())),
            )
            .collect::<String>();
        let mut answers = Vec::new();
        serve(&["git"], lines.as_bytes(), &mut answers).unwrap();
        let answers = String::from_utf8(answers).unwrap();
        assert_eq!(
            answers.lines().filter(|line| line.parse::<f64>().is_ok()).count(),
            2 + WORK.concat().len()
        );
        assert!(serve(&["git"], &b"dance /tmp\n"[..], Vec::new()).is_err());
    }

    #[test]
    fn the_table_says_more_than_the_line() {
        for work in WORK.concat() {
            assert_ne!(describe(work), work);
        }
    }
}
