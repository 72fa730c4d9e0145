//! The rules of POSIX on a directory of the host, one by one, and what the host has of it afterwards.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Shared, TARGET, USER, all_ours, no_image, walk};
use crate::docker::same;
use crate::suite::{Context, Verdict};

pub(super) fn the_rules_of_posix_hold_for_root_and_for_a_plain_user(context: &Context) -> Result<Verdict> {
    let Some(shared) = Shared::new(context, "posix")? else {
        return Ok(no_image());
    };
    for (user, at_least) in [("0:0", 35), (USER, 30)] {
        let name = user.replace(':', "-");
        let dir = shared.dir.join(&name);
        fs::create_dir(&dir).context("cannot make a directory")?;

        let finished = shared
            .python(&["-u", user], "posix.py", &[&format!("{TARGET}/{name}")])
            .run()?;

        let report = finished.text();
        if finished.code() != Some(0) {
            // The whole of what failed, and nothing of the rest.
            let failed: Vec<_> = report.lines().filter(|line| !line.starts_with("ok ")).collect();
            bail!("as {user}:\n{}\n{}", failed.join("\n"), finished.errors());
        }
        let made = report.lines().filter(|line| line.starts_with("ok ")).count();
        ensure!(
            made >= at_least,
            "only {made} checks were made as {user}:\n{report}"
        );
        on_the_host(&dir).with_context(|| format!("on the host, as {user}"))?;
    }
    Ok(Verdict::Passed)
}

/// What the checks left. Each has a directory of its name.
fn on_the_host(dir: &Path) -> Result<()> {
    all_ours(dir)?;
    walk(dir, &mut |path, metadata| {
        let privileges = if metadata.is_dir() { 0o4000 } else { 0o6000 };
        same(
            &format!("privileges of {}", path.display()),
            &(metadata.mode() & privileges),
            &0,
        )
    })?;

    let large = dir.join("a_file_may_be_larger_than_4_gib/file");
    let metadata = fs::metadata(&large).context("the large file")?;
    same("size of the large file", &metadata.len(), &((5 << 30) - 2))?;
    ensure!(
        metadata.blocks() * 512 < 1 << 20,
        "the large file takes {} bytes",
        metadata.blocks() * 512
    );
    let file = fs::File::open(&large).context("the large file")?;
    let mut bytes = [0; 6];
    file.read_exact_at(&mut bytes, (5 << 30) - 8)
        .context("the large file")?;
    same("end of the large file", &bytes, b"\0\0\0\0hi")?;
    file.read_exact_at(&mut bytes, 5).context("the large file")?;
    same("start of the large file", &bytes, b"\0\0low\0")?;

    let names = fs::read_dir(dir.join("a_name_is_any_bytes_up_to_255"))
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name()))
                .collect::<Result<BTreeSet<_>, _>>()
        })
        .context("the odd names")?;
    let expected = [vec![b'n'; 255], b"\xff\xfe not utf-8".to_vec()];
    same("odd names", &names, &expected.map(OsString::from_vec).into())?;

    let times = dir.join("times_are_kept_to_the_nanosecond");
    let of = fs::metadata(times.join("dir")).context("a directory with times")?;
    same(
        "its mtime",
        &(of.mtime(), of.mtime_nsec()),
        &(4_102_444_800, 999_999_999),
    )?;
    same("its atime", &(of.atime(), of.atime_nsec()), &(4_102_444_801, 999))?;
    let link = fs::symlink_metadata(times.join("link")).context("a link with times")?;
    same("mtime of a link", &(link.mtime(), link.mtime_nsec()), &(0, 2))?;

    let read = |name: &str| fs::read(dir.join(name)).with_context(|| format!("cannot read {name}"));
    same(
        "what was appended",
        &read("what_is_appended_goes_to_the_end/file")?,
        &b"ebbbccddf".to_vec(),
    )?;
    let mapped = read("maps_share_with_each_other_and_with_reads_and_writes/file")?;
    same(
        "what was written to maps",
        &[&mapped[..5], &mapped[5000..5003], &mapped[9990..9995]],
        &[b"write", b"one", b"child"],
    )?;
    let target = fs::read_link(dir.join("symbolic_links_keep_their_target/long")).context("a long link")?;
    same("length of a link", &target.as_os_str().len(), &4095)
}
