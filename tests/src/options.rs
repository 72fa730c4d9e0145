//! What the suite is run with: which berth, which engine, which docker client.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

/// The engine under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// berth's own hypervisor.
    Kvm,
    /// QEMU.
    Qemu,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Kvm => "kvm",
            Engine::Qemu => "qemu",
        })
    }
}

/// Options of the programs in this crate.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The engine under test
    #[arg(long, value_enum, default_value_t = Engine::Qemu)]
    pub engine: Engine,
    /// Run the long versions too (200 containers at once instead of 20)
    #[arg(long)]
    pub full: bool,
    /// Virtual CPUs of the machines under test
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub cpus: u8,
    /// The berth under test [default: beside this program, else on the path]
    #[arg(long, value_name = "PATH")]
    berth: Option<PathBuf>,
    /// The guest under test [default: $BERTH_GUEST_DIR, else the installed one]
    #[arg(long, value_name = "DIR")]
    guest_dir: Option<PathBuf>,
    /// The docker client [default: on the path, else the one that berth installed]
    #[arg(long, value_name = "PATH")]
    docker: Option<PathBuf>,
    /// The archive that `xtask test-image` makes, for the tests of programs on shares [default: those tests are left out]
    #[arg(long, value_name = "PATH")]
    programs: Option<PathBuf>,
    /// Keep the directories of machines whose test failed, and say where they are
    #[arg(long)]
    pub keep: bool,
    /// Share the cases with other runs that are given this empty directory: each case is run by the first that comes to it
    #[arg(long, value_name = "DIR")]
    pub claims: Option<PathBuf>,
    /// Run only cases whose names begin like this; may be given several times
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// Run the last case first
    #[arg(long)]
    pub reverse: bool,
}

/// The programs and files a run uses, all found.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What was asked for.
    pub options: Options,
    /// The berth under test.
    pub berth: PathBuf,
    /// The directory with the guest's kernel and image.
    pub guest_dir: PathBuf,
    /// The docker client.
    pub docker: PathBuf,
    /// Directories with the client's plugins.
    pub docker_plugins: Vec<PathBuf>,
    /// A static busybox, the content of the base image.
    pub busybox: PathBuf,
    /// The root file system of the image with programs, if there is one.
    pub programs: Option<PathBuf>,
}

impl Setup {
    /// Finds everything.
    ///
    /// # Errors
    /// When something is not there; the message says what and how to get it.
    pub fn find(options: Options) -> Result<Setup> {
        let here = env::current_exe().context("cannot tell where this program is")?;
        let beside = here.with_file_name("berth");
        let berth = match &options.berth {
            Some(path) => existing(path)?,
            None if beside.is_file() => beside,
            None => on_path("berth").context("there is no berth; build it with `cargo build -p berth`")?,
        };
        let installed = data_dir()?;
        let guest_dir = guest_dir(options.guest_dir.as_deref())?;
        let client = installed.join("docker");
        let docker = match &options.docker {
            Some(path) => existing(path)?,
            None => on_path("docker")
                .or_else(|| Some(client.join("docker")).filter(|path| path.is_file()))
                .context("there is no docker client; install one with `cargo run -p xtask -- install`")?,
        };
        let docker_plugins = [
            client.join("cli-plugins"),
            "/usr/local/lib/docker/cli-plugins".into(),
            "/usr/libexec/docker/cli-plugins".into(),
            "/usr/lib/docker/cli-plugins".into(),
        ]
        .into_iter()
        .filter(|dir| dir.is_dir())
        .collect();
        let busybox =
            on_path("busybox").context("there is no busybox; on Debian: apt install busybox-static")?;
        let programs = options.programs.as_deref().map(existing).transpose()?;
        Ok(Setup {
            berth,
            guest_dir,
            docker,
            docker_plugins,
            busybox,
            programs,
            options,
        })
    }
}

/// Where a program is in `$PATH`.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// The directory with the guest's kernel and image: the one that is named, else `$BERTH_GUEST_DIR`, else the installed one.
///
/// # Errors
/// When there is none.
pub fn guest_dir(named: Option<&Path>) -> Result<PathBuf> {
    let dir = match (named, env::var_os("BERTH_GUEST_DIR")) {
        (Some(dir), _) => dir.to_owned(),
        (None, Some(dir)) => dir.into(),
        (None, None) => data_dir()?.join("guest"),
    };
    if !dir.join("vmlinux").is_file() {
        bail!(
            "there is no guest in {}; install one with `cargo run -p xtask -- install`",
            dir.display()
        );
    }
    existing(&dir)
}

/// `${XDG_DATA_HOME:-~/.local/share}/berth` of the user who runs the tests; machines under test have their own.
fn data_dir() -> Result<PathBuf> {
    let base = match env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
    {
        Some(dir) => dir,
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".local/share"),
    };
    Ok(base.join("berth"))
}

fn existing(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .with_context(|| format!("cannot find {}", path.display()))
}
