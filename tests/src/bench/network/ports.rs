//! How soon a published port is there after Docker's word that the container has started, and how soon it is gone after its word
//! that the container has ended.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::{PORT, echo};
use crate::base_image::IMAGE;
use crate::bench::{median, percentile};
use crate::docker::STATE_LIMIT;
use crate::machine::Machine;
use crate::program::{Program, Running};

/// Containers, one after the other.
const CONTAINERS: usize = 20;
/// What a port may take.
const BAR: f64 = 100.0;
/// How long is waited between two tries to connect.
const PAUSE: Duration = Duration::from_millis(1);

/// What is measured of each container.
const LAGS: [&str; 6] = [
    "from the event `start` until a connection is accepted",
    "from the end of `docker run -d` until then",
    "from the event `start` until the server in it has answered",
    "from the event `die` until connections are refused",
    "from the event `destroy` until then",
    "from the end of `docker rm -f` until then",
];
/// How long, nothing when the second thing was there before the first; and whether one try was not enough.
type Times = [(Duration, bool); 3];

/// Milliseconds between two things.
#[derive(Debug, Serialize)]
struct Lag {
    what: &'static str,
    median: f64,
    max: f64,
    /// How often the second thing was not so at the first try.
    tried_again: usize,
}

/// The figures.
#[derive(Debug, Serialize)]
pub(super) struct Ports {
    containers: usize,
    lags: Vec<Lag>,
}

impl Ports {
    /// For people.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "{:60}{:>12}{:>12}{:>12}\n",
            format!("a published port, {} containers", self.containers),
            "median, ms",
            "max, ms",
            "tried again"
        );
        for lag in &self.lags {
            text += &format!(
                "{:60}{:>12.1}{:>12.1}{:>12}\n",
                lag.what, lag.median, lag.max, lag.tried_again
            );
        }
        text + &format!("(the bar is {BAR} ms)\n")
    }
}

/// Docker's events of containers, each with the moment at which it was read.
struct Events {
    _process: Running,
    lines: Receiver<(Instant, String)>,
}

impl Events {
    fn of(machine: &Machine) -> Result<Events> {
        // With those of before, so that none is missed while this begins to listen.
        let process = machine
            .docker(["events", "--since", "1", "--filter", "type=container"])
            .args(["--format", "{{.Action}} {{.Actor.Attributes.name}}"])
            .spawn()?;
        let stdout = Arc::clone(&process.stdout);
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut heard = 0;
            // Until it ends, or nobody listens.
            while let Ok(end) = stdout.wait_for("\n", heard, STATE_LIMIT) {
                let line = String::from_utf8_lossy(&stdout.part(heard, end))
                    .trim_end()
                    .to_owned();
                heard = end;
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        Ok(Events {
            _process: process,
            lines,
        })
    }

    /// When this was read, or is.
    fn wait_for(&self, event: &str) -> Result<Instant> {
        loop {
            let next = self.lines.recv_timeout(STATE_LIMIT);
            let (at, line) = next.with_context(|| format!("Docker did not tell of {event:?}"))?;
            if line == event {
                return Ok(at);
            }
        }
    }
}

/// Tries until it is so, and returns when it was, and whether it was at once.
fn first(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(Instant, bool)> {
    let begin = Instant::now();
    let mut at_once = true;
    while !is_so() {
        ensure!(begin.elapsed() < STATE_LIMIT, "waited too long for: {what}");
        at_once = false;
        thread::sleep(PAUSE);
    }
    Ok((Instant::now(), at_once))
}

/// Measures; `options` and `server` are those of a container with a server at [`PORT`].
pub(super) fn measure(machine: &Machine, options: &[&str], server: &[&str]) -> Result<Ports> {
    let events = Events::of(machine)?;
    let mut times = LAGS.map(|_| Vec::new());
    for number in 0..CONTAINERS {
        let name = format!("port-{number}");
        let address = free_address()?;
        let publish = format!("{address}:{PORT}");
        let run = machine
            .docker(["run", "-d", "--name", &name, "-p", &publish])
            .args(options)
            .arg(IMAGE)
            .args(server);
        let remove = machine.docker(["rm", "-f", &name]);
        let coming = comes(&events, &name, address, run)?;
        let going = goes(&events, &name, address, remove)?;
        for (times, lag) in times.iter_mut().zip(coming.into_iter().chain(going)) {
            times.push(lag);
        }
    }
    let ms = |time: Option<Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0);
    let lag = |(what, all): (_, Vec<(Duration, bool)>)| {
        let (times, again): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        Lag {
            what,
            median: ms(median(&times)),
            max: ms(percentile(&times, 100)),
            tried_again: again.into_iter().filter(|again| *again).count(),
        }
    };
    Ok(Ports {
        containers: CONTAINERS,
        lags: LAGS.into_iter().zip(times).map(lag).collect(),
    })
}

/// Runs a container, and measures the first three of [`LAGS`].
fn comes(events: &Events, name: &str, address: SocketAddr, run: Program) -> Result<Times> {
    let ((started, accepted, answered), returned) = beside(run, || {
        let started = events.wait_for(&format!("start {name}"))?;
        let accepted = first("a connection", || TcpStream::connect(address).is_ok())?;
        let answered = first("an answer", || echo(address).is_ok())?;
        Ok((started, accepted, answered))
    })?;
    Ok([
        lag(started, accepted),
        lag(returned, accepted),
        lag(started, answered),
    ])
}

/// Removes it, and measures the other three.
fn goes(events: &Events, name: &str, address: SocketAddr, remove: Program) -> Result<Times> {
    let ((died, refused, destroyed), returned) = beside(remove, || {
        let died = events.wait_for(&format!("die {name}"))?;
        let refuses =
            || TcpStream::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        let refused = first("a refusal", refuses)?;
        let destroyed = events.wait_for(&format!("destroy {name}"))?;
        Ok((died, refused, destroyed))
    })?;
    Ok([died, destroyed, returned].map(|from| lag(from, refused)))
}

fn lag(from: Instant, (at, at_once): (Instant, bool)) -> (Duration, bool) {
    // The tries may have been over before `from`, and whoever begins then needs no second one.
    (at.saturating_duration_since(from), from < at && !at_once)
}

/// Does something while a command runs, and returns also when that was done (known 5 ms later at most).
fn beside<T>(command: Program, work: impl FnOnce() -> Result<T>) -> Result<(T, Instant)> {
    thread::scope(|scope| {
        let command = scope.spawn(|| command.ok().map(|_| Instant::now()));
        let done = work()?;
        let returned = command.join().ok().context("a thread has failed")??;
        Ok((done, returned))
    })
}

/// An address of the loopback that nobody listens at.
fn free_address() -> Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .context("cannot find a free port")
}
