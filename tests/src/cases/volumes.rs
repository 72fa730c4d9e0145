//! Volumes, and everything else that must outlive the machine's stop.

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::base_image::IMAGE;
use crate::docker::{Container, inspect, run_script, same};
use crate::suite::{Context, Verdict};

cases!("volumes":
    a_named_volume_is_shared_between_containers,
    volumes_images_and_restarting_containers_survive_stop_and_start,
);

fn a_named_volume_is_shared_between_containers(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let volume = context.name("volume");
    let mount = format!("{volume}:/data");

    machine.docker(["volume", "create", &volume]).ok()?;
    run_script(
        &machine,
        &["-v", &mount],
        "echo kept > /data/file && chown 1234 /data/file",
    )
    .ok()?;
    let read = run_script(
        &machine,
        &["-v", &format!("{mount}:ro")],
        "cat /data/file; stat -c %u /data/file; touch /data/x 2>&1 || true",
    )
    .ok()?;
    machine.docker(["volume", "rm", &volume]).ok()?;

    same(
        "read back",
        &read.as_str(),
        &"kept\n1234\ntouch: /data/x: Read-only file system",
    )?;
    machine
        .docker(["volume", "inspect", &volume])
        .fails_with(1)?
        .says(&["no such volume"])?;
    Ok(Verdict::Passed)
}

fn volumes_images_and_restarting_containers_survive_stop_and_start(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let volume = context.name("volume");
    let mount = format!("{volume}:/data");
    run_script(
        &machine,
        &["-v", &mount],
        "head -c 3000000 /dev/urandom > /data/file; sha256sum /data/file > /data/sum",
    )
    .ok()?;
    let image = inspect(&machine, IMAGE)?["Id"].clone();
    let always = Container::idle(&machine, context.name("always"), &["--restart", "always"])?;
    let once = Container::idle(&machine, context.name("once"), &[])?;

    machine.stop()?;
    machine.start()?;

    let check = run_script(&machine, &["-v", &mount], "sha256sum -c /data/sum")
        .ok()
        .context("after the restart")?;
    same("the volume's content", &check.as_str(), &"/data/file: OK")?;
    same("image", &inspect(&machine, IMAGE)?["Id"], &image)?;
    always.wait_for("/State/Status", &json!("running"))?;
    same(
        "a container without a restart policy",
        &once.at("/State/Status")?,
        &json!("exited"),
    )?;
    same(
        "it was asked to end and did",
        &once.at("/State/ExitCode")?,
        &json!(0),
    )?;
    machine.docker(["volume", "rm", &volume]).ok()?;
    Ok(Verdict::Passed)
}
