//! How many names a container resolves in a second: through berth's name server, which asks the host, and for comparison the name
//! of a container, which Docker's own name server knows, so that the question never leaves the guest.
//!
//! The machine has a host of its own, whose only name server is here and answers at once.

use std::collections::HashSet;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::tools;
use crate::base_image::{self, IMAGE};
use crate::docker::Container;
use crate::machine::Machine;
use crate::options::Setup;
use crate::own_host::Host;
use crate::program::Program;

/// The argument that makes a program of this crate ask for names ([`ask`]); a server and a name follow, for each that is compared.
pub const ASKER: &str = "--ask-names";

/// The host's name server, and the name it knows.
const HOST_SERVER: &str = "127.77.0.1:53";
const NAME: &str = "ship.example";
/// berth's name server in the guest, and Docker's.
const BERTH: &str = "192.168.127.3:53";
const DOCKER: &str = "127.0.0.11:53";
/// The container that Docker's knows, and the network of both.
const CONTAINER: &str = "quay";
const NETWORK: &str = "harbour";
/// How many questions are under way at once.
const AT_ONCE: [usize; 2] = [1, 8];
/// How long is asked each time, and how often; the middle counts.
const ASKED_FOR: Duration = Duration::from_secs(1);
const ROUNDS: usize = 5;
/// A question is lost when it is not answered for so long.
const LOST: Duration = Duration::from_secs(2);

/// Answers a second, for each of [`AT_ONCE`].
type Rates = [f64; AT_ONCE.len()];

/// The figures.
#[derive(Debug, Serialize)]
pub struct Names {
    berth: Rates,
    docker: Rates,
    /// berth's name server, asked by Docker's, as in networks of the user.
    berth_behind_docker: Rates,
    /// The host's name server, asked on the host.
    host: Rates,
}

impl Names {
    /// For people.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "{:44}{:>14}{:>14}{:>8}{:>14}{:>14}\n",
            "names that a container asks for, a second",
            "berth",
            "Docker's own",
            "ratio",
            "by Docker's",
            "on the host"
        );
        for (at, count) in AT_ONCE.iter().enumerate() {
            let (berth, docker) = (self.berth[at], self.docker[at]);
            text += &format!(
                "{:44}{berth:>14.1}{docker:>14.1}{:>8.2}{:>14.1}{:>14.1}\n",
                format!("{count} at once"),
                berth / docker,
                self.berth_behind_docker[at],
                self.host[at]
            );
        }
        text
    }
}

/// Measures on a machine of its own.
pub(super) fn run(setup: &Setup) -> Result<Names> {
    let host = Host::new()?;
    host.space.run("ip link set lo up").ok()?;
    let (address, _) = HOST_SERVER.split_once(':').context("an address has a port")?;
    let _server = host.name_server(address, &format!("{NAME} A 192.0.2.1\n"))?;
    host.write("resolv.conf", &format!("nameserver {address}\n"))?;
    // The machine is dropped before the namespace it runs in.
    let machine = Arc::new(Machine::new(setup)?.behind(host.space.prefix()));
    machine.start()?;
    base_image::import(&machine)?;
    let (volume, program) = tools(&machine)?;
    machine.docker(["network", "create", NETWORK]).ok()?;
    let container = Container::idle(&machine, CONTAINER.into(), &["--network", NETWORK])?;
    let in_a_container = machine
        .docker(["run", "--rm", "--network", NETWORK, "-v", &volume, IMAGE])
        .args(program)
        .args([ASKER, BERTH, NAME, DOCKER, CONTAINER, DOCKER, NAME]);
    let [berth, docker, berth_behind_docker] = rates(in_a_container)?;
    drop(container);
    machine.stop()?;
    machine.delete()?;
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let [host] = rates(Program::behind(&host.space.prefix(), own).args([ASKER, HOST_SERVER, NAME]))?;
    Ok(Names {
        berth,
        docker,
        berth_behind_docker,
        host,
    })
}

fn rates<const N: usize>(asker: Program) -> Result<[Rates; N]> {
    let said = asker.limit(Duration::from_secs(600)).ok()?;
    let rates: Vec<Rates> =
        serde_json::from_str(&said).with_context(|| format!("the asker said {said:?}"))?;
    rates
        .try_into()
        .ok()
        .context("the asker said another number of figures")
}

/// Prints the rates of servers and names that are asked in turns.
///
/// # Errors
/// When there is no answer, or one without an address.
pub fn ask(servers_and_names: &[&str], mut output: impl Write) -> Result<()> {
    let mut all = Vec::new();
    for pair in servers_and_names.chunks(2) {
        let [server, name] = pair else {
            bail!("{pair:?} is not a server and a name")
        };
        let server: SocketAddr = server
            .parse()
            .with_context(|| format!("{server:?} is no address"))?;
        all.push((server, name, AT_ONCE.map(|_| Vec::new())));
    }
    for _ in 0..ROUNDS {
        for (server, name, rates) in &mut all {
            for (at_once, rates) in AT_ONCE.iter().zip(rates) {
                rates.push(
                    rate(*server, name, *at_once).with_context(|| format!("asking {server} for {name}"))?,
                );
            }
        }
    }
    let middle = |mut rates: Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let rates: Vec<Rates> = all.into_iter().map(|(_, _, rates)| rates.map(middle)).collect();
    let text = serde_json::to_string(&rates).context("cannot encode the figures")?;
    writeln!(output, "{text}").context("cannot answer")
}

/// As many as are answered with some always under way.
fn rate(server: SocketAddr, name: &str, at_once: usize) -> Result<f64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot make a socket")?;
    socket.connect(server).context("cannot connect")?;
    socket
        .set_read_timeout(Some(LOST))
        .context("cannot set a limit")?;
    let (mut id, mut count, mut buffer) = (0_u16, 0_u32, [0; 512]);
    let mut under_way = HashSet::new();
    let begin = Instant::now();
    while begin.elapsed() < ASKED_FOR {
        while under_way.len() < at_once {
            id = id.wrapping_add(1);
            socket.send(&question(id, name)).context("cannot ask")?;
            under_way.insert(id);
        }
        match socket.recv(&mut buffer) {
            Ok(length) if under_way.remove(&answered(&buffer[..length])?) => count += 1,
            // The answer to one that was given up.
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                under_way.clear();
            }
            Err(error) => return Err(error).context("cannot receive"),
        }
    }
    ensure!(count > 0, "no answer came");
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

/// A question for the IPv4 addresses of a name (RFC 1035, section 4.1).
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        // At most 63, of the names that are asked for here.
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// The id of an answer, which has to have a record.
fn answered(message: &[u8]) -> Result<u16> {
    let Some(&[high, low, _, code, _, _, _, records]) = message.get(..8) else {
        bail!("not an answer: {message:?}")
    };
    ensure!(
        code & 15 == 0 && records > 0,
        "an answer with the code {} and {records} records",
        code & 15
    );
    Ok(u16::from_be_bytes([high, low]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_questions_id_and_a_record() {
        let mut message = question(0x1234, "ship.example");
        assert_eq!(message.len(), 12 + 14 + 4);
        assert!(answered(&message).is_err(), "a question");
        message[7] = 1;
        assert_eq!(answered(&message).unwrap(), 0x1234);
        message[3] = 2;
        assert!(answered(&message).is_err(), "a failure");
    }
}
