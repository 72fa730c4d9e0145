//! What published ports carry and how soon they are there, and how many names a container resolves: `bench network`.
//!
//! A server in a container is reached from the host through berth's published port, and from the guest through Docker's own
//! userland proxy, which is what the same container would have on a host of its own. The client on the host runs at the host's
//! speed and the one in the guest at the guest's, so under emulation the second figure has a slower client.

pub mod names;
mod ports;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::base_image::{self, IMAGE};
use crate::carried::carry;
use crate::docker::Container;
use crate::machine::Machine;
use crate::options::Setup;
use crate::processes::wait_until;
use names::Names;
use ports::Ports;

/// The argument that makes a program of this crate the server in the container ([`serve`]).
pub const SERVER: &str = "--serve-a-network";
/// The argument that makes it the client in the guest ([`client`]); an address follows.
pub const CLIENT: &str = "--use-a-network";

const TOOLS: &str = "/tools";
/// The server's port, and that of Docker's proxy in the guest.
const PORT: u16 = 9000;
const PROXY: u16 = 9900;
/// Connections one after the other.
const CONNECTIONS: u32 = 300;
/// Bytes each way.
const AMOUNT: u64 = 64 << 20;
/// Datagrams that are under way at once, and how long they are sent.
const UNDER_WAY: usize = 32;
const DATAGRAMS_FOR: Duration = Duration::from_secs(3);
const DATAGRAM: usize = 200;
/// What the first byte of a connection asks for.
const ECHO: u8 = b'e';
const TAKE: u8 = b't';
const GIVE: u8 = b'g';

/// What one client found.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Figures {
    /// New connections a second, each with a byte there and back.
    connections: f64,
    /// MiB a second to the container and from it.
    there: f64,
    back: f64,
    /// Datagrams of 200 bytes that came back in a second.
    datagrams: f64,
}

/// The figures.
#[derive(Debug, Serialize)]
pub struct Report {
    published: Figures,
    userland_proxy: Figures,
    ports: Ports,
    names: Names,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:44}{:>14}{:>14}{:>8}\n",
            "from a client to a container", "berth, host", "docker-proxy", "ratio"
        );
        let (ours, theirs) = (&self.published, &self.userland_proxy);
        for (what, ours, theirs) in [
            ("connections a second", ours.connections, theirs.connections),
            ("MiB a second to the container", ours.there, theirs.there),
            ("MiB a second from the container", ours.back, theirs.back),
            (
                "datagrams a second there and back",
                ours.datagrams,
                theirs.datagrams,
            ),
        ] {
            text += &format!("{what:44}{ours:>14.1}{theirs:>14.1}{:>8.2}\n", ours / theirs);
        }
        format!("{text}\n{}\n{}", self.ports.table(), self.names.table())
    }
}

/// Measures on a machine of its own, and names on another.
///
/// # Errors
/// When the machine or what is done on it fails.
pub fn run(setup: &Setup) -> Result<Report> {
    let machine = Arc::new(Machine::new(setup)?);
    machine.start()?;
    base_image::import(&machine)?;
    let (volume, program) = tools(&machine)?;
    let (published, userland_proxy) = throughput(&machine, &volume, &program)?;
    let server: Vec<_> = program.iter().map(String::as_str).chain([SERVER]).collect();
    let ports = ports::measure(&machine, &["-v", &volume], &server)?;
    machine.stop()?;
    machine.delete()?;
    Ok(Report {
        published,
        userland_proxy,
        ports,
        names: names::run(setup)?,
    })
}

/// Brings this program into the machine: the volume it is in, and the words that run it.
fn tools(machine: &Machine) -> Result<(String, Vec<String>)> {
    let tools = machine.home().join("tools");
    std::fs::create_dir(&tools).context("cannot make a directory")?;
    let program = carry(&tools, TOOLS)?;
    Ok((format!("{}:{TOOLS}:ro", tools.display()), program))
}

/// What berth carries, and what Docker's proxy does.
fn throughput(machine: &Arc<Machine>, volume: &str, program: &[String]) -> Result<(Figures, Figures)> {
    let words = |argument: &'static str| {
        program
            .iter()
            .map(String::as_str)
            .chain([argument])
            .collect::<Vec<_>>()
    };
    let (tcp, udp) = (format!("127.0.0.1::{PORT}"), format!("127.0.0.1::{PORT}/udp"));
    let server = Container::start(
        machine,
        "server".into(),
        &["-v", volume, "-p", &tcp, "-p", &udp],
        &words(SERVER),
    )?;
    let published = |port: &str| -> Result<SocketAddr> {
        let text = machine.docker(["port", server.name(), port]).ok()?;
        text.parse()
            .with_context(|| format!("docker port printed {text:?}"))
    };
    let (tcp, udp) = (
        published(&format!("{PORT}/tcp"))?,
        published(&format!("{PORT}/udp"))?,
    );
    wait_until("the server to answer", Duration::from_secs(60), || {
        Ok(echo(tcp).is_ok())
    })?;

    let ours = figures(tcp, udp)?;

    let container = server.at("/NetworkSettings/IPAddress")?;
    let container = container.as_str().context("the server has no address")?;
    let proxies: String = ["tcp", "udp"]
        .map(|proto| {
            format!(
                "docker-proxy -proto {proto} -host-ip 127.0.0.1 -host-port {PROXY} -container-ip {container} \
                 -container-port {PORT} 3>/dev/null >/dev/null 2>&1 & "
            )
        })
        .concat();
    machine.in_guest(&format!("{proxies} true")).ok()?;
    let client = machine
        .docker(["run", "--rm", "--network", "host", "-v", volume, IMAGE])
        .args(words(CLIENT))
        .arg(format!("127.0.0.1:{PROXY}"))
        .limit(Duration::from_secs(600))
        .ok()?;
    let theirs = serde_json::from_str(&client).with_context(|| format!("the client said {client:?}"))?;
    machine.in_guest("killall docker-proxy").ok()?;
    Ok((ours, theirs))
}

/// Prints the figures of a client that runs here.
///
/// # Errors
/// When nobody answers at `address`, or wrongly.
pub fn client(address: &str, mut output: impl Write) -> Result<()> {
    let address = address
        .parse()
        .with_context(|| format!("{address:?} is no address"))?;
    wait_until("the proxy to answer", Duration::from_secs(60), || {
        Ok(echo(address).is_ok())
    })?;
    let text = serde_json::to_string(&figures(address, address)?).context("cannot encode the figures")?;
    writeln!(output, "{text}").context("cannot answer")
}

fn figures(tcp: SocketAddr, udp: SocketAddr) -> Result<Figures> {
    let begin = Instant::now();
    for _ in 0..CONNECTIONS {
        echo(tcp)?;
    }
    let connections = f64::from(CONNECTIONS) / begin.elapsed().as_secs_f64();
    Ok(Figures {
        connections,
        there: there(tcp)?,
        back: back(tcp)?,
        datagrams: datagrams(udp)?,
    })
}

fn echo(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address).context("cannot connect")?;
    stream.write_all(&[ECHO]).context("cannot send")?;
    let mut byte = [0];
    stream.read_exact(&mut byte).context("no echo")?;
    Ok(())
}

fn mebibytes_per_second(since: Instant) -> f64 {
    (AMOUNT >> 20) as f64 / since.elapsed().as_secs_f64()
}

fn there(address: SocketAddr) -> Result<f64> {
    let mut stream = TcpStream::connect(address).context("cannot connect")?;
    stream.write_all(&[TAKE]).context("cannot send")?;
    let begin = Instant::now();
    std::io::copy(&mut std::io::repeat(1).take(AMOUNT), &mut stream).context("cannot send")?;
    stream.shutdown(Shutdown::Write).context("cannot end")?;
    let mut count = [0; 8];
    stream.read_exact(&mut count).context("no answer")?;
    ensure!(
        u64::from_le_bytes(count) == AMOUNT,
        "the server got something else"
    );
    Ok(mebibytes_per_second(begin))
}

fn back(address: SocketAddr) -> Result<f64> {
    let mut stream = TcpStream::connect(address).context("cannot connect")?;
    stream.write_all(&[GIVE]).context("cannot send")?;
    let begin = Instant::now();
    let count = std::io::copy(&mut stream, &mut std::io::sink()).context("cannot receive")?;
    ensure!(count == AMOUNT, "{count} bytes came");
    Ok(mebibytes_per_second(begin))
}

/// As many as come back with some always under way. One that is lost is replaced after a while.
fn datagrams(address: SocketAddr) -> Result<f64> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot make a socket")?;
    socket.connect(address).context("cannot connect")?;
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .context("cannot set a limit")?;
    let datagram = [b'd'; DATAGRAM];
    let send = || socket.send(&datagram).context("cannot send");
    let mut buffer = [0; 2 * DATAGRAM];
    for _ in 0..UNDER_WAY {
        send()?;
    }
    let (begin, mut count) = (Instant::now(), 0_u32);
    while begin.elapsed() < DATAGRAMS_FOR {
        if let Ok(DATAGRAM) = socket.recv(&mut buffer) {
            count += 1;
        }
        send()?;
    }
    ensure!(count > 0, "no datagram came back");
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

/// Serves clients, for ever.
///
/// # Errors
/// When its port cannot be had.
pub fn serve() -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("cannot make a socket")?;
    thread::spawn(move || {
        let mut buffer = [0; 2 * DATAGRAM];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            // What cannot be sent is lost, as datagrams are.
            let _ = socket.send_to(&buffer[..length], peer);
        }
    });
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("cannot listen")?;
    for stream in listener.incoming() {
        let stream = stream.context("cannot accept")?;
        // A client that goes away in the middle is not the server's failure.
        thread::spawn(move || drop(answer(stream)));
    }
    bail!("nobody can connect any more")
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut what = [0];
    stream.read_exact(&mut what)?;
    match what[0] {
        TAKE => {
            let count = std::io::copy(&mut stream, &mut std::io::sink())?;
            stream.write_all(&count.to_le_bytes())
        }
        GIVE => std::io::copy(&mut std::io::repeat(1).take(AMOUNT), &mut stream).map(drop),
        _ => stream.write_all(&what),
    }
}
