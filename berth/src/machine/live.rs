//! What a machine that is up consists of, and waiting for any part of it to end.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use protocol::boot::GuestEvent;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::docker_settings::ClashWatch;
use super::guest_clock::GuestClock;
use super::names::NamesKeeper;
use super::shares::AgentKeeper;
use crate::docker::containers::ContainersKeeper;
use crate::docker::proxy::ProxyError;
use crate::engine::{EngineExit, RunningEngine};
use crate::net::{NetworkState, Passt};
use crate::published::PortsKeeper;

/// How long a machine that has ended may take to hand over the guest's last words.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The parts of a machine, as far as they are there. Dropping it ends them all, the hard way.
#[derive(Default)]
pub(super) struct Live {
    engine: Option<Box<dyn RunningEngine>>,
    engine_exit: Option<watch::Receiver<Option<EngineExit>>>,
    events: Option<mpsc::Receiver<GuestEvent>>,
    passt: Option<Passt>,
    network: Option<watch::Receiver<NetworkState>>,
    agent: Option<AgentKeeper>,
    ports: Option<PortsKeeper>,
    containers: Option<ContainersKeeper>,
    names: Option<NamesKeeper>,
    clashes: Option<ClashWatch>,
    clock: Option<GuestClock>,
    proxy: Option<Proxy>,
}

/// Something that happened to a part of the machine.
pub(super) enum Happening {
    /// The guest reports something.
    Guest(GuestEvent),
    /// The machine has ended.
    Ended(EngineExit),
    /// The network is in a new state.
    Network(NetworkState),
    /// The Docker socket is served no more, for this reason.
    ProxyEnded(String),
}

struct Proxy {
    socket: PathBuf,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), ProxyError>>,
}

impl Live {
    pub(super) fn set_engine(&mut self, engine: Box<dyn RunningEngine>) {
        self.engine_exit = Some(engine.exited());
        self.engine = Some(engine);
    }

    pub(super) fn engine(&self) -> Option<&dyn RunningEngine> {
        self.engine.as_deref()
    }

    pub(super) fn set_events(&mut self, events: mpsc::Receiver<GuestEvent>) {
        self.events = Some(events);
    }

    pub(super) fn set_passt(&mut self, passt: Passt) {
        let mut network = passt.state();
        // What it is now is news too.
        network.mark_changed();
        self.network = Some(network);
        self.passt = Some(passt);
    }

    pub(super) fn set_agent(&mut self, agent: Option<AgentKeeper>) {
        self.agent = agent;
    }

    pub(super) fn set_ports(&mut self, ports: PortsKeeper) {
        self.ports = Some(ports);
    }

    pub(super) fn set_containers(&mut self, containers: ContainersKeeper) {
        self.containers = Some(containers);
    }

    pub(super) fn set_names(&mut self, names: Option<NamesKeeper>) {
        self.names = names;
    }

    pub(super) fn set_clashes(&mut self, clashes: ClashWatch) {
        self.clashes = Some(clashes);
    }

    pub(super) fn set_clock(&mut self, clock: GuestClock) {
        self.clock = Some(clock);
    }

    /// The guest's clock; none before Docker answers.
    pub(super) fn clock(&self) -> Option<&GuestClock> {
        self.clock.as_ref()
    }

    pub(super) fn set_proxy(
        &mut self,
        socket: PathBuf,
        stop: watch::Sender<bool>,
        task: JoinHandle<Result<(), ProxyError>>,
    ) {
        self.proxy = Some(Proxy { socket, stop, task });
    }

    /// What happens next. Nothing is lost when the future is dropped. After the machine's end, that is told again and again.
    pub(super) async fn next(&mut self) -> Happening {
        tokio::select! {
            // What the guest said before it ended comes first.
            biased;
            event = next_event(&mut self.events) => Happening::Guest(event),
            exit = engine_ended(&mut self.engine_exit) => Happening::Ended(exit),
            state = network_changed(&mut self.network) => Happening::Network(state),
            why = proxy_ended(&mut self.proxy) => Happening::ProxyEnded(why),
        }
    }

    /// Returns when the engine has ended; pending for ever when there is none. Nothing else is told meanwhile.
    pub(super) async fn exited(&mut self) -> EngineExit {
        engine_ended(&mut self.engine_exit).await
    }

    /// What the guest said last before it ended.
    pub(super) async fn last_events(&mut self) -> Vec<GuestEvent> {
        let mut last = Vec::new();
        if let Some(mut events) = self.events.take() {
            let read = async {
                while let Some(event) = events.recv().await {
                    last.push(event);
                }
            };
            // The stream ends with the machine; should it not, there is no more to hear.
            if tokio::time::timeout(LAST_WORDS, read).await.is_err() {
                tracing::warn!("the guest's reports do not end though the machine has");
            }
        }
        last
    }

    /// Closes the Docker socket and cuts its connections.
    pub(super) async fn close_proxy(&mut self) -> io::Result<()> {
        let Some(proxy) = self.proxy.take() else {
            return Ok(());
        };
        proxy.stop.send_replace(true);
        match proxy.task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("{}", crate::exit::chain(&error.into())),
            Err(error) => tracing::warn!(%error, "the Docker proxy broke"),
        }
        match std::fs::remove_file(&proxy.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Leaves the guest's agent as it is.
    pub(super) fn leave_agent(&mut self) {
        self.agent = None;
    }

    /// Frees the published ports and forgets the containers.
    pub(super) fn leave_containers(&mut self) {
        self.containers = None;
        self.ports = None;
    }

    /// Ends the network.
    pub(super) fn stop_passt(&mut self) {
        if let Some(passt) = self.passt.take() {
            passt.stop();
        }
    }
}

async fn next_event(events: &mut Option<mpsc::Receiver<GuestEvent>>) -> GuestEvent {
    if let Some(receiver) = events {
        if let Some(event) = receiver.recv().await {
            return event;
        }
        *events = None;
    }
    std::future::pending().await
}

async fn engine_ended(exit: &mut Option<watch::Receiver<Option<EngineExit>>>) -> EngineExit {
    let Some(exit) = exit else {
        return std::future::pending().await;
    };
    match exit.wait_for(Option::is_some).await {
        Ok(exit) => exit.clone().unwrap_or(EngineExit::Killed(None)),
        Err(_) => EngineExit::Failed("the engine has gone away".into()),
    }
}

async fn network_changed(network: &mut Option<watch::Receiver<NetworkState>>) -> NetworkState {
    if let Some(state) = network {
        if state.changed().await.is_ok() {
            return state.borrow_and_update().clone();
        }
        *network = None;
    }
    std::future::pending().await
}

async fn proxy_ended(proxy: &mut Option<Proxy>) -> String {
    let Some(running) = proxy else {
        return std::future::pending().await;
    };
    let result = (&mut running.task).await;
    *proxy = None;
    match result {
        Ok(Ok(())) => "it ended".into(),
        Ok(Err(error)) => crate::exit::chain(&error.into()),
        Err(error) => error.to_string(),
    }
}
