//! The machine: QEMU's microvm, emulated, as berth's qemu engine starts it, with all file systems attached.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::results::Results;
use super::servers::Server;
use super::tools::Tools;
use crate::bench::files::message::{Message, PORT};
use crate::program::{Program, Running, end};

/// How long nothing may come from the guest: the longest row, many times over.
const PATIENCE: Duration = Duration::from_secs(300);
/// A machine of berth's has no more; requests of 1 MiB need them.
const QUEUE_SIZE: u16 = 1024;

/// What it is made of.
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) append: &'a str,
    pub(super) disk: Option<&'a Path>,
    pub(super) cpus: u8,
    pub(super) memory_mib: u32,
    /// What the kernel says goes here.
    pub(super) console: PathBuf,
}

/// What the guest said of itself.
pub(super) struct Guest {
    pub(super) kernel: String,
    pub(super) git: Option<String>,
}

impl Machine<'_> {
    /// Runs it to its end.
    pub(super) fn run(&self, tools: &Tools, servers: &[Server], results: &mut Results) -> Result<Guest> {
        // An open stdin: at its end QEMU takes the port to be closed, and the guest could write no more.
        let qemu = self.program(tools, servers).piped().bound_to_caller().spawn()?;
        self.listen(&qemu, servers, results).with_context(|| {
            let console = fs::read(&self.console).unwrap_or_default();
            let mut text = format!(
                "the guest's console:\n{}",
                end(&String::from_utf8_lossy(&console))
            );
            for server in servers {
                text += &format!("\n{}: {}", server.line, end(&server.said()));
            }
            text + "\nQEMU: " + &end(&String::from_utf8_lossy(&qemu.stderr.bytes()))
        })
    }

    /// Takes in what the guest says until it is done.
    fn listen(&self, qemu: &Running, servers: &[Server], results: &mut Results) -> Result<Guest> {
        let mut guest = None;
        let mut begin = Instant::now();
        let mut from = 0;
        loop {
            let to = qemu.stdout.wait_for("\n", from, PATIENCE)?;
            let bytes = qemu.stdout.bytes();
            let line = bytes.get(from..to).unwrap_or_default();
            from = to;
            let message = serde_json::from_slice(line)
                .with_context(|| format!("the guest said {:?}", String::from_utf8_lossy(line)))?;
            match message {
                Message::Ready { kernel, git } => {
                    begin = Instant::now();
                    guest = Some(Guest { kernel, git });
                }
                Message::Began { round, group } => eprintln!("round {}: {group:?}", round + 1),
                Message::Sample {
                    contender, row, ms, ..
                } => results.add(contender, &row, ms),
                Message::Failed { message } => bail!("in the guest: {message}"),
                Message::Done { ms } => {
                    results.finish(begin.elapsed(), Duration::from_secs_f64(ms / 1000.0));
                    // Before they end with the machine.
                    for server in servers {
                        results.add_processor_time(server.contender, server.processor_time()?);
                    }
                    return guest.context("the guest has not said that it is there");
                }
            }
        }
    }

    fn program(&self, tools: &Tools, servers: &[Server]) -> Program {
        let memory = self.memory_mib;
        let mut qemu = tools
            .qemu()
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args([
                "-machine",
                "microvm,memory-backend=ram,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on,auto-kernel-cmdline=on",
            ])
            .args(["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"])
            .args(["-smp", &self.cpus.to_string(), "-m", &format!("{memory}M")])
            .args([
                "-object",
                &format!("memory-backend-memfd,id=ram,size={memory}M,share=on"),
            ])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .arg("-append")
            .arg(format!(
                "earlycon=uart8250,io,0x3f8 console=ttyS0 panic=-1 reboot=k,t random.trust_cpu=on {}",
                self.append
            ))
            .args(["-chardev", &format!("file,id=console,path={}", escape(&self.console))])
            .args(["-serial", "chardev:console"])
            .args(["-device", "virtio-serial-device"])
            .args(["-chardev", &format!("stdio,id={PORT},signal=off")])
            .args(["-device", &format!("virtserialport,chardev={PORT},name={PORT}")])
            .args(["-device", "virtio-rng-device"]);
        if let Some(disk) = self.disk {
            let disk = escape(disk);
            qemu = qemu
                .args([
                    "-drive",
                    &format!("if=none,id=disk,format=raw,cache=writeback,discard=unmap,file={disk}"),
                ])
                .args([
                    "-device",
                    "virtio-blk-device,drive=disk,discard=on,write-zeroes=on",
                ]);
        }
        for server in servers {
            let (tag, queues) = (server.contender.name(), server.queues);
            qemu = qemu
                .args([
                    "-chardev",
                    &format!("socket,id={tag},path={}", escape(&server.socket)),
                ])
                .args([
                    "-device",
                    &format!(
                        "vhost-user-fs-device,chardev={tag},tag={tag},num-request-queues={queues},queue-size={QUEUE_SIZE}"
                    ),
                ]);
        }
        qemu
    }
}

/// QEMU's options end at a comma; a comma in a value is written twice.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
