//! The data disk: found by its serial, given a file system when it is blank, checked when it needs it, mounted, grown,
//! and bound to where its parts belong (`docs/seams.md`, "Disks").

mod probe;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use protocol::control::DiskStatus;
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};

use self::probe::{Content, Superblock};
use crate::console::{notice, warning};
use crate::reaper::{Reaper, describe};
use crate::tool;

/// The serial the host gives the disk.
const SERIAL: &str = "berth-data";

/// Where it is mounted.
pub(crate) const MOUNT_POINT: &str = "/var/lib/berth";

/// Directories of the disk, where they are bound, and their mode.
pub(crate) const BINDS: [(&str, &str, u32); 4] = [
    ("docker", "/var/lib/docker", 0o710),
    ("containerd", "/var/lib/containerd", 0o711),
    ("log", "/var/log", 0o755),
    ("root", "/root", 0o700),
];

/// `EXT4_IOC_RESIZE_FS`, `_IOW('f', 16, __u64)`: grow to this many blocks while mounted.
const RESIZE_FS: libc::Ioctl = 0x4008_6610_u32 as libc::Ioctl;

/// Makes the data disk usable and returns whether a file system was made. Every error is a reason to power off: without
/// its state the machine is not the machine.
pub(crate) async fn set_up(reaper: &Arc<Reaper>) -> anyhow::Result<bool> {
    let disk = Disk::find(Path::new("/sys/block"))?;
    let mut formatted = false;
    let superblock = match disk.examine()? {
        Content::Ours(superblock) => superblock,
        Content::Blank | Content::Unfinished => {
            disk.format(reaper).await?;
            formatted = true;
            match disk.examine()? {
                Content::Ours(superblock) => superblock,
                other => bail!(
                    "the file system just made on {} does not read back ({other:?}); the disk loses what is \
                     written to it",
                    disk.device.display()
                ),
            }
        }
        Content::Foreign(what) => bail!(
            "the data disk holds {what}, not a file system of berth's, and is left as it is. To keep its contents \
             move the machine's data.img elsewhere; to start with an empty disk delete it"
        ),
    };
    ensure!(
        superblock.size <= disk.size,
        "the data disk has {} bytes, fewer than the {} of the file system on it: the machine's data.img was cut off. \
         Restore it from a copy, or enlarge it to at least that size again (truncate --size)",
        disk.size,
        superblock.size
    );
    disk.mount(reaper, &superblock).await?;
    if grows(superblock.size, disk.size) {
        match grow(disk.size / superblock.block_size) {
            Ok(()) => notice!(
                "data disk grown from {} to {} MiB",
                superblock.size >> 20,
                disk.size >> 20
            ),
            // All that was there is still there.
            Err(e) => warning!(
                "cannot grow the file system of the data disk to {} bytes: {e}",
                disk.size
            ),
        }
    }
    bind_parts()?;
    Ok(formatted)
}

/// A block device.
#[derive(Debug)]
struct Disk {
    device: PathBuf,
    size: u64,
}

impl Disk {
    /// Finds the disk with our serial. All disks are there when init starts: their drivers are built in.
    fn find(sys_block: &Path) -> anyhow::Result<Disk> {
        let entries =
            fs::read_dir(sys_block).with_context(|| format!("cannot list {}", sys_block.display()))?;
        let mut seen = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(serial) = fs::read_to_string(entry.path().join("serial")) else {
                continue;
            };
            let serial = serial.trim_matches(|c: char| c.is_whitespace() || c == '\0');
            if serial != SERIAL {
                seen.push(format!("{name} ({serial})"));
                continue;
            }
            let number = |file: &str| -> anyhow::Result<u64> {
                let path = entry.path().join(file);
                let text =
                    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                text.trim()
                    .parse()
                    .with_context(|| format!("{} does not hold a number", path.display()))
            };
            ensure!(
                number("ro")? == 0,
                "the data disk ({name}) is read-only; the host must attach it for writing"
            );
            // The kernel counts sectors of 512 bytes whatever the disk's own are.
            let size = number("size")?.saturating_mul(512);
            ensure!(
                size >= probe::MIN_SIZE,
                "the data disk has {size} bytes; at least {} are needed",
                probe::MIN_SIZE
            );
            return Ok(Disk {
                device: Path::new("/dev").join(name),
                size,
            });
        }
        bail!(
            "there is no disk with the serial {SERIAL:?} among {seen:?}; the host must attach the machine's data disk"
        )
    }

    fn examine(&self) -> anyhow::Result<Content> {
        let mut file =
            File::open(&self.device).with_context(|| format!("cannot open {}", self.device.display()))?;
        probe::examine(&mut file, self.size)
            .with_context(|| format!("cannot read the data disk {}", self.device.display()))
    }

    /// Makes a file system. The mark says meanwhile that the disk was blank; see [`probe`].
    async fn format(&self, reaper: &Arc<Reaper>) -> anyhow::Result<()> {
        notice!("data disk is blank, making a file system on it");
        self.write(&probe::mark_block())
            .context("cannot write to the data disk")?;
        let device = self.device.to_string_lossy();
        let done = tool::run(reaper, "mkfs.ext4", &mkfs_arguments(&device))
            .await
            .context("cannot run mkfs.ext4")?;
        ensure!(
            done.status.success(),
            "mkfs.ext4 could not make a file system on the data disk ({}): {}",
            describe(done.status),
            done.output
        );
        self.write(&[0; probe::MARK_BLOCK])
            .context("cannot write to the data disk")
    }

    /// Writes the place of the mark, and what was written to the device before, through to the disk.
    fn write(&self, block: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(&self.device)?;
        // What mkfs wrote must be there before the mark goes.
        file.sync_all()?;
        file.write_all_at(block, probe::mark_offset(self.size))?;
        file.sync_all()
    }

    async fn mount(&self, reaper: &Arc<Reaper>, superblock: &Superblock) -> anyhow::Result<()> {
        let mut checked = false;
        if !superblock.clean {
            notice!("data disk has errors recorded, checking it");
            self.check(reaper).await?;
            checked = true;
        }
        // A journal left by a power cut is replayed by the kernel as it mounts: no reason to run fsck.
        let first = match self.try_mount() {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        if checked {
            return Err(first);
        }
        warning!("{first:#}; checking the data disk");
        self.check(reaper).await?;
        self.try_mount()
    }

    fn try_mount(&self) -> anyhow::Result<()> {
        // discard: blocks of removed images go back to the host at once.
        // noatime: reading an image's files must not write to the disk, which grows on the host with every block
        // written for the first time.
        // errors=remount-ro: a damaged file system is not made worse; it is reported and checked at the next start.
        mount(
            &self.device,
            MOUNT_POINT,
            "ext4",
            MountFlags::NOATIME,
            Some(c"discard,errors=remount-ro"),
        )
        .with_context(|| format!("cannot mount the data disk {}", self.device.display()))
    }

    async fn check(&self, reaper: &Arc<Reaper>) -> anyhow::Result<()> {
        let device = self.device.to_string_lossy();
        let done = tool::run(reaper, "e2fsck", &["-p", &device])
            .await
            .context("cannot run e2fsck")?;
        notice!("e2fsck: {}", done.output);
        match fsck_result(done.status.code()) {
            FsckResult::Usable => Ok(()),
            FsckResult::Damaged => Err(anyhow!(
                "the file system on the data disk is damaged and cannot be repaired without choices: {}. With the \
                 machine stopped, keep a copy of its data.img and run `e2fsck -f` on it",
                done.output
            )),
        }
    }
}

/// The arguments of mkfs.ext4 for the data disk.
fn mkfs_arguments(device: &str) -> [&str; 11] {
    [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-L",
        probe::LABEL,
        // Everything that writes here is root; blocks held back for root are blocks lost.
        "-m",
        "0",
        "-E",
        // Inode tables and journal are zeroed later by the kernel, by requests that leave holes in the host's file. A
        // blank disk needs no discard, which would also discard the mark.
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        device,
    ]
}

#[derive(Debug, PartialEq, Eq)]
enum FsckResult {
    Usable,
    Damaged,
}

/// Reads e2fsck's exit code (e2fsck(8)): 1 errors corrected, 2 corrected and the system should restart, which concerns
/// only mounted file systems; from 4 on errors are left or it could not run.
fn fsck_result(code: Option<i32>) -> FsckResult {
    match code {
        Some(0..=3) => FsckResult::Usable,
        _ => FsckResult::Damaged,
    }
}

/// Whether a disk of `disk` bytes has room for at least another group's worth of a file system of `file_system` bytes.
fn grows(file_system: u64, disk: u64) -> bool {
    // The kernel leaves away a last group too small to hold its own tables; trying that at every boot is idle.
    const WORTHWHILE: u64 = 16 << 20;
    disk.saturating_sub(file_system) >= WORTHWHILE
}

fn grow(blocks: u64) -> io::Result<()> {
    let directory = File::open(MOUNT_POINT)?;
    // SAFETY: the descriptor is open, and the request reads one u64, which lives until the call returns.
    let done = unsafe { libc::ioctl(directory.as_raw_fd(), RESIZE_FS, &raw const blocks) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn bind_parts() -> anyhow::Result<()> {
    // Else the whole disk and its bound parts would be peers, and each container's file system be mounted twice.
    mount_change(MOUNT_POINT, MountPropagationFlags::PRIVATE)
        .with_context(|| format!("cannot make the mount {MOUNT_POINT} private"))?;
    for (name, target, mode) in BINDS {
        let source = Path::new(MOUNT_POINT).join(name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&source)
            .with_context(|| format!("cannot make {}", source.display()))?;
        mount_bind(&source, target)
            .with_context(|| format!("cannot bind {} on {target}", source.display()))?;
    }
    Ok(())
}

/// The use of the mounted data disk.
pub(crate) fn status() -> io::Result<DiskStatus> {
    let figures = statvfs(MOUNT_POINT)?;
    Ok(DiskStatus {
        total: figures.f_blocks.saturating_mul(figures.f_frsize),
        used: figures
            .f_blocks
            .saturating_sub(figures.f_bfree)
            .saturating_mul(figures.f_frsize),
        available: figures.f_bavail.saturating_mul(figures.f_frsize),
    })
}

/// Whether the kernel has made the mounted data disk read-only, as it does when it finds errors.
pub(crate) fn is_read_only() -> bool {
    statvfs(MOUNT_POINT).is_ok_and(|figures| figures.f_flag.contains(StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake_disk(sys: &Path, name: &str, serial: &str, sectors: u64, ro: u8) {
        let directory = sys.join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("serial"), serial).unwrap();
        fs::write(directory.join("size"), format!("{sectors}\n")).unwrap();
        fs::write(directory.join("ro"), format!("{ro}\n")).unwrap();
    }

    #[test]
    fn the_disk_is_found_by_its_serial_whatever_its_name() {
        let sys = tempfile::tempdir().unwrap();
        fs::create_dir(sys.path().join("loop0")).unwrap();
        fake_disk(sys.path(), "vda", "berth-root", 9, 1);
        fake_disk(sys.path(), "vdc", "berth-data\0\0", 1 << 20, 0);
        let disk = Disk::find(sys.path()).unwrap();
        assert_eq!((disk.device, disk.size), (PathBuf::from("/dev/vdc"), 512 << 20));
    }

    #[test]
    fn a_missing_a_read_only_and_a_tiny_disk_are_told_apart() {
        let sys = tempfile::tempdir().unwrap();
        let message = || Disk::find(sys.path()).unwrap_err().to_string();
        fake_disk(sys.path(), "vda", "berth-root", 9, 1);
        assert!(message().contains("no disk with the serial"), "{}", message());
        fake_disk(sys.path(), "vdb", "berth-data", 1 << 20, 1);
        assert!(message().contains("read-only"), "{}", message());
        fs::write(sys.path().join("vdb/ro"), "0").unwrap();
        fs::write(sys.path().join("vdb/size"), "8").unwrap();
        assert!(message().contains("4096 bytes"), "{}", message());
    }

    #[test]
    fn fsck_codes_are_read_as_its_manual_says() {
        for code in [0, 1, 2, 3] {
            assert_eq!(fsck_result(Some(code)), FsckResult::Usable);
        }
        for code in [4, 8, 12, 32, 128] {
            assert_eq!(fsck_result(Some(code)), FsckResult::Damaged);
        }
        assert_eq!(fsck_result(None), FsckResult::Damaged);
    }

    #[test]
    fn only_a_worthwhile_difference_grows_the_file_system() {
        assert!(!grows(64 << 30, 64 << 30));
        assert!(!grows(64 << 30, (64 << 30) + 4096));
        assert!(grows(64 << 30, 65 << 30));
        assert!(!grows(64 << 30, 1 << 30));
    }
}
