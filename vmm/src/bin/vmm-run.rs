//! Runs one virtual machine in the foreground: for the lab, for benchmarks, and for whoever works on the hypervisor.
//!
//! It is the hypervisor and nothing else, no async runtime and no daemon, so what it takes to start and to hold in memory
//! is what the hypervisor takes. The serial port is standard output; the report comes on standard error, as JSON.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use vmm::{
    virtio::{
        VirtioDevice, balloon, block, console, net, rng,
        vsock::{self, Vsock},
    },
    vm::{ExitReason, Vm, VmConfig},
};

const USAGE: &str = "\
usage: vmm-run --kernel VMLINUX [options]
       vmm-run --probe [--kvm PATH]      say whether KVM can run a guest
  --initrd FILE         initial RAM disk
  --cmdline TEXT        kernel command line (default: console=ttyS0 reboot=k panic=-1)
  --cpus N              vCPUs (default 1)
  --memory MIB          memory (default 128)
  --kvm PATH            the KVM device (default /dev/kvm)
  --disk FILE[,ro]      a disk (virtio-blk); vda, vdb, ... in order
  --rng                 entropy (virtio-rng)
  --console             a console (virtio-console) that writes to standard output
  --net SOCKET          a network card, connected to passt's or QEMU's stream socket; none: to nothing
  --vsock               a vsock device; a connection to port 1024 gets back what it sends
  --balloon             a balloon with free page reporting
  --report              print a JSON report to standard error at the end
  --report-after MS     ... and one after MS milliseconds
  --kill-after MS       kill the machine after MS milliseconds
  --pause-after MS      pause the machine after MS milliseconds,
  --pause-for MS        and resume it after so many more (default 1000)
  --pauses N            pause so many times (default 1)
Ends with 0 when the guest resets the machine, 2 when it is killed, 1 on any failure.";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vmm-run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    config: VmConfig,
    report: bool,
    report_after: Option<Duration>,
    kill_after: Option<Duration>,
    pause_after: Option<Duration>,
    pause_for: Duration,
    pauses: u32,
}

enum Task {
    Run(Box<Options>),
    Probe(PathBuf),
}

fn run() -> anyhow::Result<ExitCode> {
    let begin = Instant::now();
    stderr_log::install()?;
    let Some(task) = parse(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    };
    let options = match task {
        Task::Run(options) => options,
        Task::Probe(kvm_path) => {
            let report = vmm::probe::probe(&kvm_path);
            println!("{report} (in {} ms)", report.elapsed_us / 1000);
            return Ok(if report.is_usable() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
    };
    let vm = Arc::new(Vm::start(options.config)?);
    let started = begin.elapsed();

    if let Some(delay) = options.pause_after {
        let vm = Arc::clone(&vm);
        let (length, pauses) = (options.pause_for, options.pauses);
        std::thread::spawn(move || {
            for _ in 0..pauses {
                std::thread::sleep(delay);
                let result = vm.pause().and_then(|()| {
                    eprintln!("vmm-run: paused");
                    std::thread::sleep(length);
                    vm.resume()
                });
                match result {
                    Ok(()) => eprintln!("vmm-run: resumed"),
                    Err(error) => return eprintln!("vmm-run: {:#}", anyhow::Error::from(error)),
                }
            }
        });
    }
    if let Some(delay) = options.kill_after {
        let vm = Arc::clone(&vm);
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            vm.kill();
        });
    }
    if let Some(delay) = options.report_after {
        let vm = Arc::clone(&vm);
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            if let Err(error) = report(&vm, started, begin, None) {
                eprintln!("vmm-run: {error:#}");
            }
        });
    }

    let reason = vm.wait();
    if options.report {
        report(&vm, started, begin, Some(&reason))?;
    } else if reason != ExitReason::Reset {
        eprintln!("vmm-run: {reason}");
    }
    Ok(match reason {
        ExitReason::Reset => ExitCode::SUCCESS,
        ExitReason::Killed => ExitCode::from(2),
        ExitReason::InternalError(_) | ExitReason::Stuck { .. } => ExitCode::FAILURE,
    })
}

fn report(vm: &Vm, started: Duration, begin: Instant, reason: Option<&ExitReason>) -> anyhow::Result<()> {
    let exits = vm.exit_counts();
    let memory = vm.memory_beyond_guest().context("cannot read /proc/self/smaps")?;
    let reason = reason.map_or("null".to_owned(), |reason| format!("{:?}", reason.to_string()));
    writeln!(
        io::stderr(),
        "{{\"end\":{reason},\"start_us\":{},\"elapsed_us\":{},\"memory_beyond_guest\":{memory},\
         \"port_exits\":{},\"mmio_reads\":{},\"mmio_writes\":{},\"other_exits\":{}}}",
        started.as_micros(),
        begin.elapsed().as_micros(),
        exits.ports,
        exits.mmio_reads,
        exits.mmio_writes,
        exits.other,
    )?;
    Ok(())
}

/// None: help was asked for.
fn parse(mut args: impl Iterator<Item = String>) -> anyhow::Result<Option<Task>> {
    let mut kernel = None;
    let mut options = Options {
        config: VmConfig {
            kernel: PathBuf::new(),
            initrd: None,
            cmdline: "console=ttyS0 reboot=k panic=-1".into(),
            cpus: 1,
            memory_mib: 128,
            devices: Vec::new(),
            serial_output: Box::new(io::stdout()),
            kvm_path: "/dev/kvm".into(),
        },
        report: false,
        report_after: None,
        kill_after: None,
        pause_after: None,
        pause_for: Duration::from_secs(1),
        pauses: 1,
    };
    let mut probe = false;
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .with_context(|| format!("{arg} needs a value\n{USAGE}"))
        };
        match arg.as_str() {
            "--kernel" => kernel = Some(value()?),
            "--initrd" => options.config.initrd = Some(value()?.into()),
            "--cmdline" => options.config.cmdline = value()?,
            "--cpus" => options.config.cpus = number(&arg, &value()?)?,
            "--memory" => options.config.memory_mib = number(&arg, &value()?)?,
            "--kvm" => options.config.kvm_path = value()?.into(),
            "--probe" => probe = true,
            "--report" => options.report = true,
            "--report-after" => options.report_after = Some(milliseconds(&arg, &value()?)?),
            "--kill-after" => options.kill_after = Some(milliseconds(&arg, &value()?)?),
            "--pause-after" => options.pause_after = Some(milliseconds(&arg, &value()?)?),
            "--pause-for" => options.pause_for = milliseconds(&arg, &value()?)?,
            "--pauses" => options.pauses = number(&arg, &value()?)?,
            "--help" | "-h" => return Ok(None),
            _ => {
                let Some(device) = device(&arg, &mut value)? else {
                    bail!("unknown option {arg}\n{USAGE}");
                };
                options.config.devices.push(device);
            }
        }
    }
    if probe {
        return Ok(Some(Task::Probe(options.config.kvm_path)));
    }
    options.config.kernel = kernel
        .with_context(|| format!("--kernel is needed\n{USAGE}"))?
        .into();
    Ok(Some(Task::Run(Box::new(options))))
}

/// The device that an option asks for; none: it is no device option.
fn device(
    option: &str,
    value: &mut dyn FnMut() -> anyhow::Result<String>,
) -> anyhow::Result<Option<Box<dyn VirtioDevice>>> {
    Ok(Some(match option {
        "--disk" => {
            let text = value()?;
            let (path, read_only) = match text.strip_suffix(",ro") {
                Some(path) => (path, true),
                None => (text.as_str(), false),
            };
            Box::new(block::Block::open(block::BlockConfig {
                path: path.into(),
                read_only,
                serial: "vmm-run".into(),
                queues: 1,
            })?)
        }
        "--rng" => Box::new(rng::Rng::new()),
        "--net" => {
            let path = value()?;
            let (device, link) = net::net([0x52, 0x54, 0, 0x62, 0x74, 0x68])?;
            if path != "none" {
                let stream =
                    UnixStream::connect(&path).with_context(|| format!("cannot connect to {path}"))?;
                link.attach(Some(stream))?;
            }
            Box::new(device)
        }
        "--vsock" => Box::new(echoing_vsock()?),
        "--balloon" => {
            let config = balloon::BalloonConfig {
                free_page_reporting: true,
                deflate_on_oom: true,
            };
            Box::new(balloon::balloon(config)?.0)
        }
        "--console" => Box::new(console::console(Box::new(io::stdout()))?.0),
        _ => return Ok(None),
    }))
}

/// A vsock device with a host that echoes, to measure it by.
fn echoing_vsock() -> anyhow::Result<Vsock> {
    const GUEST_CID: u64 = 3;
    const PORT: u32 = 1024;
    let (device, host) = vsock::vsock(GUEST_CID)?;
    let mut connections = host.listen(PORT)?;
    std::thread::spawn(move || {
        // The host's end lives as long as this thread: the process.
        let _host = host;
        while let Some(connection) = connections.blocking_recv() {
            std::thread::spawn(move || {
                let mut output = &connection;
                if let Err(error) = io::copy(&mut &connection, &mut output) {
                    eprintln!("vmm-run: echo on vsock: {error}");
                }
                // The guest sees the end of its own stream come back.
                let _ = connection.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    Ok(device)
}

fn number<T: std::str::FromStr>(option: &str, text: &str) -> anyhow::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse()
        .with_context(|| format!("{option} takes a number, not {text:?}"))
}

fn milliseconds(option: &str, text: &str) -> anyhow::Result<Duration> {
    Ok(Duration::from_millis(number(option, text)?))
}

/// Warnings and errors of the library, on standard error.
mod stderr_log {
    use std::fmt::Write;

    use tracing::{
        Event, Level, Metadata, Subscriber,
        field::{Field, Visit},
        span,
    };

    pub(super) fn install() -> anyhow::Result<()> {
        Ok(tracing::subscriber::set_global_default(Stderr)?)
    }

    struct Stderr;

    impl Subscriber for Stderr {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= Level::WARN
        }
        fn event(&self, event: &Event<'_>) {
            let mut line = Line(String::new());
            event.record(&mut line);
            eprintln!("{}: {}", event.metadata().level(), line.0);
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            // Writing to a string does not fail.
            let _ = match field.name() {
                "message" => write!(self.0, "{value:?} "),
                name => write!(self.0, "{name}={value:?} "),
            };
        }
        fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
            let _ = write!(self.0, "{}={value}", field.name());
            let mut source = value.source();
            while let Some(error) = source {
                let _ = write!(self.0, ": {error}");
                source = error.source();
            }
            self.0.push(' ');
        }
    }
}
