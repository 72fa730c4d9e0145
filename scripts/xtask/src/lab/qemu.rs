//! The outer machine as QEMU's command line. Figures and reasons: `docs/lab.md`.

use std::os::fd::RawFd;
use std::path::Path;
use std::process::Command;

use super::clock;
use super::root::LabRoot;

/// What TCG does not emulate is left out by name: QEMU would leave it out by itself, with a warning for each.
const CPU: &str = "EPYC,+svm,+npt,-fxsr-opt,-misalignsse,-osvw,-topoext,-nrip-save,-xsavec";

/// Size and kind of the outer machine.
pub(super) struct Machine {
    pub(super) cpus: u8,
    pub(super) memory_mib: u32,
    /// One nanosecond of virtual time for every instruction.
    pub(super) count_instructions: bool,
    /// More for the kernel's command line.
    pub(super) append: Option<String>,
}

/// The files and descriptors one run hands to QEMU.
pub(super) struct Attachments<'a> {
    pub(super) payload: &'a Path,
    pub(super) scratch: &'a Path,
    pub(super) console: &'a Path,
    /// Connected sockets that QEMU inherits, each the other end of the named virtio port.
    pub(super) ports: &'a [(&'a str, RawFd)],
}

impl Machine {
    /// The whole command line.
    pub(super) fn command(&self, root: &LabRoot, attachments: &Attachments<'_>) -> Command {
        let mut command = root.program("usr/bin/qemu-system-x86_64");
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.tools(firmware));
        }
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-name", "berth-lab", "-M", "q35", "-cpu", CPU]);
        command.args(["-m", &self.memory_mib.to_string(), "-smp", &self.cpus.to_string()]);
        if self.count_instructions {
            command.args(["-accel", "tcg,thread=single,tb-size=1024", "-icount", "shift=0"]);
        } else {
            command.args(["-accel", "tcg,thread=multi,tb-size=1024"]);
        }
        command
            .arg("-kernel")
            .arg(root.kernel())
            .arg("-initrd")
            .arg(root.initramfs());
        // Mitigations protect nobody here and cost emulated instructions on every system call.
        let mut parameters = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable".to_owned();
        // Counted instructions are a clock of their own, which the kernel measures well.
        if let Some(khz) = clock::tsc_khz().filter(|_| !self.count_instructions) {
            parameters.push_str(&format!(" tsc_early_khz={khz}"));
        }
        if let Some(more) = &self.append {
            parameters.push(' ');
            parameters.push_str(more);
        }
        command.args(["-append", &parameters]);
        command.args([
            "-chardev",
            &format!("file,id=console,path={}", escape(attachments.console)),
        ]);
        command.args(["-serial", "chardev:console"]);
        let disks = [
            ("lab-root", root.image(), "on"),
            ("lab-payload", attachments.payload.to_owned(), "on"),
            ("lab-scratch", attachments.scratch.to_owned(), "off"),
        ];
        for (serial, path, read_only) in disks {
            command.args([
                "-drive",
                &format!(
                    "if=none,id={serial},file={},format=raw,cache=unsafe,discard=unmap,readonly={read_only}",
                    escape(&path)
                ),
                "-device",
                &format!("virtio-blk-pci,drive={serial},serial={serial}"),
            ]);
        }
        command.args(["-device", "virtio-serial-pci,max_ports=8"]);
        for (name, descriptor) in attachments.ports {
            command.args([
                "-chardev",
                &format!("socket,id={name},fd={descriptor}"),
                "-device",
                &format!("virtserialport,chardev={name},name={name}"),
            ]);
        }
        // A network that is there but leads nowhere: runs do not depend on what is outside.
        command.args([
            "-netdev",
            "user,id=net,restrict=on",
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
        ]);
        command.args(["-device", "virtio-rng-pci"]);
        command
    }
}

/// QEMU's options end at a comma; a comma in a value is written twice.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
