//! What a machine takes over from the host's network: its names, its proxies, its certificate authorities, and where its own
//! networks may be.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::base_image::{self, IMAGE};
use crate::docker::{Container, has, run_script, same};
use crate::host_services::{HttpProxy, HttpServer, Registry};
use crate::namespace::Namespace;
use crate::own_host::Host;
use crate::processes::wait_until;
use crate::program::Program;
use crate::suite::{Context, Verdict};

cases!("names":
    the_host_has_names_in_containers_and_in_builds,
    containers_resolve_what_the_host_can_at_the_moment,
    docker_pulls_through_the_hosts_proxy,
    docker_trusts_the_authorities_that_the_host_trusts,
    docker_stays_clear_of_the_hosts_networks,
);

fn the_host_has_names_in_containers_and_in_builds(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let server = HttpServer::start("berthed alongside")?;
    let network = context.name("net");
    machine.docker(["network", "create", &network]).ok()?;
    let pages = format!(
        "for name in host gateway; do timeout 60 wget -qO- http://$name.docker.internal:{}/; echo; done",
        server.port()
    );
    let expected = "berthed alongside\nberthed alongside";

    let by_default = run_script(&machine, &[], &pages).ok()?;
    let on_a_network = run_script(&machine, &["--network", &network], &pages).ok()?;
    // What asks for both kinds of addresses and takes each answer for itself, as musl does.
    let both = run_script(
        &machine,
        &[],
        "nslookup host.docker.internal; nslookup HOST.docker.internal.",
    )
    .ok()?;
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    fs::write(
        dir.path().join("Dockerfile"),
        format!("FROM {IMAGE}\nRUN ({pages}) > /pages\n"),
    )
    .context("cannot write a Dockerfile")?;
    let tag = context.name("built");
    machine
        .docker(["build", "--no-cache", "--tag", &tag])
        .arg(dir.path())
        .ok()?;
    let built = machine.docker(["run", "--rm", &tag, "cat", "/pages"]).ok()?;

    same("pages on the default network", &by_default.trim(), &expected)?;
    same("pages on another network", &on_a_network.trim(), &expected)?;
    same("pages in a build", &built.trim(), &expected)?;
    same("answers", &both.matches("192.168.127.1").count(), &2)?;
    machine.docker(["image", "rm", &tag]).ok()?;
    machine.docker(["network", "rm", &network]).ok()?;
    Ok(Verdict::Passed)
}

/// The same question as bytes on a connection, and how many come back. busybox has nothing that asks over TCP.
fn by_tcp(container: &Container, name: &str) -> Result<usize> {
    let mut question = String::from("\\000\\007\\001\\000\\000\\001\\000\\000\\000\\000\\000\\000");
    for label in name.split('.') {
        question.push_str(&format!("\\{:03o}{label}", label.len()));
    }
    question.push_str("\\000\\000\\020\\000\\001");
    let length = 12 + name.len() + 2 + 4;
    let script = format!("printf '\\000\\{length:03o}{question}' | timeout 60 nc 192.168.127.3 53 | wc -c");
    let count = container.exec(&script).ok()?;
    count
        .trim()
        .parse()
        .with_context(|| format!("not a number: {count}"))
}

fn containers_resolve_what_the_host_can_at_the_moment(context: &Context) -> Result<Verdict> {
    let host = Host::new()?;
    // The machine is dropped before the namespace it runs in.
    let machine = Arc::new(context.new_machine()?.behind(host.space.prefix()));
    machine
        .start()
        .and_then(|_| base_image::import(&machine))
        .with_context(|| machine.diagnostics())?;
    let container = Container::idle(&machine, context.name("asker"), &[])?;
    let lookup = |arguments: &str| -> Program { container.exec(&format!("nslookup {arguments}")) };
    let finds = |arguments: &str, address: &str| -> Result<()> {
        let answer = lookup(arguments).ok().with_context(|| machine.diagnostics())?;
        has(arguments, &answer, address)
    };

    // A host without a network and without a resolv.conf.
    finds("host.docker.internal", "192.168.127.1")?;
    let failed = lookup("ship.example").run()?;
    ensure!(failed.code() != Some(0), "{}", failed.describe());
    has("the answer", &(failed.text() + &failed.errors()), "SERVFAIL")?;

    // It gets one.
    host.space.run("ip link set lo up").ok()?;
    let first = host.name_server(
        "127.77.0.1",
        "ship.example A 192.0.2.1\nship.example AAAA 2001:db8::1\nlog.example TXT 3000\n",
    )?;
    host.write("resolv.conf", "nameserver 127.77.0.1\n")?;
    finds("ship.example", "192.0.2.1")?;
    finds("-type=aaaa ship.example", "2001:db8::1")?;
    let unknown = lookup("wreck.example").run()?;
    has("the answer", &(unknown.text() + &unknown.errors()), "NXDOMAIN")?;
    // The server cuts it for the host, which asks over TCP then, and so does the container.
    let bytes = by_tcp(&container, "log.example")?;
    ensure!(bytes > 3000, "a long answer over TCP has {bytes} bytes");

    // The same server knows something else, and then another one is used, for which the file is replaced.
    first.knows("ship.example A 192.0.2.2\n")?;
    finds("ship.example", "192.0.2.2")?;
    let _second = host.name_server(
        "127.77.0.2",
        "ship.example A 192.0.2.3\nship.bay.example A 192.0.2.4\n",
    )?;
    host.write("new", "nameserver 127.77.0.2\nsearch bay.example\n")?;
    fs::rename(host.file("new"), host.file("resolv.conf")).context("cannot replace the resolv.conf")?;
    finds("ship.example", "192.0.2.3")?;

    // Its search domain comes to containers that are started from now on.
    let searched = |domains: &str| -> Result<()> {
        wait_until(
            "the guest to have the search domains",
            Duration::from_secs(60),
            || Ok(machine.in_guest("cat /etc/resolv.conf").ok()?.contains(domains)),
        )
    };
    searched("search bay.example")?;
    let found = run_script(&machine, &[], "ping -c 1 -W 1 ship; cat /etc/resolv.conf").run()?;
    has("a container's ping", &found.text(), "PING ship (192.0.2.4)")?;
    // Behind links, as on hosts whose resolv.conf is made by a program.
    host.write("made", "nameserver 127.77.0.1\nsearch one.example two.example\n")?;
    fs::remove_file(host.file("resolv.conf")).context("cannot remove the resolv.conf")?;
    std::os::unix::fs::symlink("made", host.file("resolv.conf")).context("cannot link the resolv.conf")?;
    searched("search one.example two.example")?;
    finds("ship.example", "192.0.2.2")?;

    // Names that only this host has.
    host.write(
        "hosts",
        "127.0.0.1 localhost moor.example\n192.0.2.9 Buoy.Example\n",
    )?;
    finds("moor.example", "192.168.127.1")?;
    finds("buoy.example", "192.0.2.9")?;

    drop(container);
    machine.stop()?;
    machine.delete()?;
    Ok(Verdict::Passed)
}

fn docker_pulls_through_the_hosts_proxy(context: &Context) -> Result<Verdict> {
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let registry = Registry::start(dir.path())?;
    let proxy = HttpProxy::start()?;
    let url = format!("http://localhost:{}", proxy.port());
    let place = format!("shore.example:{}", registry.port());
    let machine = context
        .new_machine()?
        .with_env("http_proxy", &url)
        .with_env("HTTPS_PROXY", &url)
        .with_env("NO_PROXY", "localhost,.bay.example");
    machine.write_config(&format!(
        "docker:\n  daemon:\n    insecure-registries: ['192.168.127.0/24', '{place}']\n"
    ))?;
    machine
        .start()
        .and_then(|_| base_image::import(&machine))
        .with_context(|| machine.diagnostics())?;

    let info = machine
        .docker(["info", "--format", "{{.HTTPProxy}} {{.HTTPSProxy}} {{.NoProxy}}"])
        .ok()?;
    // The host itself is reached without a proxy.
    let direct = registry.image("cargo");
    machine.docker(["tag", IMAGE, &direct]).ok()?;
    machine.docker(["push", &direct]).ok()?;
    let before = proxy.asked();
    let through = format!("{place}/cargo");
    machine.docker(["pull", &through]).ok()?;
    let asked = proxy.asked();

    let seen = format!("http://192.168.127.1:{}", proxy.port());
    let no_proxy = "host.docker.internal,gateway.docker.internal,192.168.127.1,localhost,.bay.example";
    same(
        "docker info",
        &info.as_str(),
        &format!("{seen} {seen} {no_proxy}").as_str(),
    )?;
    same("what was asked of the proxy for the host", &before, &Vec::new())?;
    for method in ["CONNECT", "GET"] {
        let expected = format!("{method} {place}");
        ensure!(asked.contains(&expected), "no {expected:?} among {asked:?}");
    }
    machine.delete()?;
    Ok(Verdict::Passed)
}

fn docker_trusts_the_authorities_that_the_host_trusts(context: &Context) -> Result<Verdict> {
    let (dir, other_dir) = (tempfile::tempdir(), tempfile::tempdir());
    let (dir, other_dir) = (
        dir.context("cannot make a directory")?,
        other_dir.context("cannot make a directory")?,
    );
    let (registry, certificate) = Registry::start_with_tls(dir.path())?;
    let (other, _) = Registry::start_with_tls(other_dir.path())?;
    let machine = context.new_machine()?;
    machine.write_config(&format!(
        "network:\n  ca_certificates: ['{}', /nonexistent/authority.pem]\n",
        certificate.display()
    ))?;
    machine
        .start()
        .and_then(|_| base_image::import(&machine))
        .with_context(|| machine.diagnostics())?;

    let image = registry.image("cargo");
    machine.docker(["tag", IMAGE, &image]).ok()?;
    machine.docker(["push", &image]).ok()?;
    machine.docker(["image", "rm", &image]).ok()?;
    machine.docker(["pull", &image]).ok()?;
    let refused = machine.docker(["pull", &other.image("cargo")]).run()?;
    let status = machine.status()?;

    ensure!(refused.code() != Some(0), "{}", refused.describe());
    has("the refusal", &refused.errors(), "unknown authority")?;
    has(
        "the warnings",
        &status["warnings"].to_string(),
        "/nonexistent/authority.pem",
    )?;
    machine.delete()?;
    Ok(Verdict::Passed)
}

fn docker_stays_clear_of_the_hosts_networks(context: &Context) -> Result<Verdict> {
    let space = Namespace::without_network_but("ip link set lo up\nip route add 172.17.0.0/16 dev lo")?;
    // The machine is dropped before the namespace it runs in.
    let machine = Arc::new(context.new_machine()?.behind(space.prefix()));
    machine
        .start()
        .and_then(|_| base_image::import(&machine))
        .with_context(|| machine.diagnostics())?;

    let bridge = [
        "network",
        "inspect",
        "bridge",
        "--format",
        "{{(index .IPAM.Config 0).Subnet}}",
    ];
    let subnet = machine.docker(bridge).ok()?;
    let address = run_script(&machine, &[], "ip -4 address show eth0").ok()?;
    let before = machine.status()?["warnings"].to_string();
    space.run("ip route add 192.168.127.0/24 dev lo").ok()?;
    wait_until("a warning of the clash", Duration::from_secs(60), || {
        Ok(machine.status()?["warnings"]
            .to_string()
            .contains("192.168.127.0/24"))
    })?;

    same("the bridge's network", &subnet.as_str(), &"172.18.0.0/16")?;
    has("a container's address", &address, "inet 172.18.")?;
    ensure!(
        !before.contains("overlaps"),
        "warnings before there was a clash: {before}"
    );
    machine.stop()?;
    machine.delete()?;
    Ok(Verdict::Passed)
}
