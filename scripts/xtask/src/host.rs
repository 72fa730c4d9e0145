//! The host's own packages: which are missing, and installing them in one call.

use std::io::{self, IsTerminal};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{command, progress};

/// A package of the distribution that something here needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    name: &'static str,
    /// Whether to go on without it where the distribution does not have it.
    optional: bool,
    /// What it is wanted for, which the host may have from elsewhere.
    program: Option<&'static str>,
}

const fn required(name: &'static str) -> Package {
    Package {
        name,
        optional: false,
        program: None,
    }
}

const fn optional(name: &'static str) -> Package {
    Package {
        name,
        optional: true,
        program: None,
    }
}

/// Required where there is no such program.
const fn for_program(program: &'static str, name: &'static str) -> Package {
    Package {
        name,
        optional: false,
        program: Some(program),
    }
}

/// What building the kernel, the image and berth needs. A distribution without the kernel's source gets it from Debian's
/// archive; see `kernel::source`.
pub(crate) const BUILD: [Package; 14] = [
    required("gcc"),
    required("libc6-dev"),
    required("make"),
    required("flex"),
    required("bison"),
    required("bc"),
    required("patch"),
    required("libelf-dev"),
    required("xz-utils"),
    required("debian-archive-keyring"),
    // Where Debian's archive is, for hosts that are not Debian.
    required("python-apt-common"),
    required("erofs-utils"),
    required("git"),
    optional("linux-source-6.12"),
];

/// What running a machine needs.
pub(crate) const RUN: [Package; 2] = [required("qemu-system-x86"), required("passt")];

/// What the demonstration's base image is made of.
pub(crate) const DEMO: [Package; 1] = [required("busybox-static")];

/// What the end-to-end tests and the lab need beside a machine.
pub(crate) const TEST: [Package; 14] = [
    required("busybox-static"),
    required("docker-registry"),
    required("mmdebstrap"),
    // Runs in containers and beside them: TCP and UDP with their details.
    required("iperf3"),
    required("socat"),
    // What fetches the programs that watch files.
    for_program("npm", "npm"),
    for_program("pip3", "python3-pip"),
    // What changes files while somebody watches.
    for_program("vim", "vim-tiny"),
    for_program("rsync", "rsync"),
    for_program("unzip", "unzip"),
    for_program("zip", "zip"),
    // The status icon's desktop: a display, a session, a panel.
    for_program("Xvfb", "xvfb"),
    for_program("dbus-daemon", "dbus-daemon"),
    for_program("xfce4-panel", "xfce4-panel"),
];

/// Installs those of the packages that are not installed, as root or through sudo. Silent when nothing is missing.
///
/// # Errors
/// When the host has no apt, no right to use it, or apt fails.
pub(crate) fn install_missing(packages: &[Package]) -> Result<()> {
    if !command::on_path("dpkg-query") {
        let names = packages
            .iter()
            .map(|package| package.name)
            .collect::<Vec<_>>()
            .join(" ");
        bail!(
            "this is not a Debian or Ubuntu; install what these packages have, and build with cargo and xtask: {names}"
        );
    }
    let mut missing = missing(packages)?;
    if missing
        .iter()
        .all(|package| package.optional && !is_available(package))
    {
        return Ok(());
    }
    apt_get(&["update", "--quiet=2"], &missing)?;
    missing.retain(|package| !package.optional || is_available(package));
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    progress::note(&format!("installing {}", names.join(" ")));
    let mut arguments = vec!["install", "--yes", "--quiet=2", "--no-install-recommends"];
    arguments.extend(&names);
    apt_get(&arguments, &missing)
}

fn missing(packages: &[Package]) -> Result<Vec<Package>> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Abbrev}|${Package}\\n"])
        .args(packages.iter().map(|package| package.name))
        .stdin(Stdio::null())
        .output()
        .context("cannot run dpkg-query")?;
    // It fails when it does not know one of them; the others are listed all the same.
    let listed = String::from_utf8_lossy(&output.stdout);
    let mut missing: Vec<_> = packages
        .iter()
        .copied()
        .filter(|package| {
            !is_installed(&listed, package.name) && !package.program.is_some_and(command::on_path)
        })
        .collect();
    missing.dedup();
    Ok(missing)
}

/// Whether dpkg-query's list has the package as installed: first letter what is wanted, second what is.
fn is_installed(listed: &str, name: &str) -> bool {
    listed.lines().any(|line| {
        line.split_once('|')
            .is_some_and(|(state, package)| package == name && state.chars().nth(1) == Some('i'))
    })
}

fn is_available(package: &Package) -> bool {
    command::output(Command::new("apt-cache").args(["show", package.name])).is_ok_and(|text| !text.is_empty())
}

fn apt_get(arguments: &[&str], for_packages: &[Package]) -> Result<()> {
    let mut apt = if rustix::process::geteuid().is_root() {
        Command::new("apt-get")
    } else {
        let names = for_packages
            .iter()
            .map(|package| package.name)
            .collect::<Vec<_>>()
            .join(" ");
        if !command::on_path("sudo") {
            bail!("some packages are missing and there is no sudo; as root, run: apt-get install {names}");
        }
        let mut sudo = Command::new("sudo");
        if !io::stdin().is_terminal() {
            sudo.arg("--non-interactive");
        }
        sudo.args(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        sudo
    };
    apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    // Our stdout is for our result.
    apt.stdout(io::stderr());
    command::run(&mut apt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_installed_package_counts() {
        let listed = "ii |gcc\nrc |passt\nun |bison\nhi |make\n";

        let installed = ["gcc", "passt", "bison", "make", "flex"].map(|name| is_installed(listed, name));

        assert_eq!(installed, [true, false, false, true, false]);
    }
}
