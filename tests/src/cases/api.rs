//! The daemon's HTTP interface is as its description says.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::api::{self, Answer};
use crate::docker::{Container, same};
use crate::machine::Machine;
use crate::openapi::OpenApi;
use crate::suite::{Context, Verdict};

cases!("api":
    answers_are_as_described,
    events_are_as_described_and_tell_of_containers_and_ports,
);

fn check(api: &OpenApi, method: &str, path: &str, answer: &Answer) -> Result<Value> {
    let body: Value = serde_json::from_str(&answer.body)
        .with_context(|| format!("{method} {path} answered no JSON: {:?}", answer.body))?;
    api.check(method, path, answer.status, &body)?;
    Ok(body)
}

fn answers_are_as_described(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let api = OpenApi::load()?;
    let web = Container::idle(
        &machine,
        context.name("web"),
        &["-p", "127.0.0.1::80", "-p", "127.0.0.1::53/udp"],
    )?;

    for path in [
        "/v1/version",
        "/v1/status",
        "/v1/shares",
        "/v1/ports",
        "/v1/containers",
        "/v1/profiles",
    ] {
        let answer = api::get(&machine, path)?;
        same(path, &answer.status, &200)?;
        check(&api, "get", path, &answer)?;
    }
    let containers = api::get(&machine, "/v1/containers")?;
    let containers = check(&api, "get", "/v1/containers", &containers)?;
    same(
        "container",
        &containers["containers"][0]["name"],
        &json!(web.name()),
    )?;
    same(
        "ports",
        &containers["containers"][0]["ports"].as_array().map(Vec::len),
        &Some(2),
    )?;

    check(&api, "post", "/v1/sync", &api::post(&machine, "/v1/sync")?)?;
    let settings = api::post_json(&machine, "/v1/settings", &json!({}))?;
    same("nothing changed", &settings.status, &200)?;
    check(&api, "post", "/v1/settings", &settings)?;
    let wrong = api::post_json(&machine, "/v1/settings", &json!({"profile": "no-such-profile"}))?;
    same("no such profile", &wrong.status, &404)?;
    check(&api, "post", "/v1/settings", &wrong)?;
    let nowhere = api::post_json(&machine, "/v1/shares", &json!({"path": "/no/such/directory"}))?;
    same("no such directory", &nowhere.status, &400)?;
    check(&api, "post", "/v1/shares", &nowhere)?;
    Ok(Verdict::Passed)
}

/// Reads events until one is what is waited for. Each is held to its description.
fn wait_for(
    events: &mut impl BufRead,
    api: &OpenApi,
    what: &str,
    is_it: impl Fn(&Value) -> bool,
) -> Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if events
            .read_line(&mut line)
            .with_context(|| format!("no event: {what}"))?
            == 0
        {
            bail!("the events ended before one told of {what}");
        }
        // Chunks of the transfer encoding have lines of their own.
        let Ok(event @ Value::Object(_)) = serde_json::from_str(&line) else {
            continue;
        };
        api.check("get", "/v1/events", 200, &event)?;
        if is_it(&event) {
            return Ok(());
        }
    }
}

fn events_are_as_described_and_tell_of_containers_and_ports(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let api = OpenApi::load()?;
    let mut events = events(&machine)?;
    let name = context.name("web");
    wait_for(&mut events, &api, "the start", |event| {
        event["state"] == "running"
    })?;
    wait_for(&mut events, &api, "the ports there are", |event| {
        event["event"] == "ports"
    })?;
    wait_for(&mut events, &api, "what it takes", |event| {
        event["event"] == "usage" && event["resident"].as_u64() > Some(0)
    })?;

    let web = Container::idle(&machine, name.clone(), &["-p", "127.0.0.1::80"])?;
    let has_port = |event: &Value| event["ports"].as_array().is_some_and(|ports| !ports.is_empty());
    let has_container = |event: &Value| {
        let containers = event["containers"].as_array();
        containers.is_some_and(|all| all.iter().any(|container| container["name"] == json!(name)))
    };
    // Docker publishes the port before it tells of the start.
    wait_for(&mut events, &api, "the port", has_port)?;
    wait_for(&mut events, &api, "the container", has_container)?;
    drop(web);
    // In either order.
    let (port_left, container_left) = (Cell::new(false), Cell::new(false));
    wait_for(&mut events, &api, "the end of both", |event| {
        match event["event"].as_str() {
            Some("ports") => port_left.set(!has_port(event)),
            Some("containers") => container_left.set(!has_container(event)),
            _ => {}
        }
        port_left.get() && container_left.get()
    })?;
    Ok(Verdict::Passed)
}

fn events(machine: &Machine) -> Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(machine.api_socket()).context("cannot connect")?;
    stream
        .set_read_timeout(Some(Duration::from_secs(120)))
        .context("cannot set a limit")?;
    stream
        .write_all(b"GET /v1/events HTTP/1.1\r\nHost: berth\r\nConnection: close\r\n\r\n")
        .context("cannot ask for events")?;
    Ok(BufReader::new(stream))
}
