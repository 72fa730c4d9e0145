//! Keeps passt running behind the relay.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::relay::{self, Uplink};
use super::routes::{self, Routes};
use super::{NetError, PasstProgram, arguments, program};
use crate::process::{Child, Children};

/// A passt that ran this long was well; one that ends sooner is started again only after a pause.
const WELL: Duration = Duration::from_secs(10);
/// The first pause, which doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How passt is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PasstConfig {
    /// The program; searched in `PATH` when none.
    pub program: Option<PathBuf>,
    /// Where the machine's network device connects: the protocol of QEMU's stream netdev.
    pub socket: PathBuf,
    /// A file that gets what passt prints.
    pub log: PathBuf,
    /// The largest packet, in bytes.
    pub mtu: u32,
}

/// How the machine's network is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkState {
    /// passt is being started.
    Starting,
    /// passt runs.
    Up,
    /// The host has no network; passt is started when it has.
    NoHostNetwork,
    /// passt ends again and again. The reason in words, and what happens.
    Failing(String),
    /// There is no usable passt. What to do about it.
    NoPasst(String),
}

impl std::fmt::Display for NetworkState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NetworkState::Starting => f.write_str("the network is being started"),
            NetworkState::Up => f.write_str("the network is up"),
            NetworkState::NoHostNetwork => {
                f.write_str("the host has no network, so the machine has none either until the host has")
            }
            NetworkState::Failing(why) | NetworkState::NoPasst(why) => f.write_str(why),
        }
    }
}

/// The machine's network. Dropping it ends passt and closes the machine's link.
#[derive(Debug)]
pub struct Passt {
    state: watch::Receiver<NetworkState>,
    exited: watch::Receiver<Option<ExitStatus>>,
    child: Arc<Slot>,
    tasks: [JoinHandle<()>; 2],
    socket: PathBuf,
}

impl Passt {
    /// Listens for the machine's network device and starts passt behind. That there is no passt, or that the host has no
    /// network, is no error: [`Passt::state`] tells, and the network comes when it can.
    pub async fn start(config: &PasstConfig, children: &Arc<Children>) -> Result<Passt, NetError> {
        let listen = |source| NetError::Listen {
            path: config.socket.clone(),
            source,
        };
        match std::fs::remove_file(&config.socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(listen(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&config.socket).map_err(listen)?;
        let routes = Routes::watch().map_err(NetError::Routes)?;
        let uplink = Arc::new(Uplink::new(None));
        let (state_tx, state) = watch::channel(NetworkState::Starting);
        let (exited_tx, exited) = watch::channel(None);
        let child = Arc::<Slot>::default();
        let relay = tokio::spawn({
            let uplink = Arc::clone(&uplink);
            async move {
                let error = relay::serve(listener, uplink).await;
                tracing::error!(%error, "the machine's network device cannot connect any more");
            }
        });
        let service = Service {
            config: config.clone(),
            children: Arc::clone(children),
            uplink,
            state: state_tx,
            child: Arc::clone(&child),
            routes,
            _exited: exited_tx,
        };
        let service = tokio::spawn(service.run());
        let mut settled = state.clone();
        let passt = Passt {
            state,
            exited,
            child,
            tasks: [relay, service],
            socket: config.socket.clone(),
        };
        // The service settles at once, or says that it failed; its end settles too.
        let _ = settled.wait_for(|state| *state != NetworkState::Starting).await;
        Ok(passt)
    }

    /// How the network is, from now on.
    pub fn state(&self) -> watch::Receiver<NetworkState> {
        self.state.clone()
    }

    /// Would tell that the network ended for good. A passt that ends is started again behind the machine's back, so this
    /// stays none for as long as the network exists.
    pub fn exited(&self) -> watch::Receiver<Option<ExitStatus>> {
        self.exited.clone()
    }

    /// Ends passt and closes the machine's link.
    pub fn stop(self) {}

    /// passt's process, while there is one.
    pub fn process_id(&self) -> Option<u32> {
        self.child.lock().as_ref().map(|child| child.process().pid)
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Some(child) = self.child.take() {
            end(&child);
        }
        // The next start removes it too.
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// The passt that runs. It ends when nobody holds the slot any more, one that is only just being started included.
#[derive(Debug, Default)]
struct Slot(Mutex<Option<Child>>);

impl Slot {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Child> {
        self.lock().take()
    }

    fn put(&self, child: Child) {
        *self.lock() = Some(child);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(child) = self.take() {
            end(&child);
        }
    }
}

fn end(child: &Child) {
    if let Err(error) = child.signal(Signal::KILL) {
        tracing::warn!(%error, "could not end passt");
    }
}

struct Service {
    config: PasstConfig,
    children: Arc<Children>,
    uplink: Arc<Uplink>,
    state: watch::Sender<NetworkState>,
    child: Arc<Slot>,
    routes: Routes,
    _exited: watch::Sender<Option<ExitStatus>>,
}

impl Service {
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let had_network = routes::has_network();
            let started = Instant::now();
            let ended = match self.start_one().await {
                Ok(exited) => {
                    self.set(if had_network {
                        NetworkState::Up
                    } else {
                        NetworkState::NoHostNetwork
                    });
                    self.wait(exited, had_network).await
                }
                Err(error) => {
                    let message = crate::exit::chain(&error);
                    self.set(NetworkState::NoPasst(format!(
                        "the machine has no network: {message}"
                    )));
                    // Installing passt takes a restart of the machine.
                    return;
                }
            };
            self.uplink.send_replace(None);
            if started.elapsed() >= WELL {
                pause = FIRST_PAUSE;
            }
            match ended {
                Ended::ForNewNetwork => pause = FIRST_PAUSE,
                Ended::ByItself(_) if !had_network => {
                    self.set(NetworkState::NoHostNetwork);
                    if let Err(error) = self.routes.changed().await {
                        tracing::warn!(%error, "cannot watch the host's routes any more");
                        tokio::time::sleep(LONGEST_PAUSE).await;
                    }
                }
                Ended::ByItself(status) => {
                    self.set(NetworkState::Failing(format!(
                        "passt ended ({status}) and is started again; see {}",
                        self.config.log.display()
                    )));
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        _ = self.routes.changed() => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn set(&self, state: NetworkState) {
        if *self.state.borrow() != state {
            match &state {
                NetworkState::Up | NetworkState::Starting => tracing::info!("{state}"),
                _ => tracing::warn!("{state}"),
            }
            self.state.send_replace(state);
        }
    }

    /// Waits until passt ends, or until the host has got the network it did not have when passt was started.
    async fn wait(&self, mut exited: watch::Receiver<Option<ExitStatus>>, had_network: bool) -> Ended {
        loop {
            tokio::select! {
                status = status(&mut exited) => {
                    self.child.take();
                    return Ended::ByItself(status);
                }
                changed = self.routes.changed(), if !had_network => {
                    if changed.is_ok() && !routes::has_network() {
                        continue;
                    }
                }
            }
            if let Some(child) = self.child.take() {
                end(&child);
            }
            status(&mut exited).await;
            return Ended::ForNewNetwork;
        }
    }

    /// Starts one passt and joins it to the relay; its exit.
    async fn start_one(&self) -> Result<watch::Receiver<Option<ExitStatus>>, anyhow::Error> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let config = self.config.clone();
        let children = Arc::clone(&self.children);
        let slot = Arc::clone(&self.child);
        // Starting a process blocks. The child goes to the slot even when nobody waits any more.
        let exited = tokio::task::spawn_blocking(move || {
            let program = program::find(config.program.as_deref())?;
            let mut child = children.spawn("passt", command(&program, theirs.into(), config.mtu))?;
            if let Some(stderr) = child.stderr.take() {
                log(stderr, config.log);
            }
            let exited = child.exited();
            slot.put(child);
            Ok::<_, anyhow::Error>(exited)
        })
        .await??;
        self.uplink
            .send_replace(Some(Arc::new(UnixStream::from_std(ours)?)));
        Ok(exited)
    }
}

/// Waits for the exit, in words.
async fn status(exited: &mut watch::Receiver<Option<ExitStatus>>) -> String {
    match exited.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(status)) => status.to_string(),
        _ => "lost sight of it".into(),
    }
}

enum Ended {
    ByItself(String),
    ForNewNetwork,
}

fn command(program: &PasstProgram, socket: OwnedFd, mtu: u32) -> Command {
    let mut command = Command::new(&program.path);
    command
        .args(arguments::arguments(program, socket.as_raw_fd(), mtu))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let inherit = move || {
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty())?;
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; it makes one system call and allocates nothing.
    unsafe { command.pre_exec(inherit) };
    command
}

/// Keeps what passt prints in a file, from the last start of passt only, and in the daemon's log.
fn log(stderr: std::process::ChildStderr, path: PathBuf) {
    use std::io::Write;
    let body = move || {
        let mut file = std::fs::File::create(&path)
            .inspect_err(|error| tracing::warn!(%error, path = %path.display(), "cannot write passt's log"))
            .ok();
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            tracing::debug!("passt: {}", String::from_utf8_lossy(&line));
            if let Some(file) = &mut file {
                // A full disk does not end the network.
                let _ = file.write_all(&line).and_then(|()| file.write_all(b"\n"));
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("passt-log".into()).spawn(body) {
        tracing::warn!(%error, "cannot start the thread that keeps passt's log");
    }
}
