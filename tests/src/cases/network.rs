//! Networks: between containers by name, and out to the host.

use anyhow::{Result, ensure};

use crate::base_image::IMAGE;
use crate::docker::{Container, has, run_script, same};
use crate::host_services::{HOST_FROM_GUEST, HttpServer};
use crate::suite::{Context, Verdict};

cases!("network":
    containers_on_a_user_network_find_each_other_by_name,
    a_container_without_a_network_has_only_its_loopback,
    a_container_reaches_a_server_on_the_host,
);

/// A web server in a container: busybox's httpd with one page.
const SERVE: &str =
    "mkdir -p /www && echo \"page of $NAME\" > /www/index.html && exec httpd -f -p 8080 -h /www";

fn containers_on_a_user_network_find_each_other_by_name(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let (network, other) = (context.name("net"), context.name("net"));
    for name in [&network, &other] {
        machine.docker(["network", "create", name]).ok()?;
    }
    let server = Container::start(
        &machine,
        context.name("server"),
        &[
            "--network",
            &network,
            "--network-alias",
            "pier",
            "-e",
            "NAME=server",
        ],
        &["sh", "-c", SERVE],
    )?;
    let ask = format!(
        "for i in $(seq 50); do wget -qO- http://{}:8080/ && break; sleep 0.2; done",
        server.name()
    );

    let by_name = run_script(&machine, &["--network", &network], &ask).ok()?;
    let by_alias = run_script(&machine, &["--network", &network], "wget -qO- http://pier:8080/").ok()?;
    let elsewhere = run_script(
        &machine,
        &["--network", &other],
        "timeout 10 wget -qO- http://pier:8080/",
    )
    .run()?;

    same("by name", &by_name.as_str(), &"page of server")?;
    same("by alias", &by_alias.as_str(), &"page of server")?;
    // How busybox's resolver fails differs between its builds; that it gets no page does not.
    ensure!(
        elsewhere.code() != Some(0) && elsewhere.text().is_empty(),
        "another network must not resolve the name: {}",
        elsewhere.describe()
    );
    drop(server);
    machine.docker(["network", "rm", &network, &other]).ok()?;
    Ok(Verdict::Passed)
}

fn a_container_without_a_network_has_only_its_loopback(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;

    let interfaces = run_script(
        &machine,
        &["--network", "none"],
        "ls /sys/class/net; ping -c 1 127.0.0.1",
    )
    .ok()?;

    ensure!(
        interfaces.starts_with("lo\nPING"),
        "expected the loopback only: {interfaces}"
    );
    Ok(Verdict::Passed)
}

fn a_container_reaches_a_server_on_the_host(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let server = HttpServer::start("berthed alongside")?;
    let port = server.port();

    let output = machine
        .docker(["run", "--rm", "--add-host", "host.docker.internal:host-gateway", IMAGE, "sh", "-c"])
        .arg(format!(
            "timeout 60 wget -qO- http://{HOST_FROM_GUEST}:{port}/ && echo && timeout 60 wget -qO- http://host.docker.internal:{port}/"
        ))
        .ok()?;

    same(
        "pages by address and by name",
        &output.as_str(),
        &"berthed alongside\nberthed alongside",
    )?;
    has(
        "the guest itself",
        &machine.in_guest("cat /proc/net/route").ok()?,
        "eth0",
    )?;
    Ok(Verdict::Passed)
}
