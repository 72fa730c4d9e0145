//! What a bind source may be, and what is said when it may not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::{bind, directory, is_ours, outside, read, write};
use crate::docker::{run_script, same};
use crate::suite::{Context, Verdict};

cases!("shares":
    a_missing_source_is_made_for_v_and_refused_for_mount,
    a_source_outside_every_share_is_refused_with_the_command_that_shares_it,
    a_source_may_be_a_symbolic_link,
    paths_of_the_guest_itself_still_work,
);

fn a_missing_source_is_made_for_v_and_refused_for_mount(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let dir = directory(context, &machine, "missing")?;

    run_script(
        &machine,
        &["-v", &bind(&dir.join("new/deep"), "/x")],
        "echo yes > /x/file",
    )
    .ok()?;
    let mount = format!("type=bind,source={},target=/x", dir.join("never").display());
    let refused = run_script(&machine, &["--mount", &mount], "true").fails_with(125)?;

    same(
        "in the directory that was made",
        &read(&dir.join("new/deep/file"))?,
        &"yes\n".to_owned(),
    )?;
    is_ours(&dir.join("new"))?;
    is_ours(&dir.join("new/deep"))?;
    // dockerd's own words, with the path the user knows.
    refused.says(&[
        "bind source path does not exist",
        &dir.join("never").display().to_string(),
    ])?;
    ensure!(!dir.join("never").exists(), "the refused source was made");
    Ok(Verdict::Passed)
}

fn a_source_outside_every_share_is_refused_with_the_command_that_shares_it(
    context: &Context,
) -> Result<Verdict> {
    let machine = context.machine()?;
    let outside = outside(&machine, "not-shared")?;
    write(&outside.join("file"), "")?;
    let fix = format!("berth share add {}", outside.display());

    for source in [outside.clone(), outside.join("file"), outside.join("new")] {
        let by_v = run_script(&machine, &["-v", &bind(&source, "/x")], "true").fails_with(125)?;
        by_v.says(&[&source.display().to_string(), "outside every share", &fix])?;
        let mount = format!("type=bind,source={},target=/x", source.display());
        let by_mount = run_script(&machine, &["--mount", &mount], "true").fails_with(125)?;
        by_mount.says(&["outside every share", &fix])?;
    }
    let device = format!("device={}", outside.display());
    machine
        .docker([
            "volume",
            "create",
            "--opt",
            "type=none",
            "--opt",
            "o=bind",
            "--opt",
            &device,
        ])
        .fails_with(1)?
        .says(&["outside every share", &fix])?;
    machine
        .docker([
            "run",
            "--rm",
            "-v",
            r"C:\Users\me:/x",
            crate::base_image::IMAGE,
            "true",
        ])
        .fails_with(125)?
        .says(&[r"C:\Users\me", "path of Windows", "`paths`"])?;

    ensure!(!outside.join("new").exists(), "the refused source was made");
    Ok(Verdict::Passed)
}

fn a_source_may_be_a_symbolic_link(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let dir = directory(context, &machine, "links")?;
    let outside = outside(&machine, "behind-a-link")?;
    fs::create_dir(dir.join("real")).context("cannot make a directory")?;
    write(&dir.join("real/file"), "real\n")?;
    for (target, link) in [(dir.join("real"), "good"), (outside.clone(), "bad")] {
        symlink(target, dir.join(link)).context("cannot make a link")?;
    }

    let seen = run_script(&machine, &["-v", &bind(&dir.join("good"), "/x")], "cat /x/file").ok()?;
    let refused = run_script(&machine, &["-v", &bind(&dir.join("bad"), "/x")], "true").fails_with(125)?;

    same("through the link", &seen.as_str(), &"real")?;
    refused.says(&[
        &dir.join("bad").display().to_string(),
        &outside.display().to_string(),
        "outside every share",
    ])?;
    Ok(Verdict::Passed)
}

fn paths_of_the_guest_itself_still_work(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let volume = context.name("disguised");
    let dir = directory(context, &machine, "device")?;
    write(&dir.join("file"), "bound\n")?;

    for source in [PathBuf::from("/var/run/docker.sock"), machine.docker_socket()] {
        let socket = bind(&source, "/var/run/docker.sock");
        run_script(&machine, &["-v", &socket], "test -S /var/run/docker.sock")
            .ok()
            .with_context(|| format!("the socket as {}", source.display()))?;
    }
    let own = [
        "-v",
        "/sys:/guest-sys:ro",
        "-v",
        "/dev:/guest-dev",
        "-v",
        "/var/lib/docker:/state:ro",
    ];
    run_script(
        &machine,
        &own,
        "test -d /guest-sys/block && test -e /guest-dev/vda && test -d /state/overlay2",
    )
    .ok()?;
    // The host's time zone is a copy; one without a file for it has nothing to copy.
    if let Ok(zone) = fs::read("/etc/localtime") {
        let options = ["-v", "/etc/localtime:/etc/localtime:ro"];
        let length = run_script(&machine, &options, "wc -c < /etc/localtime").ok()?;
        same("the time zone's length", &length, &zone.len().to_string())?;
    }
    let device = format!("device={}", dir.display());
    machine
        .docker([
            "volume",
            "create",
            "--opt",
            "type=none",
            "--opt",
            "o=bind",
            "--opt",
            &device,
            &volume,
        ])
        .ok()?;
    let seen = run_script(&machine, &["-v", &format!("{volume}:/x")], "cat /x/file").ok()?;
    machine.docker(["volume", "rm", &volume]).ok()?;

    same("in a volume that is a bind", &seen.as_str(), &"bound")?;
    same(
        "removing the volume leaves the directory",
        &read(&dir.join("file"))?,
        &"bound\n".to_owned(),
    )?;
    Ok(Verdict::Passed)
}
