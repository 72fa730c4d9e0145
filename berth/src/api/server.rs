//! The daemon's side of its HTTP interface.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State as Shared};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use hyper_util::rt::TokioIo;
use protocol::frame;
use protocol::logs::{LogReply, LogRequest, LogSource as GuestLog};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{oneshot, watch};

use super::SYNC_TIMEOUT;
use super::types::{
    ApiError, ChangeReport, ContainersReport, EXEC_UPGRADE, LogSource, LogsQuery, PortsReport,
    ProfilesReport, PublishedReport, SettingsReport, SettingsRequest, ShareQuery, ShareRequest, SharesReport,
    StopRequest, Synced, Version,
};
use super::{errno, happenings};
use crate::config::{Config, MAX_CPUS, MIN_MEMORY};
use crate::docker::containers::{self, Container};
use crate::exit::chain;
use crate::guest::GuestDial;
use crate::host::Host;
use crate::logs::{Follow, FollowError};
use crate::machine::handle::{Command, Handle};
use crate::machine::resources::ResourceError;
use crate::machine::settings::SettingsError;
use crate::machine::shares::{ChangeError, Heard, LiveShares, ShareReport};
use crate::machine::state::State;
use crate::machine::switch::{self, SwitchError};
use crate::profiles;
use crate::shares::Share;

/// How much of a guest's log is sent at once, in bytes.
const CHUNK: usize = 64 * 1024;
/// How long Docker gets to list its containers.
const DOCKER_LIMIT: Duration = Duration::from_secs(5);

/// Serves the interface on `listener` until `stop` turns true, and then to the end of the answers that are under way.
///
/// `config_file` has the profiles. `grace` is what containers get on a stop that does not say.
pub async fn serve(
    listener: UnixListener,
    machine: Arc<Handle>,
    config_file: PathBuf,
    grace: Duration,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/v1/version", get(version))
        .route("/v1/status", get(status))
        .route("/v1/events", get(events))
        .route("/v1/stop", post(stop_machine))
        .route("/v1/pause", post(pause))
        .route("/v1/resume", post(resume))
        .route("/v1/shares", get(shares).post(add_share).delete(remove_share))
        .route("/v1/ports", get(ports))
        .route("/v1/containers", get(containers))
        .route("/v1/profiles", get(list_profiles))
        .route("/v1/settings", post(change_settings))
        .route("/v1/sync", post(sync))
        .route("/v1/changes", get(changes))
        .route("/v1/exec", post(exec))
        .route("/v1/logs", get(logs))
        .fallback(nothing_here)
        .with_state(Server {
            machine,
            config_file,
            grace,
        });
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move {
            // An error says that the sender is gone, which is a stop too.
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
}

#[derive(Clone)]
struct Server {
    machine: Arc<Handle>,
    config_file: PathBuf,
    grace: Duration,
}

/// An answer that is not a success.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(ApiError { message: self.1 })).into_response()
    }
}

impl Refusal {
    fn not_running(state: &State) -> Refusal {
        Refusal(
            StatusCode::CONFLICT,
            format!("the machine is not running; it is {state}"),
        )
    }

    fn broke_off(error: tokio::task::JoinError) -> Refusal {
        tracing::error!(%error, "a request broke off");
        Refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the daemon could not finish this; `berth logs` may tell why".into(),
        )
    }

    fn bad_gateway(error: impl Into<anyhow::Error>) -> Refusal {
        Refusal(StatusCode::BAD_GATEWAY, chain(&error.into()))
    }
}

impl From<ChangeError> for Refusal {
    fn from(error: ChangeError) -> Refusal {
        let status = match error {
            ChangeError::NotRunning(_) => StatusCode::CONFLICT,
            ChangeError::Rules(_) | ChangeError::SharedOtherwise { .. } | ChangeError::Unusable(_) => {
                StatusCode::BAD_REQUEST
            }
            ChangeError::NoSuchShare { .. } => StatusCode::NOT_FOUND,
            ChangeError::InUse { .. } => StatusCode::LOCKED,
            ChangeError::Guest(_) => StatusCode::BAD_GATEWAY,
            ChangeError::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal(status, chain(&error.into()))
    }
}

impl From<SwitchError> for Refusal {
    fn from(error: SwitchError) -> Refusal {
        let status = match &error {
            SwitchError::Settings(SettingsError::NoProfile { .. }) => StatusCode::NOT_FOUND,
            SwitchError::Config(_) | SwitchError::Settings(_) => StatusCode::BAD_REQUEST,
            SwitchError::Resources(ResourceError::NotRunning(_)) => StatusCode::CONFLICT,
            SwitchError::Resources(_) => StatusCode::BAD_GATEWAY,
            SwitchError::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal(status, chain(&error.into()))
    }
}

async fn nothing_here() -> Refusal {
    Refusal(
        StatusCode::NOT_FOUND,
        "there is nothing at this address; berth's API is described in docs/api.md".into(),
    )
}

async fn version() -> Json<Version> {
    Json(Version::own())
}

async fn status(Shared(server): Shared<Server>) -> Response {
    Json(server.machine.status().await).into_response()
}

/// One JSON object a line, from the beginning of the machine's start, until the machine is gone.
async fn events(Shared(server): Shared<Server>) -> Response {
    json_lines(happenings::of(server.machine))
}

/// The published ports, each with its container.
async fn ports(Shared(server): Shared<Server>) -> Json<PortsReport> {
    let containers = running_containers(&server).await;
    let ports = server.machine.published.list().into_iter().map(|port| {
        let container = containers.iter().find(|container| container.has(&port.published));
        PublishedReport {
            container: container.map(|container| container.name.clone()),
            port,
        }
    });
    Json(PortsReport {
        ports: ports.collect(),
    })
}

/// The running containers.
async fn containers(Shared(server): Shared<Server>) -> Json<ContainersReport> {
    let containers = running_containers(&server).await;
    Json(ContainersReport { containers })
}

/// What Docker says now, or, when it does not answer, what it said last.
async fn running_containers(server: &Server) -> Vec<Container> {
    let machine = &server.machine;
    if machine.state() == State::Running {
        let socket = machine.paths.docker_socket();
        match tokio::time::timeout(DOCKER_LIMIT, containers::running(&socket)).await {
            Ok(Ok(containers)) => return containers,
            Ok(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the list of containers");
            }
            Err(_) => tracing::debug!("Docker does not answer for the list of containers"),
        }
    }
    machine.containers.borrow().clone()
}

/// One JSON object a line.
fn json_lines<T: Serialize + 'static>(items: impl Stream<Item = T> + Send + 'static) -> Response {
    let lines = items.map(|item| {
        let mut line = serde_json::to_vec(&item)
            .inspect_err(|error| tracing::error!(%error, "a line cannot be written as JSON"))?;
        line.push(b'\n');
        Ok::<_, serde_json::Error>(Bytes::from(line))
    });
    let body = Body::from_stream(lines);
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

async fn stop_machine(
    Shared(server): Shared<Server>,
    Json(request): Json<StopRequest>,
) -> Result<StatusCode, Refusal> {
    let grace = (!request.force).then(|| {
        request
            .grace_seconds
            .map_or(server.grace, |seconds| Duration::from_secs(seconds.into()))
    });
    // A supervisor that has ended has stopped the machine already.
    server.machine.command(Command::Stop { grace }).await;
    Ok(StatusCode::ACCEPTED)
}

async fn pause(Shared(server): Shared<Server>) -> Result<StatusCode, Refusal> {
    ask(&server, Command::Pause).await
}

async fn resume(Shared(server): Shared<Server>) -> Result<StatusCode, Refusal> {
    ask(&server, Command::Resume).await
}

async fn ask(
    server: &Server,
    command: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Command,
) -> Result<StatusCode, Refusal> {
    let (sender, answer) = oneshot::channel();
    server.machine.command(command(sender)).await;
    match answer.await {
        Ok(Ok(())) => Ok(StatusCode::NO_CONTENT),
        Ok(Err(message)) => Err(Refusal(StatusCode::CONFLICT, message)),
        Err(_) => Err(Refusal::not_running(&server.machine.state())),
    }
}

async fn shares(Shared(server): Shared<Server>) -> Json<SharesReport> {
    Json(SharesReport {
        shares: server.machine.shares.list(),
    })
}

async fn add_share(
    Shared(server): Shared<Server>,
    Json(request): Json<ShareRequest>,
) -> Result<Json<ShareReport>, Refusal> {
    let machine = &server.machine;
    // In a task of its own: a client that leaves must not leave a share half made.
    let added = tokio::spawn({
        let machine = Arc::clone(machine);
        async move {
            let share = tokio::task::spawn_blocking(move || {
                let target = request.target.as_deref();
                Share::new(&request.path, target, request.read_only, &request.exclude)
            })
            .await
            .map_err(Refusal::broke_off)?
            .map_err(ChangeError::from)?;
            Ok::<_, Refusal>(machine.shares.add(&machine, share).await?)
        }
    });
    added.await.map_err(Refusal::broke_off)?.map(Json)
}

async fn remove_share(
    Shared(server): Shared<Server>,
    Query(query): Query<ShareQuery>,
) -> Result<StatusCode, Refusal> {
    let machine = Arc::clone(&server.machine);
    let removed =
        tokio::spawn(async move { machine.shares.remove(&machine, &query.path, query.force).await });
    removed.await.map_err(Refusal::broke_off)??;
    Ok(StatusCode::NO_CONTENT)
}

async fn list_profiles(Shared(server): Shared<Server>) -> Result<Json<ProfilesReport>, Refusal> {
    let config = Config::load(&server.config_file).map_err(SwitchError::from)?;
    Ok(Json(ProfilesReport {
        current: server.machine.resources.now().profile,
        profiles: profiles::all(&config, &Host::detect()),
    }))
}

/// Switches the machine to another profile, or gives it other CPUs and another memory.
async fn change_settings(
    Shared(server): Shared<Server>,
    Json(request): Json<SettingsRequest>,
) -> Result<Json<SettingsReport>, Refusal> {
    let wrong = |what: String| Err(Refusal(StatusCode::BAD_REQUEST, what));
    if request.cpus.is_some_and(|cpus| !(1..=MAX_CPUS).contains(&cpus)) {
        return wrong(format!("cpus: expected a number of CPUs from 1 to {MAX_CPUS}"));
    }
    if request.memory.is_some_and(|memory| memory < MIN_MEMORY) {
        return wrong(format!(
            "memory: expected a number of bytes, at least {MIN_MEMORY}"
        ));
    }
    // In a task of its own: a client that leaves must not leave it half done.
    let switched =
        tokio::spawn(async move { switch::switch(&server.machine, &server.config_file, request).await });
    Ok(Json(switched.await.map_err(Refusal::broke_off)??))
}

/// Answers when the machine has been told of everything that the host has changed in its shares so far.
async fn sync(Shared(server): Shared<Server>) -> Result<Json<Synced>, Refusal> {
    let state = server.machine.state();
    if state != State::Running {
        return Err(Refusal::not_running(&state));
    }
    let since = Instant::now();
    let reached = server.machine.shares.changes().reached();
    match tokio::time::timeout(SYNC_TIMEOUT, reached).await {
        Ok(Ok(())) => Ok(Json(Synced {
            milliseconds: milliseconds(since.elapsed()),
        })),
        Ok(Err(error)) => Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, chain(&error.into()))),
        Err(_) => Err(Refusal(
            StatusCode::GATEWAY_TIMEOUT,
            format!(
                "the machine could not be told of all host changes within {} seconds; it is overloaded, or more is changed all \
                 the time",
                SYNC_TIMEOUT.as_secs()
            ),
        )),
    }
}

/// What the host changes in the shares, one JSON object a line, from now on until the machine is gone.
async fn changes(Shared(server): Shared<Server>) -> Result<Response, Refusal> {
    running(&server)?;
    let machine = server.machine;
    let changes = machine.shares.changes().subscribe();
    let changes = changes.map_err(|error| Refusal(StatusCode::SERVICE_UNAVAILABLE, chain(&error)))?;
    let states = machine.states();
    let heard = stream::unfold((changes, states, machine), |mut all| async move {
        let (changes, states, machine) = &mut all;
        let heard = tokio::select! {
            heard = changes.recv() => heard?,
            _ = states.wait_for(State::is_final) => return None,
        };
        Some((report(&machine.shares, &heard), all))
    });
    Ok(json_lines(heard))
}

/// A change as clients are told of it.
fn report(shares: &LiveShares, Heard { at, change }: &Heard) -> ChangeReport {
    ChangeReport {
        unix_time_ms: at
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
        kind: change.kind.into(),
        path: (!change.path.is_empty()).then(|| shares.host_path(&change.path)),
        new_path: change.new_path.as_deref().map(|path| shares.host_path(path)),
        latency_ms: milliseconds(change.latency),
        error: (change.error != 0).then(|| errno::name(change.error)),
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn running(server: &Server) -> Result<GuestDial, Refusal> {
    server
        .machine
        .dial()
        .ok_or_else(|| Refusal::not_running(&server.machine.state()))
}

/// After the upgrade the connection is one to the guest's exec port: [`protocol::exec`] both ways.
async fn exec(Shared(server): Shared<Server>, mut request: Request) -> Result<Response, Refusal> {
    let wanted = request
        .headers()
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(EXEC_UPGRADE.as_bytes()));
    if !wanted {
        return Err(Refusal(
            StatusCode::UPGRADE_REQUIRED,
            format!("this call needs the headers `Connection: Upgrade` and `Upgrade: {EXEC_UPGRADE}`"),
        ));
    }
    let guest = running(&server)?
        .connect(protocol::ports::EXEC)
        .await
        .map_err(Refusal::bad_gateway)?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => tunnel(TokioIo::new(upgraded), guest).await,
            Err(error) => tracing::debug!(%error, "an exec connection was not taken over"),
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(EXEC_UPGRADE));
    Ok(response)
}

/// Passes bytes both ways until either side is done. The client's end counts as a hang-up: standard input ends with a packet
/// of its own.
async fn tunnel(client: TokioIo<hyper::upgrade::Upgraded>, guest: UnixStream) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_guest, mut to_guest) = guest.into_split();
    let result = tokio::select! {
        result = tokio::io::copy(&mut from_client, &mut to_guest) => result,
        result = async {
            let sent = tokio::io::copy(&mut from_guest, &mut to_client).await?;
            to_client.shutdown().await?;
            Ok(sent)
        } => result,
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an exec connection broke off");
    }
}

async fn logs(Shared(server): Shared<Server>, Query(query): Query<LogsQuery>) -> Result<Response, Refusal> {
    let paths = &server.machine.paths;
    let body = match query.source {
        LogSource::Daemon => file_log(&paths.daemon_log(), &query)?,
        LogSource::Console => file_log(&paths.console_log(), &query)?,
        LogSource::Passt => file_log(&paths.passt_log(), &query)?,
        LogSource::Dockerd => guest_log(running(&server)?, GuestLog::Dockerd, &query).await?,
        LogSource::Kernel => guest_log(running(&server)?, GuestLog::Kernel, &query).await?,
    };
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

fn file_log(path: &std::path::Path, query: &LogsQuery) -> Result<Body, Refusal> {
    let follow = Follow::open(path, query.tail, query.follow).map_err(|error| match error {
        FollowError::Missing(_) => Refusal(StatusCode::NOT_FOUND, error.to_string()),
        FollowError::Read { .. } => Refusal(StatusCode::INTERNAL_SERVER_ERROR, chain(&error.into())),
    })?;
    let chunks = stream::unfold(follow, |mut follow| async move {
        let bytes = follow.next().await.transpose()?;
        Some((bytes.map(Bytes::from), follow))
    });
    Ok(Body::from_stream(chunks))
}

async fn guest_log(dial: GuestDial, source: GuestLog, query: &LogsQuery) -> Result<Body, Refusal> {
    let mut stream = dial
        .connect(protocol::ports::LOGS)
        .await
        .map_err(Refusal::bad_gateway)?;
    let request = LogRequest {
        source,
        tail: query.tail,
        follow: query.follow,
    };
    frame::write_async(&mut stream, &request)
        .await
        .map_err(Refusal::bad_gateway)?;
    match frame::read_async(&mut stream)
        .await
        .map_err(Refusal::bad_gateway)?
    {
        LogReply::Streaming => Ok(Body::from_stream(chunks(stream).boxed())),
        LogReply::Error { message } => Err(Refusal(StatusCode::BAD_GATEWAY, message)),
    }
}

fn chunks(stream: UnixStream) -> impl Stream<Item = std::io::Result<Bytes>> {
    stream::unfold(stream, |mut stream| async move {
        let mut buffer = vec![0; CHUNK];
        match stream.read(&mut buffer).await {
            Ok(0) => None,
            Ok(n) => {
                buffer.truncate(n);
                Some((Ok(Bytes::from(buffer)), stream))
            }
            Err(error) => Some((Err(error), stream)),
        }
    })
}
