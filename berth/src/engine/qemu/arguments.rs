//! QEMU's command line.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use vmm::virtio::VirtioDevice;

use super::super::{DiskSpec, MachineSpec, NetSpec};

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// Pure emulation.
    Tcg,
    /// Linux KVM.
    Kvm,
}

impl Accelerator {
    /// Its name, as QEMU has it.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Tcg => "tcg",
            Accelerator::Kvm => "kvm",
        }
    }

    fn option(self) -> &'static str {
        match self {
            // A thread per virtual CPU. The translated code of a whole Docker daemon does not fit the default cache of a
            // small machine; only what is used of it takes memory.
            Accelerator::Tcg => "tcg,thread=multi,tb-size=512",
            Accelerator::Kvm => "kvm",
        }
    }

    /// The processor. What copies bytes by one instruction for all of them (ERMS, FSRM) is the fastest way of a real processor, so
    /// Linux and libc take it where it is there; TCG goes through it byte by byte, three times as slowly as through a loop of moves.
    fn cpu(self, version: (u32, u32, u32)) -> &'static str {
        match self {
            // TCG of QEMU 7.2 fails on cmpxchg16b, which Linux uses where it is there; 10.0 is known to do it right.
            Accelerator::Tcg if version < (10, 0, 0) => "max,-erms,-fsrm,-cx16",
            Accelerator::Tcg => "max,-erms,-fsrm",
            Accelerator::Kvm => "host",
        }
    }

    /// What the guest's kernel is told besides: not to take the string instructions for fast either, which it does by the
    /// processor's model.
    fn cmdline(self, version: (u32, u32, u32)) -> &'static str {
        match self {
            // TCG of QEMU 7.2 finds what it has translated by the address it is at, so a program at another address is all
            // translated anew. Without random addresses it is at the same every time, which makes starting one five times as
            // fast. 10.0 is known to find it wherever it is.
            Accelerator::Tcg if version < (10, 0, 0) => " clearcpuid=rep_good norandmaps",
            Accelerator::Tcg => " clearcpuid=rep_good",
            Accelerator::Kvm => "",
        }
    }
}

/// The sockets on which QEMU finds the daemon.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sockets<'a> {
    pub(super) qmp: &'a Path,
    pub(super) vsock: &'a Path,
    pub(super) fs: &'a Path,
}

/// QEMU's name for the disk that is number `index` of the machine's.
pub(super) fn drive_name(index: usize) -> String {
    format!("disk{index}")
}

/// The arguments for a machine.
pub(super) fn arguments(
    version: (u32, u32, u32),
    accelerator: Accelerator,
    spec: &MachineSpec,
    sockets: Sockets<'_>,
) -> Vec<OsString> {
    let mut line = Line::default();
    line.option("-name", Words::new("guest=").escaped(spec.name.as_bytes()));
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.option("-display", "none");
    // A reset is the end: the guest powers off by one, and a panicking kernel resets too.
    line.flag("-no-reboot");
    line.option(
        "-machine",
        // No ACPI: devices are on the command line, as on the kvm engine. QEMU adds them to it. The PIT and the PIC are
        // what an emulated CPU's time stamp counter is calibrated against, the RTC spares the kernel a long probe.
        "microvm,memory-backend=ram,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on,auto-kernel-cmdline=on",
    );
    line.option("-accel", accelerator.option());
    line.option("-cpu", accelerator.cpu(version));
    line.option("-smp", spec.cpus.to_string());
    let memory = spec.memory_mib;
    line.option("-m", format!("{memory}M"));
    // Shared, because some devices are served by another process.
    line.option(
        "-object",
        format!("memory-backend-memfd,id=ram,size={memory}M,share=on"),
    );
    line.option("-kernel", Words::new("").raw(spec.kernel.as_os_str().as_bytes()));
    line.option(
        "-append",
        format!("{}{}", spec.cmdline, accelerator.cmdline(version)),
    );

    // The early console and panics on the 8250, everything else on virtio-console: one stream, as it happens.
    line.option("-chardev", "stdio,id=console,mux=on,signal=off");
    line.option("-serial", "chardev:console");
    line.option("-device", "virtio-serial-device,max_ports=1");
    line.option("-device", "virtconsole,chardev=console");

    line.option(
        "-chardev",
        Words::new("socket,id=qmp,path=").escaped(sockets.qmp.as_os_str().as_bytes()),
    );
    line.option("-mon", "chardev=qmp,mode=control");

    // QEMU puts virtio-mmio devices on the kernel's command line in the order in which they are given here, and Linux
    // names disks in that order: seen with 7.2 and 10.0.
    for (index, disk) in spec.disks.iter().enumerate() {
        line.disk(index, disk);
    }
    if let Some(net) = &spec.net {
        line.net(net);
    }
    line.option(
        "-chardev",
        Words::new("socket,id=vsock,path=").escaped(sockets.vsock.as_os_str().as_bytes()),
    );
    line.option("-device", "vhost-user-vsock-device,chardev=vsock");
    if let Some(fs) = &spec.fs {
        line.fs(&**fs, sockets.fs);
    }
    line.option("-device", "virtio-rng-device");
    line.option(
        "-device",
        "virtio-balloon-device,free-page-reporting=on,deflate-on-oom=on",
    );
    line.0
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn option(&mut self, name: &str, value: impl Into<Words>) {
        self.0.push(name.into());
        self.0.push(OsString::from_vec(value.into().0));
    }

    fn disk(&mut self, index: usize, disk: &DiskSpec) {
        let id = drive_name(index);
        let read_only = if disk.read_only { "on" } else { "off" };
        // The host's page cache is used and the guest's flushes reach the disk. A full host disk is an I/O error in the
        // guest; QEMU's own choice would be to stop the machine.
        self.option(
            "-drive",
            Words::new(&format!(
                "if=none,id={id},format=raw,cache=writeback,discard=unmap,readonly={read_only},file="
            ))
            .escaped(disk.path.as_os_str().as_bytes()),
        );
        let discard = if disk.read_only { "off" } else { "on" };
        self.option(
            "-device",
            Words::new(&format!(
                "virtio-blk-device,drive={id},discard={discard},write-zeroes={discard},\
                 rerror=report,werror=report,serial="
            ))
            .escaped(disk.serial.as_bytes()),
        );
    }

    /// QEMU shows the guest a configuration space of its own, so it is told what the device's says (virtio 1.2, 5.11.4).
    fn fs(&mut self, fs: &dyn VirtioDevice, socket: &Path) {
        let mut tag = [0; 36];
        fs.read_config(0, &mut tag);
        let tag = tag.split(|byte| *byte == 0).next().unwrap_or_default();
        let request_queues = fs.queue_max_sizes().len().saturating_sub(1);
        let queue_size = fs.queue_max_sizes().last().copied().unwrap_or_default();
        self.option(
            "-chardev",
            Words::new("socket,id=fs,path=").escaped(socket.as_os_str().as_bytes()),
        );
        self.option(
            "-device",
            Words::new(&format!(
                "vhost-user-fs-device,chardev=fs,num-request-queues={request_queues},queue-size={queue_size},tag="
            ))
            .escaped(tag),
        );
    }

    fn net(&mut self, net: &NetSpec) {
        self.option(
            "-netdev",
            Words::new("stream,id=net,server=off,addr.type=unix,addr.path=")
                .escaped(net.passt_socket.as_os_str().as_bytes()),
        );
        let mac: Vec<String> = net.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        self.option(
            "-device",
            format!("virtio-net-device,netdev=net,mac={}", mac.join(":")),
        );
    }
}

/// One argument.
struct Words(Vec<u8>);

impl Words {
    fn new(text: &str) -> Self {
        Words(text.as_bytes().to_vec())
    }

    /// Adds bytes as the value of an option in a list: commas are doubled there.
    fn escaped(mut self, value: &[u8]) -> Self {
        for byte in value {
            self.0.push(*byte);
            if *byte == b',' {
                self.0.push(b',');
            }
        }
        self
    }

    fn raw(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }
}

impl From<String> for Words {
    fn from(text: String) -> Self {
        Words(text.into_bytes())
    }
}

impl From<&str> for Words {
    fn from(text: &str) -> Self {
        Words::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_are_not_taken_for_options() {
        let mut line = Line::default();
        line.disk(
            0,
            &DiskSpec {
                path: "/a,readonly=off/b".into(),
                read_only: true,
                serial: "s".into(),
            },
        );
        assert!(
            line.0[1]
                .to_str()
                .unwrap()
                .ends_with("readonly=on,file=/a,,readonly=off/b")
        );
    }

    struct Shares;

    impl VirtioDevice for Shares {
        fn device_id(&self) -> u32 {
            26
        }
        fn queue_max_sizes(&self) -> &[u16] {
            &[128, 1024, 1024]
        }
        fn features(&self) -> u64 {
            0
        }
        fn read_config(&self, offset: u64, data: &mut [u8]) {
            vmm::virtio::device::read_config_bytes(b"a,tag", offset, data);
        }
        fn activate(&mut self, _: vmm::virtio::Activation) -> Result<(), vmm::virtio::ActivateError> {
            Ok(())
        }
        fn deactivate(&mut self) {}
    }

    #[test]
    fn qemu_is_told_what_the_device_says_of_itself() {
        let mut line = Line::default();
        line.fs(&Shares, Path::new("/a,b/fs.sock"));
        let words: Vec<&str> = line.0.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(
            words,
            [
                "-chardev",
                "socket,id=fs,path=/a,,b/fs.sock",
                "-device",
                "vhost-user-fs-device,chardev=fs,num-request-queues=2,queue-size=1024,tag=a,,tag",
            ]
        );
    }

    #[test]
    fn only_old_emulation_goes_without_random_addresses() {
        assert_eq!(
            Accelerator::Tcg.cmdline((7, 2, 19)),
            " clearcpuid=rep_good norandmaps"
        );
        assert_eq!(Accelerator::Tcg.cmdline((10, 0, 0)), " clearcpuid=rep_good");
        assert_eq!(Accelerator::Kvm.cmdline((7, 2, 19)), "");
    }

    #[test]
    fn only_old_emulation_goes_without_cmpxchg16b() {
        assert_eq!(Accelerator::Tcg.cpu((7, 2, 22)), "max,-erms,-fsrm,-cx16");
        assert_eq!(Accelerator::Tcg.cpu((10, 0, 0)), "max,-erms,-fsrm");
        assert_eq!(Accelerator::Kvm.cpu((7, 2, 0)), "host");
    }
}
