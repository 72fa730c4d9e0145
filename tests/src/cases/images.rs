//! Images: made, built, moved in and out, named and removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::base_image::IMAGE;
use crate::docker::{has, inspect, same};
use crate::host_services::Registry;
use crate::machine::Machine;
use crate::program::Program;
use crate::suite::{Context, Verdict};

cases!("images":
    version_and_info_are_those_of_the_engine_in_the_machine,
    the_base_image_is_listed_with_its_history,
    classic_build_runs_every_instruction,
    buildx_builds_the_same_file_with_cache_mounts,
    save_and_load_bring_an_image_back_under_its_tag,
    push_and_pull_go_through_a_registry_on_the_host,
    large_streams_out_and_in_keep_every_byte,
);

fn version_and_info_are_those_of_the_engine_in_the_machine(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;

    let version = machine
        .docker([
            "version",
            "--format",
            "{{.Client.Version}} {{.Server.Version}} {{.Server.Os}}",
        ])
        .ok()?;
    let info = machine
        .docker([
            "info",
            "--format",
            "{{.ServerVersion}}|{{.OSType}}|{{.NCPU}}|{{.Driver}}|{{.CgroupVersion}}",
        ])
        .ok()?;
    let kernel = machine.docker(["info", "--format", "{{.KernelVersion}}"]).ok()?;
    let warnings = machine.docker(["info", "--format", "{{json .Warnings}}"]).ok()?;
    let guest_kernel = machine.in_guest("cat /proc/sys/kernel/osrelease").ok()?;

    let parts: Vec<_> = info.split('|').collect();
    let cpus = context.setup().options.cpus.to_string();
    same("fields of docker info", &parts.len(), &5)?;
    same("version and info", &version.split(' ').nth(1), &Some(parts[0]))?;
    same(
        "operating system, CPUs, storage driver, cgroup version",
        &&parts[1..],
        &&["linux", cpus.as_str(), "overlay2", "2"][..],
    )?;
    same("kernel", &kernel, &guest_kernel)?;
    same(
        "warnings (features the kernel should have)",
        &warnings.as_str(),
        &"null",
    )?;
    Ok(Verdict::Passed)
}

fn the_base_image_is_listed_with_its_history(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let tag = format!("{IMAGE}-{}", context.name("tag"));

    machine.docker(["tag", IMAGE, &tag]).ok()?;
    let list = machine
        .docker(["images", "--format", "{{.Repository}}:{{.Tag}}"])
        .ok()?;
    let history = machine
        .docker([
            "history",
            "--no-trunc",
            "--format",
            "{{.Size}}|{{.Comment}}",
            IMAGE,
        ])
        .ok()?;
    machine.docker(["rmi", &tag]).ok()?;
    let after = machine
        .docker(["images", "--format", "{{.Repository}}:{{.Tag}}"])
        .ok()?;

    has("images", &list, IMAGE)?;
    has("images", &list, &tag)?;
    has("history", &history, "Imported from -")?;
    ensure!(
        !after.contains(&tag) && after.contains(IMAGE),
        "docker rmi of a tag removed too little or too much: {after}"
    );
    Ok(Verdict::Passed)
}

/// Writes a build context whose Dockerfile uses every instruction that does something different.
fn build_context(machine: &Machine, name: &str, run: &str) -> Result<PathBuf> {
    let dir = machine.dir().join(name);
    fs::create_dir_all(dir.join("tree/sub")).context("cannot make a build context")?;
    let write = |path: &str, text: &str| {
        fs::write(dir.join(path), text).with_context(|| format!("cannot write {path} of a build context"))
    };
    write("copied", "copied file\n")?;
    write("tree/sub/deep", "deep file\n")?;
    write("ignored", "must not reach the image\n")?;
    write(".dockerignore", "ignored\n")?;
    write(
        "Dockerfile",
        &format!(
            "ARG BASE={IMAGE}\n\
             FROM $BASE\n\
             MAINTAINER Harbour Master <harbour@berth.invalid>\n\
             LABEL berth.test=\"yes\"\n\
             ARG WORD=default\n\
             ENV GREETING=hello WORD=$WORD\n\
             WORKDIR /work\n\
             COPY copied /work/\n\
             ADD tree /work/tree\n\
             COPY . /all\n\
             {run} echo \"$GREETING $WORD\" > /work/made && mkdir /data && chown 1234:1234 /data\n\
             EXPOSE 8080/tcp\n\
             VOLUME /data\n\
             USER guest\n\
             ENTRYPOINT [\"/bin/sh\", \"-c\"]\n\
             CMD [\"cat /work/made /work/copied /work/tree/sub/deep; ls /all; id -u; pwd\"]\n"
        ),
    )?;
    // The archive is made by tar from what ADD unpacks.
    Program::new("tar")
        .arg("-C")
        .arg(&dir)
        .args(["-cf", "tree.tar", "tree"])
        .in_dir(&dir)
        .ok()?;
    Ok(dir)
}

fn check_built_image(machine: &Machine, image: &str) -> Result<()> {
    let output = machine.docker(["run", "--rm", image]).ok()?;
    let built = inspect(machine, image)?;

    same(
        "what the image's command prints",
        &output.lines().collect::<Vec<_>>(),
        &vec![
            "hello moor",
            "copied file",
            "deep file",
            "Dockerfile",
            "copied",
            "tree",
            "tree.tar",
            "1234",
            "/work",
        ],
    )?;
    same(
        "label",
        &built["Config"]["Labels"]["berth.test"].as_str(),
        &Some("yes"),
    )?;
    same(
        "author",
        &built["Author"].as_str(),
        &Some("Harbour Master <harbour@berth.invalid>"),
    )?;
    ensure!(
        built["Config"]["ExposedPorts"]["8080/tcp"].is_object(),
        "EXPOSE is missing: {}",
        built["Config"]
    );
    ensure!(
        built["Config"]["Volumes"]["/data"].is_object(),
        "VOLUME is missing: {}",
        built["Config"]
    );
    Ok(())
}

fn classic_build_runs_every_instruction(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let image = context.name("berth.invalid/classic");
    let dir = build_context(&machine, &context.name("build"), "RUN")?;

    machine
        .docker(["build", "--tag", &image, "--build-arg", "WORD=moor"])
        .arg(&dir)
        .env("DOCKER_BUILDKIT", "0")
        .ok()?;

    check_built_image(&machine, &image)?;
    machine.docker(["rmi", &image]).ok()?;
    Ok(Verdict::Passed)
}

fn buildx_builds_the_same_file_with_cache_mounts(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let image = context.name("berth.invalid/buildx");
    let dir = build_context(
        &machine,
        &context.name("build"),
        "RUN --mount=type=cache,target=/cache touch /cache/used &&",
    )?;

    let build = || {
        machine
            .docker([
                "buildx",
                "build",
                "--progress",
                "plain",
                "--tag",
                &image,
                "--build-arg",
                "WORD=moor",
            ])
            .arg(&dir)
    };

    build().ok()?;
    let again = build().run()?;

    check_built_image(&machine, &image)?;
    has("the second build", &again.errors(), "CACHED")?;
    machine.docker(["rmi", &image]).ok()?;
    Ok(Verdict::Passed)
}

fn save_and_load_bring_an_image_back_under_its_tag(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let image = context.name("berth.invalid/saved") + ":1";
    let file = machine.dir().join("saved.tar");
    machine
        .docker(["import", "--change", "LABEL kept=yes", "-", &image])
        .input_file(machine.dir().join("busybox.tar"))
        .ok()?;

    let id = inspect(&machine, &image)?["Id"].clone();
    machine.docker(["save", "--output"]).arg(&file).arg(&image).ok()?;
    machine.docker(["rmi", &image]).ok()?;
    let gone = machine.docker(["image", "inspect", &image]).fails_with(1)?;
    machine.docker(["load", "--input"]).arg(&file).ok()?;
    let back = inspect(&machine, &image)?;

    gone.says(&["no such image"])?;
    same("id", &back["Id"], &id)?;
    same("label", &back["Config"]["Labels"]["kept"].as_str(), &Some("yes"))?;
    machine.docker(["rmi", &image]).ok()?;
    Ok(Verdict::Passed)
}

fn push_and_pull_go_through_a_registry_on_the_host(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let registry = Registry::start(dir.path())?;
    let image = registry.image("moored/busybox:1");

    machine.docker(["tag", IMAGE, &image]).ok()?;
    let pushed = machine.docker(["push", &image]).ok()?;
    machine.docker(["rmi", &image]).ok()?;
    let pulled = machine.docker(["pull", &image]).ok()?;
    let missing = machine
        .docker(["pull", &registry.image("moored/nothing:1")])
        .fails_with(1)?;

    let digest = |text: &str| {
        text.split_whitespace()
            .find(|word| word.starts_with("sha256:"))
            .map(str::to_owned)
    };
    ensure!(digest(&pushed).is_some(), "no digest in: {pushed}");
    same("digest pulled and pushed", &digest(&pulled), &digest(&pushed))?;
    same(
        "same image",
        &inspect(&machine, &image)?["Id"],
        &inspect(&machine, IMAGE)?["Id"],
    )?;
    missing.says(&["manifest", "unknown"])?;
    machine.docker(["rmi", &image]).ok()?;
    Ok(Verdict::Passed)
}

fn large_streams_out_and_in_keep_every_byte(context: &Context) -> Result<Verdict> {
    const MIB: u32 = 128;
    let limit = Duration::from_secs(900);
    let machine = context.machine()?;
    let image = context.name("berth.invalid/large") + ":1";
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let (blob, imported) = (dir.path().join("blob"), dir.path().join("imported.tar"));
    let (out, again) = (dir.path().join("out.tar"), dir.path().join("again.tar"));
    // Random, so that neither compression nor a sparse file makes the stream small.
    Program::new("dd")
        .args(["if=/dev/urandom", "bs=1M", &format!("count={MIB}")])
        .arg(of(&blob))
        .ok()?;
    Program::new("tar")
        .arg("-C")
        .arg(dir.path())
        .arg("-cf")
        .arg(&imported)
        .arg("blob")
        .ok()?;
    machine
        .docker(["import", "-", &image])
        .input_file(&imported)
        .limit(limit)
        .ok()?;

    // Through the client's stdout and stdin: these are the streams a user's pipe is made of.
    machine
        .docker(["save", &image])
        .output_file(&out)
        .limit(limit)
        .ok()?;
    let layer = sha256(&layer_of(&out, dir.path(), "out")?)?;
    machine.docker(["rmi", &image]).ok()?;
    machine.docker(["load"]).input_file(&out).limit(limit).ok()?;
    machine
        .docker(["save", &image])
        .output_file(&again)
        .limit(limit)
        .ok()?;
    let layer_again = sha256(&layer_of(&again, dir.path(), "again")?)?;
    machine.docker(["rmi", &image]).ok()?;

    let size = fs::metadata(&out).context("cannot stat the saved image")?.len();
    ensure!(size >= u64::from(MIB) << 20, "docker save gave only {size} bytes");
    same("layer saved and imported", &layer, &sha256(&imported)?)?;
    same("layer saved again after load", &layer_again, &layer)?;
    Ok(Verdict::Passed)
}

fn of(path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from("of=");
    argument.push(path);
    argument
}

/// Unpacks the one layer of a saved image.
fn layer_of(archive: &Path, dir: &Path, name: &str) -> Result<PathBuf> {
    let dir = dir.join(name);
    fs::create_dir(&dir).context("cannot make a directory")?;
    Program::new("tar")
        .arg("-C")
        .arg(&dir)
        .arg("-xf")
        .arg(archive)
        .ok()?;
    let manifest = fs::read(dir.join("manifest.json")).context("a saved image has a manifest")?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).context("the manifest is JSON")?;
    let layers = manifest[0]["Layers"]
        .as_array()
        .context("the manifest lists layers")?;
    same("layers", &layers.len(), &1)?;
    Ok(dir.join(layers[0].as_str().context("a layer's name is text")?))
}

fn sha256(path: &Path) -> Result<String> {
    use sha2::{Digest, Sha256};
    let mut file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut digest = Sha256::new();
    std::io::copy(&mut file, &mut digest).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
