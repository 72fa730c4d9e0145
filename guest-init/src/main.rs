//! guest-init: PID 1 and agent of a berth guest.
//!
//! It mounts what a Linux system needs, calls the host to learn which machine it is, sets up network and data disk, runs
//! dockerd, serves the host over vsock, reaps orphans, and ends the machine in order. There is no other service manager,
//! no udev and no login: what is not in this program does not happen.
//!
//! One thread runs everything asynchronous; what may take long on a disk has threads of its own. Nothing here may end
//! the process, because the kernel panics when PID 1 ends: panics unwind (`[profile.guest]`), a task that panics is
//! reported and the others go on, and whatever else happens ends in a power-off.

mod async_fd;
mod certificates;
mod cgroups;
mod clock;
mod console;
mod cpus;
mod data_disk;
mod dns;
mod docker;
mod etc_files;
mod host_link;
mod lock;
mod mounts;
mod network;
mod page_cache;
mod published;
mod reaper;
mod replay;
mod resolv_conf;
mod rlimits;
mod root;
mod services;
mod shares;
mod shutdown;
mod status;
mod sysctl;
mod tool;

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use protocol::boot::{GuestEvent, HostHello, MachineConfig};
use protocol::ports;
use protocol::shares::HOST_FILES;
use tokio::sync::mpsc;
use tokio_vsock::{VsockAddr, VsockStream};

use crate::console::{error, notice, warning};
use crate::dns::Upstream;
use crate::docker::Docker;
use crate::host_link::{Events, Hello, HostLink};
use crate::published::{Ports, client_address, requests};
use crate::reaper::Reaper;
use crate::replay::Replay;
use crate::resolv_conf::ResolvConf;
use crate::root::Root;
use crate::services::control;
use crate::shares::Shares;
use crate::shutdown::{Shutdown, ShutdownRequests};

fn main() -> ExitCode {
    if published::proxy::is_meant(std::env::args_os().next().as_deref()) {
        return published::proxy::run();
    }
    if std::process::id() != 1 {
        eprintln!(
            "guest-init {}: this is the init of a berth guest and runs only as its process 1",
            env!("CARGO_PKG_VERSION")
        );
        return ExitCode::from(2);
    }
    console::report_panics();
    // The hook has said why. The end is the same whether it went well or not.
    let _ = catch_unwind(AssertUnwindSafe(live));
    shutdown::power_off()
}

/// The life of the machine; it returns when it is time to power off.
fn live() {
    let root = mounts::mount_all();
    console::open();
    console::configure();
    notice!(
        "version {}, {} ms after the kernel's start",
        env!("CARGO_PKG_VERSION"),
        clock::uptime().as_millis()
    );
    cgroups::set_up();
    rlimits::raise();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(32)
        .thread_keep_alive(Duration::from_secs(2))
        .build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(serve(root));
            // Whatever blocks a thread now is of no further interest.
            runtime.shutdown_background();
            ended
        }
        Err(e) => Err(e).context("cannot start the event loop"),
    };
    if let Err(e) = ended {
        error!("{e:#}");
    }
}

/// What all parts share.
#[derive(Debug, Clone)]
struct Machine {
    docker: Arc<Docker>,
    reaper: Arc<Reaper>,
    events: Events,
    shutdown: Shutdown,
    data_disk_mounted: Arc<AtomicBool>,
    shares: Arc<Shares>,
    published: Arc<Ports>,
    resolv_conf: Arc<ResolvConf>,
    names: Arc<Upstream>,
}

async fn serve(root: Root) -> anyhow::Result<()> {
    let (shutdown, requests) = Shutdown::new();
    shutdown.obey_signals().context("cannot handle signals")?;
    let reaper = Reaper::new(true);
    tokio::spawn(reaper.start().context("cannot handle SIGCHLD")?);
    let (events, link) = HostLink::new();
    let machine = Machine {
        docker: Docker::new(),
        reaper,
        published: Ports::new(events.clone()),
        events,
        shutdown,
        data_disk_mounted: Arc::default(),
        shares: Shares::new(root),
        resolv_conf: ResolvConf::new(Path::new(etc_files::DIRECTORY)),
        names: Upstream::new(),
    };

    // Before the hello: the host may call as soon as it has it.
    if let Err(e) = machine.start_services() {
        error!("{e:#}; the host cannot use this machine");
    }
    let (said, hellos) = mpsc::unbounded_channel();
    tokio::spawn(link.run(
        || VsockStream::connect(VsockAddr::new(ports::HOST_CID, ports::BOOT)),
        move |hello| {
            if let Ok(hello) = &hello {
                set_clock(hello);
            }
            // The first is waited for; the receiver is gone when the machine ends.
            let _ = said.send(hello);
        },
    ));
    machine.run(hellos, requests).await;
    Ok(())
}

impl Machine {
    /// Begins to listen on every port, then serves them.
    fn start_services(&self) -> anyhow::Result<()> {
        let listen =
            |port: u32| services::listen(port).with_context(|| format!("cannot listen on vsock port {port}"));
        let (control, docker, exec, logs, replay, publish, forward) = (
            listen(ports::CONTROL)?,
            listen(ports::DOCKER)?,
            listen(ports::EXEC)?,
            listen(ports::LOGS)?,
            listen(ports::REPLAY)?,
            listen(ports::PUBLISH)?,
            listen(ports::FORWARD)?,
        );
        let context = control::Context {
            docker: self.docker.clone(),
            data_disk_mounted: self.data_disk_mounted.clone(),
            shares: self.shares.clone(),
            resolv_conf: self.resolv_conf.clone(),
            shutdown: self.shutdown.clone(),
        };
        tokio::spawn(services::accept("CONTROL", control, move |stream| {
            control::serve(stream, context.clone())
        }));
        tokio::spawn(services::accept("DOCKER", docker, |stream| {
            services::docker::serve(stream, Path::new(docker::config::SOCKET))
        }));
        let reaper = self.reaper.clone();
        tokio::spawn(services::accept("EXEC", exec, move |stream| {
            services::exec::serve(stream, reaper.clone())
        }));
        let docker = self.docker.clone();
        tokio::spawn(services::accept("LOGS", logs, move |stream| {
            let docker = docker.clone();
            async move { services::logs::serve(stream, &docker).await }
        }));
        let names = self.names.clone();
        tokio::spawn(services::accept("DNS", listen(ports::DNS)?, move |stream| {
            dns::serve(stream, names.clone())
        }));
        let agent = Replay::new();
        tokio::spawn(services::accept("REPLAY", replay, move |stream| {
            services::replay::serve(stream, agent.clone())
        }));
        let (host, published) = (self.published.clone(), self.published.clone());
        requests::start(Path::new(requests::SOCKET), published.clone())
            .with_context(|| format!("cannot listen on {}", requests::SOCKET))?;
        tokio::spawn(services::accept("PUBLISH", publish, move |stream| {
            services::publish::serve(stream, host.clone())
        }));
        tokio::spawn(services::accept("FORWARD", forward, move |stream| {
            services::forward::serve(stream, published.clone())
        }));
        Ok(())
    }

    /// Sets the machine up once the host has said how, and shuts it down when asked.
    async fn run(self, mut hellos: mpsc::UnboundedReceiver<Hello>, mut requests: ShutdownRequests) {
        let machine = self.clone();
        let setting_up = tokio::spawn(async move {
            let Some(hello) = hellos.recv().await else { return };
            match hello {
                Ok(hello) => {
                    if let Err(e) = machine.set_up(&hello.config).await {
                        machine.give_up(&format!("{e:#}")).await;
                    }
                }
                // The host has been told already.
                Err(message) => machine.shutdown.request(message, Duration::ZERO),
            }
            // A daemon that takes over changes nothing; one of another version must not end the machine.
            while hellos.recv().await.is_some() {
                notice!("the host has called back");
            }
        });
        let cause = requests.next().await;
        setting_up.abort();
        let ending = tokio::spawn(shutdown::run(cause, self.docker, self.reaper, self.events));
        if ending.await.is_err() {
            error!("the shutdown failed, powering off without it");
        }
    }

    /// Makes this guest the machine that `config` describes.
    async fn set_up(&self, config: &MachineConfig) -> anyhow::Result<()> {
        etc_files::write_all(Path::new(etc_files::DIRECTORY), config)?;
        self.resolv_conf.set_up(config.network.as_ref())?;
        if let Err(e) = etc_files::write_host_files(Path::new(HOST_FILES), &config.host_files) {
            self.warn(format!("containers cannot have the host's time zone: {e:#}"));
        }
        rustix::system::sethostname(config.hostname.as_bytes()).context("cannot set the host name")?;
        sysctl::apply_all();
        if let Err(e) = network::bring_up_loopback() {
            self.warn(format!("{e:#}"));
        }
        if let Some(network) = &config.network {
            match network::configure(network) {
                Ok(()) => {
                    notice!("network is up");
                    self.events.send(GuestEvent::NetworkReady);
                    let machine = self.clone();
                    tokio::spawn(async move { machine.keep_clients().await });
                }
                Err(e) => self.warn(format!("the guest has no network: {e:#}")),
            }
            for &address in &network.dns {
                if let Err(e) = self.serve_names(address).await {
                    self.warn(format!("containers cannot resolve names: {e:#}"));
                }
            }
        }
        let formatted = data_disk::set_up(&self.reaper).await?;
        self.data_disk_mounted.store(true, Ordering::Relaxed);
        notice!("data disk is mounted");
        self.events.send(GuestEvent::DataDiskReady { formatted });
        tokio::spawn(page_cache::give_back());
        // Before dockerd, which starts containers that want them; after the data disk, whose `/root` a share may cover.
        self.shares.mount_all(&config.shares, &self.events).await;
        docker::start(
            self.docker.clone(),
            self.reaper.clone(),
            self.events.clone(),
            config,
        )
    }

    /// Has containers see the addresses of who connects to their published ports. Nobody waits for it: no container runs yet.
    async fn keep_clients(&self) {
        match client_address::set_up(&self.reaper).await {
            Ok(()) => self.published.keep_clients(),
            Err(e) => self.warn(format!(
                "containers do not see the addresses of who connects to their published ports: {e:#}"
            )),
        }
    }

    async fn serve_names(&self, address: IpAddr) -> anyhow::Result<()> {
        network::add_own_address(address)?;
        dns::start(address, &self.names).await
    }

    /// Reports what the user should know and the machine can live with.
    fn warn(&self, message: String) {
        warning!("{message}");
        self.events.send(GuestEvent::Warning { message });
    }

    /// Reports why the machine cannot do its job, and ends it.
    async fn give_up(&self, why: &str) {
        error!("{why}");
        self.events.send(GuestEvent::Fatal { message: why.into() });
        self.events.flush().await;
        self.shutdown
            .request("the machine cannot do its job", Duration::ZERO);
    }
}

fn set_clock(hello: &HostHello) {
    if let Err(e) = clock::set(hello.unix_time_ns) {
        warning!("cannot set the clock: {e}");
    }
}
