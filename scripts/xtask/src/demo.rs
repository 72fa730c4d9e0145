//! `xtask demo`: from a fresh checkout to a container running in our own machine, and what to do next.
//!
//! Safe to repeat: every step looks first whether its work is done.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::progress::{Timings, note};
use crate::{client, command, host, image, install, kernel, paths};

/// The base image, made here so that no registry is reached.
const BASE: &str = "berth-demo/busybox:latest";
/// The image built from `scripts/demo.d`.
const IMAGE: &str = "berth-demo/hello:latest";
/// What the container must print.
const GREETING: &str = "Hello from a container in a berth machine";
/// A static busybox, as the package busybox-static installs it.
const BUSYBOX: [&str; 2] = ["/usr/bin/busybox", "/bin/busybox"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the host's packages alone
    #[arg(long)]
    no_packages: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut timings = Timings::default();
    let result = steps(args, &mut timings);
    note(&format!("\n{}", timings.table()));
    let docker = result?;
    println!("{}", what_next(&docker)?);
    Ok(())
}

fn steps(args: &Args, timings: &mut Timings) -> Result<Docker> {
    if !args.no_packages {
        timings.step("packages of this host", || {
            host::install_missing(&[&host::BUILD[..], &host::RUN, &host::DEMO].concat())
        })?;
    }
    let cache = Cache::open()?;
    let data = paths::data_dir()?;
    timings.step("guest kernel", || kernel::ensure(&cache))?;
    timings.step("guest image", || image::ensure(&cache))?;
    timings.step("docker client", || client::ensure(&cache))?;
    timings.step("berth", || install::install(&cache, &data, true))?;
    timings.step("berth start", || {
        command::run(
            Command::new(data.join("bin/berth"))
                .arg("start")
                .stdout(Stdio::null()),
        )
    })?;
    let docker = Docker::find(&data);
    timings.step("base image from busybox", || docker.import_base(&cache))?;
    timings.step("docker build", || {
        docker.build(&paths::workspace_root()?.join("scripts/demo.d"))
    })?;
    timings.step("docker run", || docker.greet())?;
    Ok(docker)
}

/// A docker client that talks to the machine.
struct Docker {
    program: PathBuf,
}

impl Docker {
    /// The host's own client, else the one in berth's directory.
    fn find(data: &Path) -> Self {
        let own = data.join("docker/docker");
        Self {
            program: if command::on_path("docker") {
                PathBuf::from("docker")
            } else {
                own
            },
        }
    }

    fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut docker = Command::new(&self.program);
        docker.args(["--context", "berth"]).args(arguments);
        // They would send the client somewhere else.
        docker.env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT");
        docker
    }

    /// Makes the base image from the static busybox, unless the machine has it.
    fn import_base(&self, cache: &Cache) -> Result<()> {
        if command::output(&mut self.command(["image", "inspect", "--format", "{{.Id}}", BASE])).is_ok() {
            return Ok(());
        }
        let busybox = BUSYBOX.iter().map(Path::new).find(|path| path.is_file());
        let busybox = busybox.context("there is no busybox; install the package busybox-static")?;
        let scratch = cache.scratch(&format!(".demo-{}", std::process::id()))?;
        let root = scratch.path().join("root");
        for dir in ["bin", "etc", "tmp", "root"] {
            let path = root.join(dir);
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        }
        fs::copy(busybox, root.join("bin/busybox"))
            .with_context(|| format!("cannot copy {}", busybox.display()))?;
        for applet in command::output(Command::new(busybox).arg("--list"))?.lines() {
            if applet != "busybox" {
                symlink("busybox", root.join("bin").join(applet))
                    .with_context(|| format!("cannot make the link for {applet}"))?;
            }
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")
            .context("cannot write /etc/passwd")?;
        let tarball = scratch.path().join("root.tar");
        let mut tar = Command::new("tar");
        tar.args([
            "--create",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
            "--directory",
        ])
        .arg(&root);
        command::output(tar.arg("--file").arg(&tarball).arg("."))?;
        let mut import = self.command(["import", "--change", "CMD [\"/bin/sh\"]"]);
        command::output(import.arg(&tarball).arg(BASE)).map(drop)
    }

    fn build(&self, context: &Path) -> Result<()> {
        let mut build = self.command(["build", "--tag", IMAGE]);
        command::run(build.arg(context).stdout(std::io::stderr()))
    }

    /// Runs the image and shows what it prints.
    fn greet(&self) -> Result<()> {
        let text = command::output(&mut self.command(["run", "--rm", IMAGE]))?;
        note(&text);
        if !text.contains(GREETING) {
            bail!("the container ran but did not say {GREETING:?}");
        }
        Ok(())
    }
}

fn what_next(docker: &Docker) -> Result<String> {
    let bin = paths::data_dir()?.join("bin");
    let client = docker.program.display();
    Ok(format!(
        "berth is running. What you can do now:\n\
         \n\
         \x20 {client} --context berth run --rm -it {BASE} sh   a shell in a container\n\
         \x20 {client} --context berth run --rm {IMAGE} you     the image just built, greeting you\n\
         \x20 {bin}/berth status                  what the machine is doing\n\
         \x20 {bin}/berth shell                   a shell in the machine itself\n\
         \x20 {bin}/berth logs --source dockerd            what dockerd says\n\
         \x20 {bin}/berth stop                    stop it; images and volumes stay\n\
         \n\
         While it runs, the docker context \"berth\" is the current one, so plain `docker` commands reach it too.",
        bin = bin.display()
    ))
}
