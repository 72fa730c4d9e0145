//! The guest around the work: its mounts, the port to the host, its end.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::system::RebootCommand;

use crate::bench::files::message::{Message, PORT};
use crate::bench::files::plan::Contender;

/// The guest's only disk.
const DISK: &str = "/dev/vda";

/// The port to the host.
pub(super) struct Port(File);

impl Port {
    /// Tells the host.
    pub(super) fn send(&mut self, message: &Message) -> Result<()> {
        let mut line = serde_json::to_vec(message).context("cannot write a message as JSON")?;
        line.push(b'\n');
        self.0.write_all(&line).context("cannot tell the host")
    }
}

/// Mounts what an init must and opens the port.
pub(super) fn prepare() -> Result<Port> {
    for (kind, at) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/tmp"),
    ] {
        mount(kind, at, kind, MountFlags::empty(), None).with_context(|| format!("cannot mount {at}"))?;
    }
    let ports = Path::new("/sys/class/virtio-ports");
    for entry in fs::read_dir(ports).context("cannot list the virtio ports")? {
        let entry = entry.context("cannot list the virtio ports")?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT {
            let path = Path::new("/dev").join(entry.file_name());
            let file = File::options().write(true).open(&path);
            return file
                .map(Port)
                .with_context(|| format!("cannot open {}", path.display()));
        }
    }
    bail!("there is no virtio port {PORT}")
}

/// Where a file system is mounted.
pub(super) fn mount_point(contender: Contender) -> PathBuf {
    Path::new("/mnt").join(contender.name())
}

/// Mounts a file system as if for the first time: nothing of it is left in any cache of the guest.
pub(super) fn remount(contender: Contender, at: &Path) -> Result<()> {
    fs::create_dir_all(at).with_context(|| format!("cannot make {}", at.display()))?;
    match unmount(at, UnmountFlags::empty()) {
        // It was not mounted.
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot unmount {}", at.display())),
    }
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the caches")?;
    let (source, kind, options) = match contender {
        // As a machine of berth's mounts its disk.
        Contender::Ext4 => (DISK, "ext4", Some(c"discard,errors=remount-ro")),
        shared => (shared.name(), "virtiofs", None),
    };
    mount(source, at, kind, MountFlags::NOATIME, options)
        .with_context(|| format!("cannot mount {source} on {}", at.display()))
}

/// The kernel's release.
pub(super) fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Ends the machine. QEMU is told to take a reset for that.
pub(super) fn power_off() -> ! {
    rustix::fs::sync();
    loop {
        // It does not return; should it fail, the host's patience ends.
        let _ = rustix::system::reboot(RebootCommand::Restart);
        std::thread::sleep(Duration::from_secs(1));
    }
}
