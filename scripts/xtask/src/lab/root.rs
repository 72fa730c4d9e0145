//! The outer machine's system: Debian 13 as one read-only erofs image, with its kernel, the initramfs that starts it, and
//! the QEMU that runs it.
//!
//! The same Debian root that runs inside also provides the tools that run outside: QEMU 11 and mkfs.erofs 1.8 are newer
//! than what an older host has, and its own dynamic loader starts them from any directory, without chroot and root.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::initramfs;
use crate::cache::{Cache, Existing};
use crate::digest::Inputs;
use crate::{command, debian, progress};

/// Changes when the way the system is made does.
const VERSION: u32 = 2;

/// Where QEMU comes from. Its emulation of nested virtualization loses interrupts in 10.0, which the release itself has.
const NEWER_SUITE: &str = "trixie-backports";
/// The source packages taken from there.
const NEWER: &[&str] = &["src:qemu", "src:seabios"];

/// What the outer machine has. Grouped by who needs it.
const PACKAGES: &[&str] = &[
    // The machine itself.
    "linux-image-cloud-amd64",
    "busybox-static",
    "iproute2",
    "kmod",
    "procps",
    "util-linux",
    // QEMU: outside to run the lab, inside for the other engine and for comparisons; seabios is its firmware.
    "qemu-system-x86",
    "seabios",
    // File system images: outside for the payload, inside for what looks at a machine's disk.
    "e2fsprogs",
    "erofs-utils",
    // The other virtio-fs server: outside, for `bench-files` to compare with.
    "virtiofsd",
    // What berth works with.
    "passt",
    "docker-cli",
    "docker-buildx",
    "docker-compose",
    // What the end-to-end tests work with.
    "ca-certificates",
    "curl",
    "docker-registry",
    "iperf3",
    "socat",
    "strace",
];

/// What of the Debian root is unpacked beside the image, to be run outside.
const UNPACKED: &[&str] = &[
    "./boot",
    "./lib64",
    "./usr/bin/busybox",
    "./usr/bin/mkfs.erofs",
    "./usr/bin/qemu-system-x86_64",
    "./usr/lib/modules",
    "./usr/lib/x86_64-linux-gnu",
    "./usr/lib64",
    "./usr/libexec/virtiofsd",
    "./usr/sbin/mke2fs",
    "./usr/share/qemu",
    "./usr/share/seabios",
];

/// The outer machine's system in the cache.
pub(super) struct LabRoot {
    dir: PathBuf,
    cache: Cache,
}

impl LabRoot {
    /// Finds it in the cache, or makes it: some 500 MB of packages from the Debian mirror and a minute or two.
    ///
    /// # Errors
    /// When mmdebstrap is missing or fails, or the disk is full.
    pub(super) fn obtain(existing: Existing) -> Result<Self> {
        let cache = Cache::open()?;
        let mut inputs = Inputs::new("lab", VERSION);
        inputs
            .add("suite", debian::SUITE)
            .add("newer", format!("{NEWER_SUITE} {}", NEWER.join(" ")))
            .add("packages", PACKAGES.join(" "))
            .add("unpacked", UNPACKED.join(" "))
            .add("initramfs", initramfs::inputs());
        let hash = inputs.finish();
        let log = cache.log_file(&format!("lab-{hash}"))?;
        let product = cache.product("lab", &hash, existing, |dir| {
            progress::note("lab: making the outer machine's system (once; a minute or two)");
            make(dir, &log)
        })?;
        Ok(Self {
            dir: product.dir,
            cache,
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cache, for the files of a run.
    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The root file system's image.
    pub(super) fn image(&self) -> PathBuf {
        self.dir.join("root.erofs")
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    pub(super) fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs.cpio")
    }

    /// A program of the Debian root, to be run here.
    pub(super) fn program(&self, path: &str) -> Command {
        program(&self.dir.join("tools"), path)
    }

    /// A directory under the unpacked part of the Debian root.
    pub(super) fn tools(&self, path: &str) -> PathBuf {
        self.dir.join("tools").join(path)
    }
}

/// Starts a program of another Debian root with that root's own loader and libraries.
fn program(tools: &Path, path: &str) -> Command {
    let mut command = Command::new(tools.join("lib64/ld-linux-x86-64.so.2"));
    command
        .arg("--library-path")
        .arg(tools.join("usr/lib/x86_64-linux-gnu"))
        .arg(tools.join(path));
    command
}

fn make(dir: &Path, log: &Path) -> Result<()> {
    for tool in ["mmdebstrap", "tar", "xz"] {
        if !command::on_path(tool) {
            bail!("{tool} is not installed; on Debian: apt install mmdebstrap tar xz-utils");
        }
    }
    let archive = dir.join("root.tar");
    debootstrap(&archive, log)?;
    let tools = dir.join("tools");
    fs::create_dir(&tools).with_context(|| format!("cannot create {}", tools.display()))?;
    command::logged(
        Command::new("tar")
            .args(["--extract", "--no-same-owner", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(&tools)
            .args(UNPACKED),
        log,
        |_| {},
    )?;
    command::logged(
        program(&tools, "usr/bin/mkfs.erofs")
            .arg("--quiet")
            .arg("--tar=f")
            .arg(dir.join("root.erofs"))
            .arg(&archive),
        log,
        |_| {},
    )?;
    fs::remove_file(&archive).with_context(|| format!("cannot delete {}", archive.display()))?;
    let kernel = the_one_with_prefix(&tools.join("boot"), "vmlinuz-")?;
    fs::copy(&kernel, dir.join("vmlinuz")).with_context(|| format!("cannot copy {}", kernel.display()))?;
    let modules = the_one_with_prefix(&tools.join("usr/lib/modules"), "")?;
    let initramfs = initramfs::make(&tools.join("usr/bin/busybox"), &modules)?;
    fs::write(dir.join("initramfs.cpio"), initramfs)
        .with_context(|| format!("cannot write {}", dir.join("initramfs.cpio").display()))?;
    for used_up in ["boot", "usr/lib/modules", "usr/bin/busybox"] {
        let path = tools.join(used_up);
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("cannot delete {}", path.display()))?;
    }
    Ok(())
}

fn debootstrap(archive: &Path, log: &Path) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command
        // The kernel's package would build Debian's own initramfs, which is not used and takes as long as all the rest.
        .env("INITRD", "No")
        .args(["--variant=minbase", "--format=tar"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        // Plain commands run as this user; kvm is the group that may open /dev/kvm.
        .arg(format!(
            "--setup-hook=printf 'Package: {}\\nPin: release n={NEWER_SUITE}\\nPin-Priority: 990\\n' \
             >\"$1\"/etc/apt/preferences.d/newer",
            NEWER.join(" ")
        ))
        .arg("--customize-hook=chroot \"$1\" groupadd --force --system kvm")
        .arg("--customize-hook=chroot \"$1\" useradd --uid 1000 --groups kvm --shell /bin/sh --no-create-home lab")
        .arg(debian::SUITE)
        .arg(archive)
        .args(debian::sources()?.lines())
        .arg(debian::source_of(NEWER_SUITE)?);
    command::logged(&mut command, log, |_| {})
}

/// The one entry of a directory whose name starts with `prefix`.
fn the_one_with_prefix(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry
            .with_context(|| format!("cannot list {}", dir.display()))?
            .path();
        if path
            .file_name()
            .and_then(OsStr::to_str)
            .is_some_and(|name| name.starts_with(prefix))
        {
            found.push(path);
        }
    }
    match found.pop() {
        Some(path) if found.is_empty() => Ok(path),
        _ => bail!("expected exactly one {prefix}* in {}", dir.display()),
    }
}
