//! Published ports: what containers are reached by on the host, as with a native Docker.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::base_image;
use crate::docker::{Container, STATE_LIMIT, has, inspect, same};
use crate::machine::Machine;
use crate::processes::wait_until;
use crate::program::Program;
use crate::suite::{Context, Verdict};
use crate::tools_image::{self, TOOLS};

cases!("ports":
    a_published_port_answers_at_the_address_that_docker_tells,
    a_taken_port_fails_docker_run_as_natively,
    ports_come_and_go_with_their_containers,
    each_direction_of_a_connection_ends_by_itself_and_resets_are_resets,
    a_container_sees_the_address_of_a_client_on_the_network,
    datagrams_go_to_the_container_and_answers_come_back,
    hundreds_of_connections_at_once_each_get_their_own_bytes,
    iperf3_measures_in_both_directions_over_tcp_and_udp,
    a_slow_reader_gets_every_byte,
    what_listens_in_the_hosts_network_is_there_on_the_host,
    ports_survive_the_end_of_dockerd_and_a_restart_of_the_machine,
    compose_publishes_a_range,
);

/// A web server in a container: busybox's httpd with one page.
const SERVE: &str = "mkdir -p /www && echo page > /www/index.html && exec httpd -f -p 8080 -h /www";
/// How long an answer may take once a connection is there.
const ANSWER: Duration = Duration::from_secs(60);

/// The addresses on the host that `port` (`8080/tcp`) of a container is published at, as Docker tells them.
fn published(machine: &Machine, container: &str, port: &str) -> Result<Vec<SocketAddr>> {
    let lines = machine.docker(["port", container, port]).ok()?;
    lines
        .lines()
        .map(|line| {
            line.parse()
                .with_context(|| format!("docker port printed {line:?}"))
        })
        .collect()
}

/// The address on the host of a port that is published at one.
fn published_at(machine: &Machine, container: &Container, port: &str) -> Result<SocketAddr> {
    let addresses = published(machine, container.name(), port)?;
    let [address] = addresses[..] else {
        anyhow::bail!("expected one address for {port}: {addresses:?}");
    };
    Ok(address)
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream
        .set_read_timeout(Some(ANSWER))
        .context("cannot set a limit")?;
    stream
        .set_write_timeout(Some(ANSWER))
        .context("cannot set a limit")?;
    Ok(stream)
}

/// The page at `address`; fails when nobody answers.
fn page(address: SocketAddr) -> Result<String> {
    let mut stream = connect(address)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (_, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("not an answer: {text:?}"))?;
    Ok(body.trim().to_owned())
}

/// Waits until the program in a container listens, which Docker does not.
fn page_in_time(address: SocketAddr) -> Result<String> {
    let mut found = Ok(String::new());
    wait_until(&format!("a page at {address}"), STATE_LIMIT, || {
        found = page(address);
        Ok(found.is_ok())
    })?;
    found
}

fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

/// A TCP port of the host's loopback that nobody has.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

fn a_published_port_answers_at_the_address_that_docker_tells(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let fixed = free_port()?;
    let web = Container::start(
        &machine,
        context.name("web"),
        &[
            "-p",
            "8080",
            "-p",
            &format!("127.0.0.1:{fixed}:8080"),
            "-p",
            "127.0.0.1::8081",
        ],
        &["sh", "-c", SERVE],
    )?;

    let addresses = published(&machine, web.name(), "8080/tcp")?;
    let here = |address: &SocketAddr| match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, address.port())),
        _ => *address,
    };
    ensure!(
        addresses.contains(&SocketAddr::from((Ipv4Addr::LOCALHOST, fixed))),
        "docker port does not tell port {fixed}: {addresses:?}"
    );
    ensure!(addresses.len() >= 2, "a random port is missing: {addresses:?}");
    for address in addresses.iter().filter(|address| address.is_ipv4() || has_ipv6()) {
        same(
            &address.to_string(),
            &page_in_time(here(address))?,
            &"page".to_owned(),
        )?;
    }
    // Nobody listens there in the container: natively the connection is taken and ends at once.
    let nobody = published_at(&machine, &web, "8081/tcp")?;
    ensure!(
        page(nobody).is_err(),
        "nobody listens on the container's port 8081"
    );

    // From the guest itself and from another container, as natively.
    for address in ["127.0.0.1", "172.17.0.1"] {
        let port = addresses.iter().find(|address| address.ip().is_unspecified());
        let port = port.context("no port is published on all addresses")?.port();
        let found = machine
            .in_guest(&format!("wget -qO- http://{address}:{port}/"))
            .ok()?;
        same("page in the guest", &found, &"page".to_owned())?;
    }

    let listed: Value = serde_json::from_str(&machine.berth(["ports", "--json"]).ok()?)?;
    let ours = listed["ports"].as_array().context("no list of ports")?;
    let ours = ours
        .iter()
        .find(|port| port["host"] == json!(format!("127.0.0.1:{fixed}")));
    let ours = ours.with_context(|| format!("berth ports does not tell port {fixed}: {listed}"))?;
    same("container", &ours["container"], &json!(web.name()))?;
    same("transport", &ours["transport"], &json!("tcp"))?;
    ensure!(
        ours["total"].as_u64() >= Some(1),
        "no connection was counted: {ours}"
    );
    has(
        "berth ports",
        &machine.berth(["ports"]).ok()?,
        &format!("127.0.0.1:{fixed}/tcp"),
    )?;
    Ok(Verdict::Passed)
}

fn a_taken_port_fails_docker_run_as_natively(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = taken.local_addr()?;
    let name = context.name("late");
    let port = format!("{address}:8080");

    let refused = machine
        .docker([
            "run",
            "-d",
            "--name",
            &name,
            "-p",
            &port,
            base_image::IMAGE,
            "sh",
            "-c",
            SERVE,
        ])
        .run()?;

    same("exit code", &refused.code(), &Some(125))?;
    has(
        "docker run",
        &refused.errors(),
        &format!("listen tcp4 {address}: bind: address already in use"),
    )?;
    same(
        "state",
        &inspect(&machine, &name)?["State"]["Running"],
        &json!(false),
    )?;
    // An address that is no address of this host.
    let elsewhere = machine
        .docker(["run", "--rm", "-p", "192.0.2.7:80:80", base_image::IMAGE, "true"])
        .run()?;
    has(
        "docker run",
        &elsewhere.errors(),
        "listen tcp4 192.0.2.7:80: bind: cannot assign requested address",
    )?;
    // The port is free now, and the container that could not start can.
    drop(taken);
    machine.docker(["start", &name]).ok()?;
    same("page", &page_in_time(address)?, &"page".to_owned())?;
    machine.docker(["rm", "-f", &name]).ok()?;
    ensure!(is_free(address), "{address} is still taken");
    Ok(Verdict::Passed)
}

fn ports_come_and_go_with_their_containers(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let port = format!("{address}:8080");
    let names = [context.name("first"), context.name("second")];

    // Docker says that a container is gone when its port is free, so the next can have it at once.
    for round in 0..4 {
        let name = &names[round % 2];
        machine
            .docker([
                "run",
                "-d",
                "--name",
                name,
                "-p",
                &port,
                base_image::IMAGE,
                "sh",
                "-c",
                SERVE,
            ])
            .ok()?;
        ensure!(!is_free(address), "{address} is not listened on");
        machine.docker(["rm", "-f", name]).ok()?;
        ensure!(is_free(address), "{address} is still taken after docker rm");
    }
    let web = Container::start(
        &machine,
        context.name("web"),
        &["-p", &port],
        &["sh", "-c", SERVE],
    )?;
    same("page", &page_in_time(address)?, &"page".to_owned())?;
    machine.docker(["stop", "-t", "0", web.name()]).ok()?;
    ensure!(is_free(address), "{address} is still taken after docker stop");
    machine.docker(["start", web.name()]).ok()?;
    same("page", &page_in_time(address)?, &"page".to_owned())?;
    // A program that ends by itself takes its port with it. Docker tells when.
    web.exec("kill 1").run()?;
    machine.docker(["kill", web.name()]).run()?;
    web.wait_for("/State/Running", &json!(false))?;
    wait_until("the port to be free", STATE_LIMIT, || Ok(is_free(address)))?;
    drop(web);
    let listed: Value = serde_json::from_str(&machine.berth(["ports", "--json"]).ok()?)?;
    same("ports", &listed, &json!({ "ports": [] }))?;
    Ok(Verdict::Passed)
}

/// A container with tools that runs a command and publishes one of its ports at a random one of the host's loopback.
fn tool(machine: &Arc<Machine>, name: String, port: &str, command: &[&str]) -> Result<Container> {
    tools_image::import(machine)?;
    let published = format!("127.0.0.1::{port}");
    Container::of(TOOLS, machine, name, &["-p", &published], command)
}

/// A connection to a program in a container that listens by then: before, one is taken and ends at once.
fn connect_in_time(address: SocketAddr) -> Result<TcpStream> {
    let mut found = None;
    wait_until(&format!("a listener at {address}"), STATE_LIMIT, || {
        let stream = connect(address)?;
        stream.set_nonblocking(true)?;
        // Nobody speaks first, so what can be read is an end.
        thread::sleep(Duration::from_millis(300));
        let ended = !matches!(stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
        stream.set_nonblocking(false)?;
        found = (!ended).then_some(stream);
        Ok(found.is_some())
    })?;
    found.context("nobody listens")
}

/// Waits until a connection to `address` is answered at all: the program listens, and echoes.
fn wait_for_echo(address: SocketAddr) -> Result<()> {
    wait_until(&format!("an echo at {address}"), STATE_LIMIT, || {
        let mut byte = [0];
        Ok(connect(address)
            .and_then(|mut stream| {
                stream.write_all(b"?")?;
                Ok(stream.read_exact(&mut byte)?)
            })
            .is_ok())
    })
}

fn each_direction_of_a_connection_ends_by_itself_and_resets_are_resets(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let server = tool(
        &machine,
        context.name("server"),
        "9000",
        // With a word at the end, which comes only when the client's end has come.
        &["socat", "TCP-LISTEN:9000,fork,reuseaddr", "SYSTEM:cat; echo end"],
    )?;
    let address = published_at(&machine, &server, "9000/tcp")?;
    wait_for_echo(address)?;

    let mut client = connect(address)?;
    client.write_all(b"said ")?;
    client.shutdown(Shutdown::Write)?;
    let mut heard = String::new();
    client.read_to_string(&mut heard)?;
    same("answer", &heard.as_str(), &"said end\n")?;

    // A container that is killed in the middle of an answer: no orderly end may come of it.
    let cut = tool(
        &machine,
        context.name("cut"),
        "9001",
        &[
            "sh",
            "-c",
            "socat -u SYSTEM:'echo half of; sleep 1000' TCP-LISTEN:9001,linger=0",
        ],
    )?;
    let address = published_at(&machine, &cut, "9001/tcp")?;
    let mut half = [0; 8];
    let mut client = None;
    wait_until("half an answer", STATE_LIMIT, || {
        let mut stream = connect(address)?;
        let read = stream.read_exact(&mut half).is_ok();
        client = Some(stream);
        Ok(read)
    })?;
    same("half", &&half[..], &&b"half of\n"[..])?;
    machine.docker(["kill", cut.name()]).ok()?;
    let mut client = client.context("there is no connection")?;
    match client.read(&mut half) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(Verdict::Passed),
        other => anyhow::bail!("expected a reset, found {other:?}"),
    }
}

fn a_container_sees_the_address_of_a_client_on_the_network(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    tools_image::import(&machine)?;
    let server = Container::of(
        TOOLS,
        &machine,
        context.name("server"),
        &["-p", "0.0.0.0::9000"],
        &[
            "socat",
            "TCP-LISTEN:9000,fork,reuseaddr",
            "SYSTEM:echo $SOCAT_PEERADDR; sha256sum",
        ],
    )?;
    let port = published_at(&machine, &server, "9000/tcp")?.port();
    let seen = |host: Ipv4Addr| -> Result<String> {
        let mut seen = String::new();
        wait_until("a container's word", STATE_LIMIT, || {
            let mut stream = connect((host, port).into())?;
            // More than fits anywhere, so that packets go both ways for a while.
            let sent = stream
                .write_all(&vec![7; 1 << 20])
                .and_then(|()| stream.shutdown(Shutdown::Write));
            seen.clear();
            Ok(sent.is_ok() && stream.read_to_string(&mut seen).is_ok() && !seen.is_empty())
        })?;
        let (address, sum) = seen.split_once('\n').context("one line is missing")?;
        has("sum", sum, "  -")?;
        Ok(address.to_owned())
    };

    let gateway = server.at("/NetworkSettings/Gateway")?;
    same(
        "client on the loopback",
        &json!(seen(Ipv4Addr::LOCALHOST)?),
        &gateway,
    )?;
    // Nothing is sent: the host says which of its addresses it would take.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let Ok(IpAddr::V4(address)) = socket
        .connect("198.51.100.1:9")
        .and_then(|()| socket.local_addr())
        .map(|address| address.ip())
    else {
        return Ok(Verdict::NotHere("this host is on no network".into()));
    };
    same("client on the network", &seen(address)?, &address.to_string())?;
    Ok(Verdict::Passed)
}

fn datagrams_go_to_the_container_and_answers_come_back(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let server = tool(
        &machine,
        context.name("server"),
        "9000/udp",
        &["socat", "UDP-RECVFROM:9000,fork,reuseaddr", "SYSTEM:cat"],
    )?;
    let address = published_at(&machine, &server, "9000/udp")?;
    let peers = [(); 3].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)));
    for (number, peer) in peers.into_iter().enumerate() {
        let peer = peer?;
        peer.connect(address)?;
        peer.set_read_timeout(Some(Duration::from_secs(2)))?;
        // Datagrams may be lost, so each is said again until it is answered; what is answered is whole.
        let said = vec![b'a' + number as u8; 900 + number];
        let mut heard = vec![0; 2000];
        let mut length = 0;
        wait_until("an answer to a datagram", STATE_LIMIT, || {
            peer.send(&said)?;
            match peer.recv(&mut heard) {
                Ok(received) => length = received,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(length > 0)
        })?;
        ensure!(
            heard[..length] == said[..],
            "{length} other bytes came back than were sent"
        );
    }
    let taken = machine
        .docker([
            "run",
            "--rm",
            "-p",
            &format!("{address}:9/udp"),
            base_image::IMAGE,
            "true",
        ])
        .run()?;
    ensure!(
        taken.code() == Some(125),
        "a taken UDP port must be refused: {}",
        taken.describe()
    );
    drop(server);
    // All of the answers' sockets are closed with it.
    UdpSocket::bind(address).with_context(|| format!("{address} is still taken"))?;
    Ok(Verdict::Passed)
}

fn hundreds_of_connections_at_once_each_get_their_own_bytes(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let count = if context.setup().options.full { 2000 } else { 200 };
    let server = tool(
        &machine,
        context.name("server"),
        "9000",
        &["socat", "TCP-LISTEN:9000,fork,reuseaddr,backlog=1000", "PIPE"],
    )?;
    let address = published_at(&machine, &server, "9000/tcp")?;
    wait_for_echo(address)?;

    let mut connections = Vec::new();
    for number in 0..count {
        let mut stream = connect(address).with_context(|| format!("connection {number} of {count}"))?;
        stream.write_all(format!("this is {number:05}\n").as_bytes())?;
        connections.push(stream);
    }
    for (number, stream) in connections.iter_mut().enumerate() {
        let mut heard = [0; 14];
        stream
            .read_exact(&mut heard)
            .with_context(|| format!("connection {number} of {count}"))?;
        same(
            "echo",
            &String::from_utf8_lossy(&heard).as_ref(),
            &format!("this is {number:05}\n").as_str(),
        )?;
    }
    drop(connections);
    wait_until("the connections to be gone", STATE_LIMIT, || {
        let listed: Value = serde_json::from_str(&machine.berth(["ports", "--json"]).ok()?)?;
        Ok(listed["ports"][0]["open"] == json!(0))
    })?;
    Ok(Verdict::Passed)
}

/// It speaks over one port with both protocols, several connections at once, the first of which controls the others.
fn iperf3_measures_in_both_directions_over_tcp_and_udp(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    tools_image::import(&machine)?;
    let port = free_port()?;
    let publish = ["tcp", "udp"].map(|protocol| format!("127.0.0.1:{port}:5201/{protocol}"));
    let server = Container::of(
        TOOLS,
        &machine,
        context.name("iperf3"),
        &["-p", &publish[0], "-p", &publish[1]],
        &["iperf3", "--server", "--forceflush"],
    )?;
    // It listens anew for each client, and says so.
    let mut clients = 0;
    let mut measure = |arguments: &[&str]| -> Result<Value> {
        clients += 1;
        wait_until("iperf3 to listen", STATE_LIMIT, || {
            let logs = machine.docker(["logs", server.name()]).run()?;
            let running = inspect(&machine, server.name())?["State"]["Running"] == json!(true);
            ensure!(running, "iperf3 has ended: {}", logs.describe());
            Ok(logs.text().matches("Server listening").count() >= clients)
        })?;
        let client = Program::new("iperf3")
            .args(["--client", "127.0.0.1", "--json", "--port", &port.to_string()])
            .args(arguments)
            .limit(STATE_LIMIT);
        let printed = client
            .ok()
            .with_context(|| format!("iperf3 {}", arguments.join(" ")))?;
        let mut report: Value = serde_json::from_str(&printed).with_context(|| printed.clone())?;
        ensure!(
            report["error"].is_null(),
            "iperf3 {}: {report}",
            arguments.join(" ")
        );
        Ok(report["end"].take())
    };
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    for direction in [&[][..], &["--reverse"]] {
        // At a pace that leaves little on its way: whoever receives stops counting when the other has sent all.
        let end = measure(
            &[
                &["--bitrate", "500K", "--time", "4", "--parallel", "4"],
                direction,
            ]
            .concat(),
        )?;
        let [sent, received] = ["sum_sent", "sum_received"].map(|sum| number(&end[sum]["bytes"]));
        ensure!(
            sent > 100_000.0 && received > 10_000.0,
            "{sent} bytes were sent and {received} received {direction:?}"
        );

        let end = measure(
            &[
                &["--udp", "--bitrate", "2M", "--length", "1200", "--time", "2"],
                direction,
            ]
            .concat(),
        )?;
        let (packets, lost) = (
            number(&end["sum"]["packets"]),
            number(&end["sum"]["lost_packets"]),
        );
        ensure!(
            packets > 100.0 && lost < packets,
            "{lost} lost of {packets} {direction:?}"
        );
    }
    Ok(Verdict::Passed)
}

fn a_slow_reader_gets_every_byte(context: &Context) -> Result<Verdict> {
    /// Bytes that are sent.
    const AMOUNT: usize = 8 << 20;
    /// Lines that come back, nine million bytes.
    const LINES: usize = 1_300_000;
    let machine = context.machine()?;
    // Both sides wait before they read, so that everything between them fills up.
    let script = format!("SYSTEM:sleep 2; sha256sum; seq {LINES}");
    let server = tool(
        &machine,
        context.name("server"),
        "9000",
        &["socat", "TCP-LISTEN:9000,fork,reuseaddr", &script],
    )?;
    let address = published_at(&machine, &server, "9000/tcp")?;
    let sent: Vec<u8> = (0..AMOUNT)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let sum = Program::new("sha256sum").input(sent.clone()).ok()?;

    let mut stream = connect_in_time(address)?;
    stream.write_all(&sent)?;
    stream.shutdown(Shutdown::Write)?;
    thread::sleep(Duration::from_secs(2));
    let mut heard = String::new();
    stream.read_to_string(&mut heard)?;
    let (first, rest) = heard.split_once('\n').context("nothing came back")?;
    same("sum of what arrived", &first, &sum.as_str())?;
    let expected: String = (1..=LINES).map(|line| format!("{line}\n")).collect();
    ensure!(
        rest == expected,
        "{} bytes came back, or others than were sent",
        rest.len()
    );
    Ok(Verdict::Passed)
}

fn what_listens_in_the_hosts_network_is_there_on_the_host(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let port = free_port()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let serve = SERVE.replace("8080", &port.to_string());
    let web = Container::start(
        &machine,
        context.name("web"),
        &["--network", "host"],
        &["sh", "-c", &serve],
    )?;
    same("page", &page_in_time(address)?, &"page".to_owned())?;
    let listed: Value = serde_json::from_str(&machine.berth(["ports", "--json"]).ok()?)?;
    same("by", &listed["ports"][0]["by"], &json!("host_network"))?;
    drop(web);
    wait_until("the port to be free", STATE_LIMIT, || Ok(is_free(address)))?;
    Ok(Verdict::Passed)
}

fn ports_survive_the_end_of_dockerd_and_a_restart_of_the_machine(context: &Context) -> Result<Verdict> {
    let machine = Arc::new(context.new_machine()?);
    machine.write_config("network:\n  published_address: 127.0.0.1\n")?;
    machine.start()?;
    base_image::import(&machine)?;
    let web = Container::start(
        &machine,
        context.name("web"),
        &["--restart", "always", "-p", "8080"],
        &["sh", "-c", SERVE],
    )?;
    // The configured address is where it is published, and what Docker tells.
    let address = published_at(&machine, &web, "8080/tcp")?;
    same("address", &address.ip(), &IpAddr::V4(Ipv4Addr::LOCALHOST))?;
    same("page", &page_in_time(address)?, &"page".to_owned())?;

    machine.in_guest("kill -9 $(cat /run/docker.pid)").ok()?;
    let again = || -> Result<()> {
        let mut found = None;
        wait_until("the container to be published again", STATE_LIMIT, || {
            found = published_at(&machine, &web, "8080/tcp").ok();
            Ok(found.is_some_and(|address| page(address).is_ok()))
        })
    };
    again()?;
    machine.berth(["restart"]).limit(Duration::from_secs(600)).ok()?;
    again()?;
    drop(web);
    machine.delete()?;
    Ok(Verdict::Passed)
}

fn compose_publishes_a_range(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    // Three in a row that nobody has, most likely.
    let first = (20_000..30_000)
        .step_by(3)
        .find(|first| (*first..first + 3).all(|port| is_free(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))))
        .context("there are no three free ports in a row")?;
    let dir = machine.home().join(context.name("project"));
    std::fs::create_dir_all(&dir)?;
    let image = base_image::IMAGE;
    std::fs::write(
        dir.join("compose.yaml"),
        format!(
            "services:\n  web:\n    image: {image}\n    command: [sh, -c, \"{SERVE}\"]\n    ports:\n      - \
             127.0.0.1:{first}-{last}:8080-8082\n",
            last = first + 2
        ),
    )?;
    let compose = |arguments: &[&str]| {
        machine
            .docker(["compose", "--project-directory"])
            .arg(&dir)
            .args(arguments)
            .limit(Duration::from_secs(300))
    };
    compose(&["up", "-d"]).ok()?;
    same(
        "page",
        &page_in_time(SocketAddr::from((Ipv4Addr::LOCALHOST, first)))?,
        &"page".to_owned(),
    )?;
    for port in first..first + 3 {
        ensure!(
            !is_free(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            "port {port} is not published"
        );
    }
    compose(&["down", "-t", "0"]).ok()?;
    for port in first..first + 3 {
        ensure!(
            is_free(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            "port {port} is still taken"
        );
    }
    Ok(Verdict::Passed)
}
