//! The icon of a machine: what its menu says is so, and what is clicked is done.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{show, with_desktop};
use crate::base_image;
use crate::docker::{Container, STATE_LIMIT, has, same};
use crate::machine::{Machine, START_LIMIT};
use crate::processes::wait_until;
use crate::suite::{Context, Verdict};

cases!("tray":
    a_machine_is_driven_from_the_menu,
    an_icon_of_an_idle_machine_is_idle,
);

const CONFIG: &str = "\
disk: 2GiB
profiles:
  small:
    cpus: 1
    memory: 512MiB
  large:
    cpus: 2
    memory: 768MiB
";

const MIB: u64 = 1 << 20;

fn a_machine_is_driven_from_the_menu(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;
    // The icon starts it as its configuration says.
    let engine = context.engine();
    machine.write_config(&format!("engine: {engine}\n{CONFIG}"))?;
    let machine = Arc::new(machine);
    with_desktop(&machine, |desktop| {
        let messages = desktop.messages()?;
        let (mut running, icon) = show(&machine, desktop)?;
        icon.wait_for("no machine", |menu| menu.has(&["Machine default: not made yet"]))?;

        icon.click(&["Start"])?;
        icon.wait_for("the start", |menu| menu.has(&["Machine default: starting"]))?;
        icon.wait_long_for("the machine", START_LIMIT, |menu| {
            menu.has(&["Machine default: running"])
        })?;
        base_image::import(&machine)?;
        let status = machine.status()?;
        let menu = icon.wait_for("the facts", |menu| menu.has(&["Docker: "]))?;
        let engine = &status["engine"];
        let expected = match (engine["engine"].as_str(), engine["accelerator"].as_str()) {
            (Some(engine), Some(accelerator)) if engine != accelerator => {
                format!("Engine: {engine}, {accelerator}")
            }
            (engine, _) => format!("Engine: {}", engine.unwrap_or_default()),
        };
        has("the menu", &menu.text(), &expected)?;
        has(
            "the menu",
            &menu.text(),
            status["docker"]["version"].as_str().context("a version")?,
        )?;

        switch(&machine, &icon, "large", 768)?;
        switch(&machine, &icon, "small", 512)?;

        let name = context.name("clicked");
        let container = Container::idle(&machine, name.clone(), &["-p", "127.0.0.1::80"])?;
        icon.wait_for("the container", |menu| {
            menu.has(&["Containers: 1", &name, "Open "])
        })?;
        icon.click(&["Containers", &name, "Stop"])?;
        container.wait_for("/State/Status", &json!("exited"))?;
        icon.wait_for("no container", |menu| menu.has(&["Containers: 0"]))?;
        drop(container);

        // The daemon dies under it.
        let before = messages.all();
        machine.daemon()?.kill()?;
        icon.wait_for("the daemon's end", |menu| menu.has(&["Machine default: failed"]))?;
        messages.wait_for("its daemon ended without stopping it")?;
        same("messages", &messages.all().len(), &(before.len() + 1))?;
        icon.click(&["Start"])?;
        icon.wait_long_for("the machine again", START_LIMIT, |menu| {
            menu.has(&["Machine default: running"]) && menu.has(&["Docker: "])
        })?;
        let status = machine.status()?;
        same("the profile", &status["settings"]["profile"], &json!("small"))?;
        let old = machine.in_guest("cat /proc/sys/kernel/random/boot_id").ok()?;

        icon.click(&["Restart"])?;
        wait_until("another guest", START_LIMIT, || {
            let new = machine.in_guest("cat /proc/sys/kernel/random/boot_id").run()?;
            Ok(new.code() == Some(0) && new.text() != old)
        })?;
        icon.wait_long_for("the machine, restarted", START_LIMIT, |menu| {
            menu.has(&["Machine default: running"])
        })?;

        icon.click(&["Stop"])?;
        machine.wait_stopped(STATE_LIMIT)?;
        icon.wait_for("the stop", |menu| menu.has(&["Machine default: stopped"]))?;
        // Of a machine that is stopped the next start has the profile.
        icon.click(&["Profile", "large"])?;
        icon.wait_for("the profile", |menu| menu.has(&["Profile: large"]))?;
        let status = machine.status()?;
        same("the profile", &status["settings"]["profile"], &json!("large"))?;
        icon.click(&["Quit"])?;
        same("the exit code", &running.ends(STATE_LIMIT)?, &Some(0))?;
        Ok(())
    })?;
    machine.delete()?;
    Ok(Verdict::Passed)
}

/// Switches to a profile, which the machine then has.
fn switch(machine: &Machine, icon: &crate::desktop::Icon, profile: &str, mib: u64) -> Result<()> {
    icon.click(&["Profile", profile])?;
    let label = format!("Profile: {profile}");
    icon.wait_long_for(&label, STATE_LIMIT, |menu| {
        menu.at(&[&label, profile]).is_ok_and(|item| item.chosen)
    })?;
    wait_until("the machine to have the profile", STATE_LIMIT, || {
        let status = machine.status()?;
        Ok(status["settings"]["profile"] == json!(profile) && status["memory"]["given"] == json!(mib * MIB))
    })
}

/// What a process has used so far: CPU time in milliseconds, and how often it was woken.
fn used(process: u32) -> Result<(u64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("stat")?;
    let fields: Vec<_> = rest.split(' ').collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let woken = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
        .context("status")?;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok((ticks * 1000 / per_second, woken.trim().parse()?))
}

fn an_icon_of_an_idle_machine_is_idle(context: &Context) -> Result<Verdict> {
    const SECONDS: u64 = 60;
    let machine = context.fault_machine()?;
    with_desktop(&machine, |desktop| {
        let (running, icon) = show(&machine, desktop)?;
        icon.wait_for("the machine", |menu| menu.has(&["Uptime"]))?;
        let (cpu, woken) = used(running.pid())?;
        // Nothing is waited for: this is the time that is measured.
        thread::sleep(Duration::from_secs(SECONDS));
        let (cpu_after, woken_after) = used(running.pid())?;
        eprintln!(
            "tray: {} ms of CPU time and {} wake-ups in {SECONDS} s beside an idle machine",
            cpu_after - cpu,
            woken_after - woken
        );
        ensure!(
            icon.menu()?.has(&["Machine default: running"]),
            "the icon lost its machine"
        );
        Ok(())
    })?;
    Ok(Verdict::Passed)
}
