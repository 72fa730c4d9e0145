//! What needs no machine: daemons that are slow, new, old or killed, desktops that lack something.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{show, tray, with_desktop};
use crate::desktop::fake_daemon::FakeDaemon;
use crate::desktop::{Desktop, LIMIT, Style};
use crate::docker::{has, same};
use crate::suite::{Context, Verdict};

cases!("tray":
    what_a_daemon_tells_is_in_the_menu_and_a_slow_one_does_not_hold_it_up,
    a_start_is_shown_part_by_part_and_its_failure_told_once,
    warnings_are_told_once_and_a_killed_daemon_is_seen,
    a_click_runs_the_programs_of_the_desktop_or_says_what_to_install,
    the_icon_survives_its_panel_and_its_bus,
    without_a_panel_it_says_what_to_install_and_waits,
    without_a_session_it_says_so,
    it_is_started_at_login_by_an_entry,
);

fn running(extra: Value) -> Value {
    let mut status = json!({
        "machine": "default", "state": "running", "uptime_seconds": 65,
        "settings": {"profile": null, "cpus": 2, "max_cpus": 4, "memory": 1 << 30, "max_memory": 2_u64 << 30},
        "engine": {"engine": "kvm", "accelerator": "kvm", "reason": "it works"},
        "memory": {"given": 1 << 30, "used": 300 << 20, "resident": 500 << 20},
        "disk": {"path": "/d", "size": 64_u64 << 30, "allocated": 1_u64 << 30, "used": 900 << 20},
        "docker": {"socket": "/run/docker.sock", "version": "26.1.5"}, "guest": {"load": [0.25, 0.1, 0.0]},
        "warnings": [], "from_the_future": {"x": 1},
    });
    if let (Value::Object(status), Value::Object(extra)) = (&mut status, extra) {
        status.extend(extra);
    }
    status
}

fn state(name: &str) -> Value {
    json!({"event": "state", "state": name, "at_ms": 1})
}

fn what_a_daemon_tells_is_in_the_menu_and_a_slow_one_does_not_hold_it_up(
    context: &Context,
) -> Result<Verdict> {
    let machine = context.new_machine()?;
    let daemon = FakeDaemon::start(&machine.api_socket())?;
    daemon.line("this is no event");
    daemon.events([
        json!({"event": "from_the_future", "x": [1]}),
        state("running"),
        json!({"event": "containers", "containers": [{"id": "a".repeat(64), "name": "web_1", "image": "nginx:1",
            "ports": [{"transport": "tcp", "address": "0.0.0.0", "port": 8080, "container_port": 80}]}]}),
    ]);
    daemon.status(Some(running(json!({}))));
    daemon
        .profiles(json!({"current": null, "profiles": [{"name": "light", "origin": "builtin", "cpus": 1}]}));
    with_desktop(&machine, |desktop| {
        let (_running, icon) = show(&machine, desktop)?;
        let menu = icon.wait_for("the machine's facts", |menu| menu.has(&["Uptime: 1 min"]))?;
        let text = menu.text();
        for part in [
            "Machine default: running",
            "Engine: kvm\n",
            "CPUs: 2 of at most 4, load 0.25",
            "300 MiB used of 1 GiB (at most 2 GiB); 500 MiB of the host's",
            "Disk: 900 MiB used of 64 GiB; 1 GiB of the host's",
            "web_1",
            "Open 8080 → 80/tcp",
            "light: 1 CPU",
        ] {
            has("the menu", &text, part)?;
        }
        ensure!(
            !menu.at(&["Start"])?.enabled && menu.at(&["Stop"])?.enabled,
            "{text}"
        );
        // It has other things to do for a while. What is known stays to be read, and events go on.
        daemon.status(None);
        icon.menu()?;
        daemon.events([json!({"event": "containers", "containers": []})]);
        let menu = icon.wait_for("no containers", |menu| menu.has(&["Containers: 0"]))?;
        has("the menu of a slow daemon", &menu.text(), "CPUs: 2 of at most 4")
    })?;
    Ok(Verdict::Passed)
}

fn a_start_is_shown_part_by_part_and_its_failure_told_once(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;
    with_desktop(&machine, |desktop| {
        let messages = desktop.messages()?;
        let (_running, icon) = show(&machine, desktop)?;
        icon.wait_for("no machine", |menu| menu.has(&["Machine default: not made yet"]))?;
        let mut pictures = vec![icon.pictures()?];
        let daemon = FakeDaemon::start(&machine.api_socket())?;
        daemon.status(Some(json!({"state": "starting"})));
        for (phase, words) in [
            ("prepare", "starting (checking files and choosing an engine)"),
            ("kernel", "starting (booting the guest)"),
            ("docker", "starting (starting Docker)"),
        ] {
            daemon.events([json!({"event": "phase", "phase": phase, "at_ms": 1})]);
            let line = format!("Machine default: {words}");
            icon.wait_for(words, |menu| menu.has(&[&line]))?;
            same("the tool tip", &icon.tool_tip()?.0, &line)?;
            pictures.push(icon.pictures()?);
        }
        let failure = json!({"event": "failed", "reason": "Docker <did> not start", "phase": "docker", "at": 1,
            "host_lacks": false, "console": []});
        let failed =
            json!({"event": "state", "state": "failed", "reason": "Docker <did> not start", "at_ms": 2});
        daemon.events([failure, failed]);
        icon.wait_for("the failure", |menu| {
            menu.has(&["Why it failed", "Docker <did> not start"])
        })?;
        pictures.push(icon.pictures()?);
        let told = messages.wait_for("Docker <did> not start")?;
        same(
            "the message",
            &told.summary.as_str(),
            &"The machine default could not be started",
        )?;
        drop(daemon);
        // The files know of no machine, and nothing is told again.
        icon.wait_for("the end", |menu| menu.has(&["Start"]) && !menu.has(&["Engine"]))?;
        same("messages", &messages.all().len(), &1)?;
        for (at, one) in pictures.iter().enumerate() {
            let sizes: Vec<_> = one.iter().map(|(width, _, _)| *width).collect();
            same("the icon's sizes", &sizes, &vec![16, 22, 24, 32, 48, 64])?;
            ensure!(
                !pictures[at + 1..].contains(one),
                "picture {at} is the same as another"
            );
        }
        Ok(())
    })?;
    Ok(Verdict::Passed)
}

fn warnings_are_told_once_and_a_killed_daemon_is_seen(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;
    let full = "the host's disk is full, or soon will be: 200 MiB of space left for /d";
    let unwatched = "2 directories of the shares cannot be watched";
    let daemon = FakeDaemon::start(&machine.api_socket())?;
    daemon.events([state("running")]);
    daemon.status(Some(running(json!({"warnings": [full]}))));
    with_desktop(&machine, |desktop| {
        let messages = desktop.messages()?;
        let (_running, icon) = show(&machine, desktop)?;
        icon.wait_for("the warning", |menu| menu.has(&["1 warning"]))?;
        messages.wait_for(full)?;
        daemon.status(Some(running(
            json!({"warnings": [full.replace("200", "190"), unwatched]}),
        )));
        daemon.events([json!({"event": "warning", "message": "x"})]);
        icon.wait_for("both warnings", |menu| menu.has(&["2 warnings"]))?;
        messages.wait_for(unwatched)?;
        same("messages", &messages.all().len(), &2)?;

        drop(daemon);
        icon.wait_for("the daemon's end", |menu| {
            menu.at(&["Start"]).is_ok_and(|start| start.enabled)
        })?;
        let daemon = FakeDaemon::start(&machine.api_socket())?;
        daemon.events([state("running")]);
        daemon.status(Some(running(json!({"warnings": [full]}))));
        icon.wait_for("the next daemon", |menu| menu.has(&["1 warning"]))?;
        let told = messages.all();
        let again = told
            .iter()
            .filter(|message| message.body.contains("disk is full"))
            .count();
        same("messages about the disk", &again, &1)
    })?;
    Ok(Verdict::Passed)
}

/// A directory of programs that write down how they were called, in the place of all others.
fn programs(dir: &std::path::Path, names: &[&str]) -> Result<String> {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin)?;
    for name in names {
        let script = format!(
            "#!/bin/sh\necho \"{name} $*\" >> {0}/called\n/bin/cat >> {0}/called\n",
            dir.display()
        );
        fs::write(bin.join(name), script)?;
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755))?;
    }
    Ok(bin.display().to_string())
}

fn a_click_runs_the_programs_of_the_desktop_or_says_what_to_install(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;
    let id = "b".repeat(64);
    let daemon = FakeDaemon::start(&machine.api_socket())?;
    daemon.events([
        state("running"),
        json!({"event": "containers", "containers": [{"id": id, "name": "web", "image": "nginx",
            "ports": [{"transport": "tcp", "address": "127.0.0.1", "port": 8080, "container_port": 80}]}]}),
    ]);
    daemon.status(Some(running(json!({}))));
    with_desktop(&machine, |desktop| {
        let messages = desktop.messages()?;
        let here = machine.dir().join("with");
        let path = programs(&here, &["xdg-open", "xterm", "xclip", "docker"])?;
        let clicks: [&[&str]; 4] = [
            &["Containers", "web", "Open 8080"],
            &["Containers", "web", "Logs"],
            &["Copy the path"],
            &["Doctor"],
        ];
        {
            let running = tray(&machine, desktop).env("PATH", path).spawn()?;
            let icon = desktop.icon(running.pid())?;
            icon.wait_for("the container", |menu| menu.has(&["Containers: 1"]))?;
            for labels in clicks {
                icon.click(labels)?;
            }
            let called = || fs::read_to_string(here.join("called")).unwrap_or_default();
            let docker = here.join("bin/docker").display().to_string();
            for part in [
                "xdg-open http://localhost:8080/",
                "xclip -selection clipboard\n/run/docker.sock",
                &format!("{docker} --host unix:///run/docker.sock logs --follow --tail 500 -- {id}"),
                "--machine default doctor",
            ] {
                crate::processes::wait_until(part, LIMIT, || Ok(called().contains(part)))
                    .with_context(called)?;
            }
            icon.click(&["Quit"])?;
            let mut running = running;
            same("the exit code of a quit icon", &running.ends(LIMIT)?, &Some(0))?;
        }
        same("messages", &messages.all(), &vec![])?;

        let path = programs(&machine.dir().join("without"), &[])?;
        let running = tray(&machine, desktop).env("PATH", path).spawn()?;
        let icon = desktop.icon(running.pid())?;
        icon.wait_for("the container", |menu| menu.has(&["Containers: 1"]))?;
        for labels in clicks {
            icon.click(labels)?;
        }
        for part in [
            "install the package xdg-utils",
            "install one, such as the package docker-cli",
            "install the package xclip. The path is /run/docker.sock",
            "package xterm",
        ] {
            messages.wait_for(part)?;
        }
        Ok(())
    })?;
    Ok(Verdict::Passed)
}

fn the_icon_survives_its_panel_and_its_bus(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;
    let daemon = FakeDaemon::start(&machine.api_socket())?;
    daemon.events([state("running")]);
    daemon.status(Some(running(json!({}))));
    with_desktop(&machine, |desktop| {
        let (running, icon) = show(&machine, desktop)?;
        icon.wait_for("the machine", |menu| menu.has(&["Uptime"]))?;
        // A second one steps back.
        let second = tray(&machine, desktop).limit(LIMIT).run()?;
        same("the exit code of a second icon", &second.code(), &Some(0))?;
        second.says(&["is there already"])?;

        desktop.kill_panel();
        daemon.events([state("paused")]);
        desktop.start_panel(Style::default())?;
        let icon = desktop.icon(running.pid())?;
        icon.wait_for("what happened without a panel", |menu| {
            menu.has(&["Machine default: paused"])
        })?;

        desktop.kill_panel();
        desktop.kill_bus();
        daemon.events([state("running")]);
        desktop.start_bus()?;
        desktop.start_panel(Style::default())?;
        let icon = desktop.icon(running.pid())?;
        icon.wait_for("what happened without a bus", |menu| {
            menu.has(&["Machine default: running"])
        })?;
        Ok(())
    })?;
    Ok(Verdict::Passed)
}

fn without_a_panel_it_says_what_to_install_and_waits(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;
    let program = |name: &OsStr| machine.program(name);
    let mut desktop = Desktop::start(&program, &machine.dir().join("desktop"))?;
    let messages = desktop.messages()?;
    let running = tray(&machine, &desktop)
        .env("XDG_CURRENT_DESKTOP", "ubuntu:GNOME")
        .spawn()?;
    let told = messages.wait_for("gnome-shell-extension-appindicator")?;
    same(
        "the message",
        &told.summary.as_str(),
        &"This desktop shows no status icons",
    )?;
    has(
        "the log",
        &running.complained(),
        "gnome-shell-extension-appindicator",
    )?;
    desktop.start_panel(Style::default())?;
    let icon = desktop.icon(running.pid())?;
    icon.wait_for("the menu", |menu| menu.has(&["Machine default"]))?;
    same("messages", &messages.all().len(), &1)?;
    Ok(Verdict::Passed)
}

fn without_a_session_it_says_so(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;
    machine
        .berth(["tray"])
        .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")
        .limit(Duration::from_secs(30))
        .fails_with(4)?
        .says(&["no D-Bus session", "dbus-user-session"])?;
    Ok(Verdict::Passed)
}

fn it_is_started_at_login_by_an_entry(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;
    let entry = machine.home().join(".config/autostart/berth-tray.desktop");
    machine.berth(["tray", "--install", "-m", "work"]).ok()?;
    let text = fs::read_to_string(&entry).context("the entry")?;
    let line = format!(
        "\nExec=\"{}\" tray --machine work\n",
        machine.setup().berth.display()
    );
    has("the entry", &text, &line)?;
    machine.berth(["tray", "--uninstall"]).ok()?;
    ensure!(!entry.exists(), "{} is still there", entry.display());
    machine.berth(["tray", "--uninstall"]).ok()?;
    machine
        .berth(["tray", "--install", "--uninstall"])
        .fails_with(2)?;
    Ok(Verdict::Passed)
}
