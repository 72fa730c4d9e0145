//! docker compose: a small application up, scaled, read and down again.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::base_image::IMAGE;
use crate::docker::{has, same};
use crate::program::Program;
use crate::suite::{Context, Verdict};

cases!("compose": three_services_come_up_scale_log_and_go_down);

fn three_services_come_up_scale_log_and_go_down(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let project = context.name("fleet");
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let file = dir.path().join("compose.yaml");
    fs::write(
        &file,
        format!(
            "services:\n\
             \x20 web:\n\
             \x20   image: {IMAGE}\n\
             \x20   command: sh -c 'mkdir /www; hostname > /www/index.html; echo web is up; exec httpd -f -p 8080 -h /www'\n\
             \x20   stop_signal: SIGKILL\n\
             \x20 store:\n\
             \x20   image: {IMAGE}\n\
             \x20   init: true\n\
             \x20   command: sh -c 'echo stored > /data/file; echo store is up; exec sleep 1000'\n\
             \x20   volumes: ['goods:/data']\n\
             \x20 client:\n\
             \x20   image: {IMAGE}\n\
             \x20   init: true\n\
             \x20   depends_on: [web, store]\n\
             \x20   command: sh -c 'until wget -qO- http://web:8080/; do sleep 0.2; done; echo client is up; exec sleep 1000'\n\
             \x20   volumes: ['goods:/data:ro']\n\
             volumes:\n\
             \x20 goods: {{}}\n"
        ),
    )
    .context("cannot write the compose file")?;
    let compose = |arguments: &[&str]| -> Program {
        machine
            .docker(["compose", "--project-name", &project, "--file"])
            .arg(&file)
            .args(arguments)
    };
    let running = || -> Result<usize> { Ok(compose(&["ps", "--quiet"]).ok()?.lines().count()) };

    compose(&["up", "--detach"]).ok()?;
    same("containers after up", &running()?, &3)?;
    let follower = compose(&["logs", "--follow", "--no-color"]).spawn()?;
    follower.prints("client is up")?;
    drop(follower);
    compose(&["up", "--detach", "--no-recreate", "--scale", "web=2"]).ok()?;
    same("containers after scaling", &running()?, &4)?;
    let shared = compose(&["exec", "-T", "client", "cat", "/data/file"]).ok()?;
    let logs = compose(&["logs", "--no-color"]).ok()?;
    compose(&["down", "--volumes", "--timeout", "2"]).ok()?;

    same("the file the services share", &shared.as_str(), &"stored")?;
    for line in ["web-1", "web-2", "web is up", "store is up", "client is up"] {
        has("logs", &logs, line)?;
    }
    let filter = format!("label=com.docker.compose.project={project}");
    for what in ["container", "network", "volume"] {
        let all: &[&str] = if what == "container" { &["--all"] } else { &[] };
        let left = machine
            .docker([what, "ls", "--quiet", "--filter", &filter])
            .args(all)
            .ok()?;
        ensure!(left.is_empty(), "`compose down` left a {what}: {left}");
    }
    Ok(Verdict::Passed)
}
