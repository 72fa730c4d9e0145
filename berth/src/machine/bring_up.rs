//! Bringing a machine up, phase by phase, until Docker answers on its socket.

use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use protocol::boot::{GuestEvent, MachineConfig};
use protocol::ports;
use protocol::shares::ShareMount;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};

use super::MTU;
use super::console::Console;
use super::disk::{self, Prepared};
use super::docker_settings;
use super::guest_clock::GuestClock;
use super::guest_files::{self, GuestFiles};
use super::handle::Handle;
use super::link;
use super::live::{Happening, Live};
use super::names;
use super::record::MachineRecord;
use super::state::{Phase, Step};
use super::supervisor::Surroundings;
use crate::api::types::EngineReport;
use crate::config::Config;
use crate::docker::context::{self, ContextSpec, plugins};
use crate::docker::{barrier, binds, client, containers, proxy};
use crate::engine::{self, DiskSpec, EngineExit, MachineSpec, NetSpec, select};
use crate::exit::{Code, Failure, chain, code_of};
use crate::guest::vsock;
use crate::name::MachineName;
use crate::net::{self, Passt, PasstConfig};
use crate::paths::{MachinePaths, home};
use crate::published;
use crate::shares::{choice, time_zone};

/// Why a machine could not be brought up.
#[derive(Debug)]
pub(super) enum StartError {
    /// It ended on the way.
    Ended(EngineExit),
    /// Something else.
    Other(anyhow::Error),
}

impl StartError {
    /// Whether the cause is something the host lacks.
    pub(super) fn host_lacks(&self) -> bool {
        matches!(self, StartError::Other(error) if code_of(error) == Code::Unavailable)
    }
}

impl<E: Into<anyhow::Error>> From<E> for StartError {
    fn from(error: E) -> Self {
        StartError::Other(error.into())
    }
}

/// Brings the machine up. What is there is in `live`, also when this fails or is dropped half-way.
pub(super) async fn bring_up(
    machine: &Arc<Handle>,
    around: &Surroundings,
    console: &Console,
    live: &mut Live,
) -> Result<(), StartError> {
    machine.step(Step::Enter(Phase::Prepare))?;
    let files = GuestFiles::find(&around.guest_dir)
        .map_err(|error| Failure::because(Code::Unavailable, guest_files::explain(error)))?;
    let choice = select::select(machine.settings.engine, &around.config).await?;
    machine.note(format!(
        "engine {}: {}",
        choice.decision.engine, choice.decision.reason
    ));
    // Last: a start that is refused leaves no disk of a size that a later one can no longer choose.
    prepare_disk(machine)?;
    MachineRecord::remember(&machine.paths.record(), &around.chosen)?;
    let shares = offer_shares(machine).await?;

    let network = around.config.network();
    if network {
        machine.step(Step::Enter(Phase::Network))?;
        live.set_passt(start_passt(machine, around).await?);
    }

    machine.step(Step::Enter(Phase::Engine))?;
    let engine_dir = machine.paths.engine_dir();
    std::fs::create_dir_all(&engine_dir)
        .with_context(|| format!("cannot make the directory {}", engine_dir.display()))?;
    let (vsock_device, host) = vmm::virtio::vsock::vsock(ports::GUEST_CID.into())
        .context("cannot make the machine's vsock device")?;
    let mut calls = host
        .listen(ports::BOOT)
        .context("cannot listen for the guest's call")?;
    let emulated = choice.emulated;
    let cmdline = tokio::task::spawn_blocking(move || engine::cmdline::build(emulated))
        .await
        .context("cannot make the kernel's command line")?;
    let mut running = choice
        .engine
        .start(MachineSpec {
            name: machine.name.to_string(),
            kernel: files.kernel,
            cmdline,
            cpus: machine.settings.max_cpus,
            memory_mib: machine.settings.max_memory.mib(),
            disks: vec![
                DiskSpec {
                    path: files.image,
                    read_only: true,
                    serial: "berth-root".into(),
                },
                DiskSpec {
                    path: machine.paths.data_disk(),
                    read_only: false,
                    serial: "berth-data".into(),
                },
            ],
            net: network.then(|| NetSpec {
                mac: net::GUEST_MAC,
                passt_socket: machine.paths.passt_socket(),
            }),
            vsock: Box::new(vsock_device),
            fs: Some(
                machine
                    .shares
                    .device(machine.settings.max_cpus)
                    .context("cannot make the machine's file sharing device")?,
            ),
            console: console.sink(),
            runtime_dir: engine_dir,
            children: Arc::clone(&around.children),
        })
        .await
        .map_err(select::with_code)?;
    {
        let mut facts = machine.facts();
        facts.engine = Some(EngineReport {
            description: running.describe(),
            reason: choice.decision.reason,
        });
        facts.processes = running.process_ids();
    }
    tell_warnings(machine, running.warnings());
    let balloon = running.balloon();
    live.set_engine(running);
    machine.resources.set_balloon(balloon).await?;

    machine.step(Step::Enter(Phase::Kernel))?;
    let call = tokio::select! {
        call = calls.recv() => call.context("the machine's vsock device has ended")?,
        exit = live.exited() => return Err(StartError::Ended(exit)),
    };
    // One call is all there is: what else in the guest connects here is refused from now on.
    drop(calls);
    let docker = docker_settings::settle(&around.config);
    for warning in docker.warnings {
        machine.warn(warning);
    }
    let config = guest_config(machine, &around.config, shares, docker.daemon);
    let search = config.network.as_ref().map(|network| network.search.clone());
    let link = link::greet(call, config).await?;
    tracing::info!(hello = ?link.hello, "the guest called");
    {
        let mut facts = machine.facts();
        facts.hello = Some(link.hello);
        facts.dial = Some(vsock::dial(host));
    }
    // Before dockerd starts, which publishes the ports of containers that start by themselves.
    if let Some(dial) = machine.dial() {
        let published = Arc::clone(&machine.published);
        live.set_ports(published::keep(published, dial, machine.states()));
    }
    live.set_events(link.events);
    // Before Docker starts, whose containers may begin with names.
    if let Some(search) = search {
        live.set_clashes(docker_settings::watch(Arc::downgrade(machine), docker.bridge));
        live.set_names(names::keep(machine, &around.config, search));
    }

    machine.step(Step::Enter(Phase::Guest))?;
    wait_for_docker(machine, live).await?;
    machine.shares.settled();
    // Before the first container can be started.
    live.set_agent(machine.shares.connect_agent(machine).await);
    settle_resources(machine, live).await?;

    machine.step(Step::Enter(Phase::Socket))?;
    open_socket(machine, live).await?;
    follow_containers(machine, live);
    make_context(machine, around);
    machine.step(Step::Ready)?;
    Ok(())
}

/// Passes on what the engine warns of, as long as it does.
fn tell_warnings(machine: &Arc<Handle>, warnings: Option<mpsc::UnboundedReceiver<String>>) {
    let Some(mut warnings) = warnings else {
        return;
    };
    let machine = Arc::clone(machine);
    tokio::spawn(async move {
        while let Some(message) = warnings.recv().await {
            machine.warn(message);
        }
    });
}

fn prepare_disk(machine: &Handle) -> Result<()> {
    let path = machine.paths.data_disk();
    let size = machine.settings.disk;
    match disk::prepare(&path, size)? {
        Prepared::Made => machine.note(format!("made a data disk of {size}")),
        Prepared::Kept => {}
        Prepared::Grown(before) => machine.note(format!("the data disk grows from {before} to {size}")),
        Prepared::StaysLarger(now) => {
            machine.warn(format!(
                "the data disk stays at {now}: a disk cannot be made smaller"
            ));
        }
    }
    Ok(())
}

/// Shows the shares' directories to the guest that is about to start.
async fn offer_shares(machine: &Arc<Handle>) -> Result<Vec<ShareMount>> {
    if let Some(error) = choice::unshared_home(machine.shares.are_configured(), home().as_deref()) {
        machine.warn(format!(
            "your home directory is not shared: {error}. Name what is to be shared in the configuration"
        ));
    }
    let machine = Arc::clone(machine);
    // The directories may be on the network.
    tokio::task::spawn_blocking(move || machine.shares.offer(&machine))
        .await
        .context("cannot look at the shares")
}

/// That the host has no passt, or no network, is no error of this: the network comes when it can, and says so.
async fn start_passt(machine: &Handle, around: &Surroundings) -> Result<Passt> {
    let config = PasstConfig {
        program: around.config.passt().map(Into::into),
        socket: machine.paths.passt_socket(),
        log: machine.paths.passt_log(),
        mtu: MTU,
    };
    Passt::start(&config, &around.children)
        .await
        .map_err(|error| Failure::wrap(Code::Unavailable, error))
}

fn guest_config(
    machine: &Handle,
    config: &Config,
    shares: Vec<ShareMount>,
    docker: serde_json::Map<String, serde_json::Value>,
) -> MachineConfig {
    let certificates = net::ca_certificates::collect(&config.ca_certificates());
    for warning in certificates.warnings {
        machine.warn(warning);
    }
    MachineConfig {
        hostname: machine.name.hostname(),
        network: config.network().then(|| {
            let mut network = net::guest_network();
            network.mtu = MTU;
            network.search = names::search_domains(config);
            network
        }),
        docker,
        shares,
        host_files: time_zone::files(Path::new("/etc")),
        ca_certificates: certificates.pem,
    }
}

async fn wait_for_docker(machine: &Handle, live: &mut Live) -> Result<(), StartError> {
    let mut fatal = None;
    loop {
        let event = match live.next().await {
            Happening::Guest(event) => event,
            Happening::Ended(exit) => {
                let said = live
                    .last_events()
                    .await
                    .into_iter()
                    .find_map(|event| match event {
                        GuestEvent::Fatal { message } => Some(message),
                        _ => None,
                    });
                return Err(match fatal.or(said) {
                    Some(message) => StartError::Other(anyhow::anyhow!("the guest gave up: {message}")),
                    None => StartError::Ended(exit),
                });
            }
            Happening::Network(state) => {
                machine.set_network(state);
                continue;
            }
            // There is none yet.
            Happening::ProxyEnded(_) => continue,
        };
        match event {
            GuestEvent::DockerStarting => {
                // It may be started more than once.
                let _ = machine.step(Step::Enter(Phase::Docker));
            }
            GuestEvent::DockerReady { version } => {
                machine.facts().docker_version = Some(version);
                return Ok(());
            }
            GuestEvent::DockerExited { status, restart_in_ms } => machine.warn(format!(
                "the Docker daemon ended ({status}) and is started again in {restart_in_ms} ms; see `berth logs --source dockerd`"
            )),
            GuestEvent::DataDiskReady { formatted: true } => machine.note("the guest made a file system on its data disk"),
            GuestEvent::ShareFailed { id, message } => machine.shares.failed(&id, message, machine),
            GuestEvent::Warning { message } => machine.warn(format!("guest: {message}")),
            GuestEvent::Fatal { message } => fatal = Some(message),
            event @ (GuestEvent::DataDiskReady { .. }
            | GuestEvent::NetworkReady
            | GuestEvent::ShuttingDown
            | GuestEvent::PoweringOff) => tracing::info!(?event, "guest"),
        }
    }
}

/// Takes from the guest what it is not to have now. One that does not give it runs all the same.
async fn settle_resources(machine: &Handle, live: &mut Live) -> Result<(), StartError> {
    let dial = machine.dial().context("the guest has not called")?;
    tokio::select! {
        settled = machine.resources.settle(dial, machine.states()) => {
            if let Err(error) = settled {
                machine.warn(chain(&error.into()));
            }
            Ok(())
        }
        exit = live.exited() => Err(StartError::Ended(exit)),
    }
}

/// Listens on the Docker socket and sees to it that Docker answers there.
async fn open_socket(machine: &Handle, live: &mut Live) -> Result<()> {
    let path = machine.paths.docker_socket();
    let cannot = || format!("cannot listen on the Docker socket {}", path.display());
    let listener = StdUnixListener::bind(&path).with_context(cannot)?;
    listener.set_nonblocking(true).with_context(cannot)?;
    let listener = UnixListener::from_std(listener).with_context(cannot)?;
    let dial = machine.dial().context("the guest has not called")?;
    let (stop, stopped) = watch::channel(false);
    // The sources first, which may take a while to find: what has changed meanwhile is waited for too.
    let router = binds::router(&machine.shares.sources());
    let router = barrier::behind(router, Arc::new(machine.shares.changes().clone()));
    let clock = GuestClock::new(dial.clone(), machine.states());
    live.set_clock(clock.clone());
    let router = barrier::behind_clock(router, Arc::new(clock));
    live.set_proxy(
        path.clone(),
        stop,
        tokio::spawn(proxy::serve(listener, dial, router, stopped)),
    );
    client::ping(&path)
        .await
        .with_context(|| format!("Docker does not answer on {}", path.display()))
}

/// Keeps the list of running containers, and with it whether any has the guest's network.
fn follow_containers(machine: &Arc<Handle>, live: &mut Live) {
    live.set_containers(containers::keep(
        machine.paths.docker_socket(),
        machine.containers.clone(),
    ));
    let mut list = machine.containers.subscribe();
    let published = Arc::clone(&machine.published);
    tokio::spawn(async move {
        // The sender goes with the machine.
        while list.changed().await.is_ok() {
            let used = list
                .borrow_and_update()
                .iter()
                .any(|container| container.host_network);
            published.set_host_network(used);
        }
    });
}

/// The docker context of a machine.
pub fn context_spec(name: &MachineName, paths: &MachinePaths, config: &Config) -> ContextSpec {
    ContextSpec {
        name: config.context_of(name),
        description: format!("berth machine {name}"),
        socket: paths.docker_socket(),
        record: paths.previous_context(),
    }
}

/// A machine without a context still has its socket, so what fails here is told and no more.
fn make_context(machine: &Handle, around: &Surroundings) {
    if !around.config.create_context() {
        return;
    }
    // berth's own compose and buildx, for a docker client that has none.
    if let Some(own) = client::own_plugins()
        && let Err(error) = plugins::offer(&own)
    {
        machine.warn(chain(&error.into()));
    }
    let spec = context_spec(&machine.name, &machine.paths, &around.config);
    let made = context::create(&spec).and_then(|()| {
        machine.facts().context = Some(spec.name.clone());
        if around.config.switch_context() {
            context::make_current(&spec)
        } else {
            Ok(())
        }
    });
    if let Err(error) = made {
        machine.warn(format!(
            "{}; use DOCKER_HOST=unix://{} instead",
            chain(&error.into()),
            spec.socket.display()
        ));
    }
}
