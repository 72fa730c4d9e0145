//! Process start to the first line of a guest's init: one vCPU, 128 MiB, the same kernel and a tiny initramfs under
//! berth's hypervisor and under QEMU's microvm.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::bench::memory::{Resident, resident};
use crate::program::{Program, Running};

/// What the guest's init prints.
const READY: &str = "init-is-running";
/// The guest's memory in MiB.
const MEMORY_MIB: u64 = 128;
/// Nothing is probed that the machines do not have, so that what is measured is the machine and not the kernel's patience.
const CMDLINE: &str =
    "console=ttyS0 quiet reboot=k panic=-1 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd";

/// Who runs the machine.
#[derive(Debug, Clone)]
pub enum Hypervisor {
    /// berth's, in its lean runner at this path.
    Berth(PathBuf),
    /// QEMU's microvm on KVM.
    Qemu(PathBuf),
}

/// One boot.
#[derive(Debug, Clone, Copy)]
pub struct Boot {
    /// Process start to init.
    pub to_init: Duration,
    /// What the process has in memory then.
    pub resident: Resident,
}

impl Hypervisor {
    fn program(&self, kernel: &Path, initramfs: &Path) -> Program {
        let memory = MEMORY_MIB.to_string();
        match self {
            Hypervisor::Berth(path) => Program::new(path)
                .arg("--kernel")
                .arg(kernel)
                .arg("--initrd")
                .arg(initramfs)
                .args(["--cmdline", CMDLINE, "--cpus", "1", "--memory", &memory]),
            Hypervisor::Qemu(path) => Program::new(path)
                .args([
                    "-M",
                    "microvm,rtc=on,acpi=off,pit=on,pic=on,isa-serial=on,auto-kernel-cmdline=off",
                ])
                .args(["-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", &memory])
                .args([
                    "-nodefaults",
                    "-no-user-config",
                    "-display",
                    "none",
                    "-no-reboot",
                    "-serial",
                    "stdio",
                ])
                .arg("-kernel")
                .arg(kernel)
                .arg("-initrd")
                .arg(initramfs)
                .args(["-append", CMDLINE]),
        }
    }

    /// Boots once.
    ///
    /// # Errors
    /// When the guest does not come up.
    pub fn boot(&self, kernel: &Path, initramfs: &Path) -> Result<Boot> {
        let begin = Instant::now();
        let machine: Running = self
            .program(kernel, initramfs)
            .limit(Duration::from_secs(120))
            .spawn()?;
        machine.prints(READY)?;
        let to_init = begin.elapsed();
        // Guest memory that init touches meanwhile is not counted, and the hypervisor itself is idle now.
        let resident = resident(machine.pid(), MEMORY_MIB << 20)?;
        Ok(Boot { to_init, resident })
    }
}

/// Makes an initramfs whose init prints one line and waits.
///
/// # Errors
/// When busybox cannot be copied or makes no archive.
pub fn initramfs(busybox: &Path, dir: &Path) -> Result<PathBuf> {
    let root = dir.join("initramfs");
    for name in ["bin", "dev"] {
        fs::create_dir_all(root.join(name)).context("cannot make the initramfs")?;
    }
    fs::copy(busybox, root.join("bin/busybox")).context("cannot copy busybox")?;
    let init = root.join("init");
    fs::write(
        &init,
        format!("#!/bin/busybox sh\necho {READY}\nexec /bin/busybox sleep 100000\n"),
    )
    .context("cannot write the guest's init")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("cannot make init executable")?;
    let archive = dir.join("initramfs.cpio");
    Program::new(busybox)
        .args(["cpio", "-o", "-H", "newc"])
        .in_dir(&root)
        .input("bin\nbin/busybox\ndev\ninit\n")
        .output_file(&archive)
        .ok()?;
    Ok(archive)
}
