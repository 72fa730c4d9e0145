//! Profiles: other CPUs and another memory for a machine that runs, and what of them needs a restart.

use std::fs;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::api;
use crate::base_image;
use crate::docker::{Container, has, run_script, same};
use crate::machine::{Machine, START_LIMIT};
use crate::processes::wait_until;
use crate::suite::{Context, Verdict};

cases!("profiles":
    profiles_are_kept_in_the_configuration_with_its_comments,
    wrong_profiles_are_refused_with_what_is_accepted,
    a_running_machine_gets_less_and_more_and_containers_see_it_at_once,
    what_needs_a_restart_is_told_and_done_with_one,
);

/// Small, for small hosts: two CPUs and 768 MiB at most.
const CONFIG: &str = "\
# mine
disk: 2GiB
profiles:
  small:
    cpus: 1          # for the train
    memory: 512MiB
  large:
    cpus: 2
    memory: 768MiB
  roomy:
    cpus: 1
    memory: 640MiB
    disk: 3GiB
";

const MIB: u64 = 1 << 20;

/// A machine with these profiles, not started.
fn machine(context: &Context) -> Result<Arc<Machine>> {
    let machine = context.new_machine()?;
    machine.write_config(CONFIG)?;
    Ok(Arc::new(machine))
}

fn start(machine: &Machine, context: &Context, options: &[&str]) -> Result<()> {
    let engine = context.engine().to_string();
    let started = machine
        .berth(["start", "--engine", &engine])
        .args(options)
        .limit(START_LIMIT)
        .ok();
    started
        .map(drop)
        .map_err(|error| error.context(machine.diagnostics()))
}

fn profiles_are_kept_in_the_configuration_with_its_comments(context: &Context) -> Result<Verdict> {
    let machine = machine(context)?;

    machine
        .berth(["profile", "create", "work", "--cpus", "3", "--memory", "1GiB"])
        .ok()?;
    machine
        .berth(["profile", "edit", "small", "--memory", "640MiB"])
        .ok()?;
    machine.berth(["profile", "delete", "roomy"]).ok()?;
    let text = fs::read_to_string(machine.config_file()).context("the configuration")?;
    let list: Value = serde_json::from_str(&machine.berth(["profile", "list", "--json"]).ok()?)?;
    let shown = machine.berth(["profile", "show", "small"]).ok()?;
    machine
        .berth(["profile", "edit", "small"])
        .env("VISUAL", "sed -i s/640MiB/512MiB/")
        .ok()?;
    let edited = fs::read_to_string(machine.config_file()).context("the configuration")?;
    let kept = machine
        .berth(["profile", "edit", "small"])
        .env("VISUAL", "sed -i s/512MiB/lots/")
        .fails_with(2)?;

    same(
        "the configuration",
        &text.as_str(),
        &"# mine\ndisk: 2GiB\nprofiles:\n  small:\n    cpus: 1          # for the train\n    memory: 640MiB\n  large:\n    \
          cpus: 2\n    memory: 768MiB\n  work:\n    cpus: 3\n    memory: 1GiB\n",
    )?;
    let names: Vec<_> = list["profiles"]
        .as_array()
        .context("a list")?
        .iter()
        .map(|profile| (profile["name"].clone(), profile["origin"].clone()))
        .collect();
    let expected = [
        ("light", "builtin"),
        ("balanced", "builtin"),
        ("heavy", "builtin"),
        ("small", "config"),
        ("large", "config"),
        ("work", "config"),
    ];
    same(
        "profiles",
        &names,
        &expected
            .map(|(name, origin)| (json!(name), json!(origin)))
            .to_vec(),
    )?;
    has("profile show", &shown, "640 MiB")?;
    has("profile show", &shown, "config.yaml:4")?;
    same("edited", &edited, &text.replace("640MiB", "512MiB"))?;
    kept.says(&["stays as it was", ":6:", "4GiB"])?;
    same(
        "after a wrong edit",
        &fs::read_to_string(machine.config_file())?,
        &edited,
    )?;
    Ok(Verdict::Passed)
}

fn wrong_profiles_are_refused_with_what_is_accepted(context: &Context) -> Result<Verdict> {
    let machine = machine(context)?;
    for (arguments, words) in [
        (&["profile", "use", "nothing"][..], &["no machine default"][..]),
        (
            &["start", "--profile", "nothing"],
            &["no profile nothing", "small, large"],
        ),
        (&["profile", "show", "nothing"], &["no profile nothing"]),
        (
            &["profile", "create", "small", "--cpus", "1"],
            &["small already", "profile edit"],
        ),
        (&["profile", "create", "x"], &["--cpus"]),
        (&["profile", "create", "x", "--cpus", "0"], &["1 to 128"]),
        (&["profile", "create", "none", "--cpus", "1"], &["not `none`"]),
        (&["profile", "delete", "heavy"], &["comes with berth"]),
        (
            &["profile", "edit", "nothing", "--cpus", "1"],
            &["no profile nothing"],
        ),
    ] {
        let finished = machine.berth(arguments).run()?;
        ensure!(
            matches!(finished.code(), Some(2 | 3)),
            "{arguments:?}: {}",
            finished.describe()
        );
        finished.says(words)?;
    }
    for (text, words) in [
        (
            "profiles:\n  a:\n    cpus: none\n",
            &["config.yaml:3:11", "profiles.a.cpus", "1 to 128"][..],
        ),
        (
            "profiles:\n  a:\n    speed: 9\n",
            &["config.yaml:3:5", "`speed`", "`cpus`"],
        ),
        ("profiles:\n  A:\n", &["config.yaml:2:3", "lower-case"]),
    ] {
        machine.write_config(text)?;
        machine.berth(["profile", "list"]).fails_with(2)?.says(words)?;
        machine.berth(["start"]).fails_with(2)?.says(words)?;
    }
    Ok(Verdict::Passed)
}

/// CPUs and memory as everybody sees them: docker, a container from before, a new container.
#[derive(Debug, PartialEq)]
struct Seen {
    cpus: Vec<u64>,
    memory_mib: Vec<u64>,
}

fn seen(machine: &Machine, container: &Container) -> Result<Seen> {
    let docker = machine
        .docker(["info", "--format", "{{.NCPU}} {{.MemTotal}}"])
        .ok()?;
    let script = "echo $(nproc) $(awk '/^MemTotal/ {print $2 * 1024}' /proc/meminfo)";
    let old = container.exec(script).ok()?;
    let new = run_script(machine, &[], script).ok()?;
    let figures = [docker, old, new].into_iter().map(|line| {
        let (cpus, memory) = line.split_once(' ').context("two figures")?;
        // awk may say 8.05e+08.
        let memory = memory.parse::<f64>()? as u64 / MIB;
        Ok((cpus.parse::<u64>()?, memory))
    });
    let (cpus, memory_mib) = figures.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    Ok(Seen { cpus, memory_mib })
}

fn a_running_machine_gets_less_and_more_and_containers_see_it_at_once(context: &Context) -> Result<Verdict> {
    let machine = machine(context)?;
    start(&machine, context, &["--profile", "large"])?;
    base_image::import(&machine)?;
    let container = Container::idle(&machine, context.name("watching"), &[])?;

    let large = seen(&machine, &container)?;
    let told = machine.berth(["profile", "use", "small"]).ok()?;
    let small = seen(&machine, &container)?;
    let status = machine.status()?;
    let human = machine.berth(["status"]).ok()?;
    let boot = machine.in_guest("cat /proc/sys/kernel/random/boot_id").ok()?;
    // A paused machine is not switched, and goes on as it was.
    same("pause", &api::post(&machine, "/v1/pause")?.status, &204)?;
    let paused = machine.berth(["profile", "use", "large"]).fails_with(3)?;
    same("resume", &api::post(&machine, "/v1/resume")?.status, &204)?;
    let still_small = seen(&machine, &container)?;
    machine.berth(["profile", "use", "large"]).ok()?;
    let large_again = seen(&machine, &container)?;
    // What programs need is not taken from them.
    let fill = "mkdir -p /tmp/full && mount -t tmpfs -o size=500m full /tmp/full && head -c 400000000 /dev/zero > /tmp/full/x";
    machine.in_guest(fill).ok()?;
    let told_less = machine.berth(["profile", "use", "small"]).ok()?;
    let squeezed = machine.status()?;
    machine.in_guest("umount /tmp/full").ok()?;
    machine.berth(["profile", "use", "small"]).ok()?;
    let roomy = machine.status()?;

    same("CPUs at first", &large.cpus, &vec![2; 3])?;
    same("CPUs then", &small.cpus, &vec![1; 3])?;
    let less: Vec<_> = large
        .memory_mib
        .iter()
        .zip(&small.memory_mib)
        .map(|(large, small)| large.saturating_sub(*small))
        .collect();
    ensure!(
        less.iter().all(|mib| mib.abs_diff(256) <= 2),
        "expected 256 MiB less everywhere: {large:?}, {small:?}"
    );
    same("paused and resumed", &still_small, &small)?;
    same("back", &large_again, &large)?;
    has("a machine that needs more", &told_less, "and not 512 MiB")?;
    let given = squeezed["memory"]["given"].as_u64().context("memory given")?;
    ensure!(
        given > 512 * MIB && given <= 768 * MIB,
        "the machine has {given} bytes of memory"
    );
    has("warnings", &squeezed["warnings"].to_string(), "and not 512 MiB")?;
    same("memory then", &roomy["memory"]["given"], &json!(512 * MIB))?;
    same("warnings then", &roomy["warnings"], &json!([]))?;
    paused.says(&["paused"])?;
    has("profile use", &told, "1 CPU and 512 MiB")?;
    for (pointer, expected) in [
        ("/settings/profile", json!("small")),
        ("/settings/cpus", json!(1)),
        ("/settings/max_cpus", json!(2)),
        ("/settings/memory", json!(512 * MIB)),
        ("/settings/max_memory", json!(768 * MIB)),
        ("/memory/given", json!(512 * MIB)),
        ("/guest/cpus", json!(1)),
        ("/warnings", json!([])),
    ] {
        same(
            pointer,
            status.pointer(pointer).unwrap_or(&Value::Null),
            &expected,
        )?;
    }
    for part in ["small", "1 of at most 2", "512 MiB (at most 768 MiB)"] {
        has("status", &human, part)?;
    }
    same(
        "the guest that was switched",
        &machine.in_guest("cat /proc/sys/kernel/random/boot_id").ok()?,
        &boot,
    )?;
    drop(container);
    let events = api::lines(&machine, "/v1/events")?;
    machine.stop()?;
    let events = events
        .join()
        .map_err(|_| anyhow!("the reader of events failed"))??;
    let settings: Vec<Value> = events
        .lines()
        .filter(|line| line.starts_with("{\"event\":\"settings\""))
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    same(
        "events",
        &settings,
        &vec![
            json!({"event": "settings", "profile": "small", "cpus": 1, "memory": 512 * MIB}),
            json!({"event": "settings", "profile": "large", "cpus": 2, "memory": 768 * MIB}),
            json!({"event": "settings", "profile": "small", "cpus": 1, "memory": 512 * MIB}),
            json!({"event": "settings", "profile": "small", "cpus": 1, "memory": 512 * MIB}),
        ],
    )?;
    machine.delete()?;
    Ok(Verdict::Passed)
}

fn what_needs_a_restart_is_told_and_done_with_one(context: &Context) -> Result<Verdict> {
    let machine = machine(context)?;
    start(&machine, context, &["--profile", "small"])?;
    let disk = || -> Result<u64> {
        let size = machine
            .in_guest("df -k /var/lib/docker | awk 'END {print $2}'")
            .ok()?;
        Ok(size.parse()?)
    };
    let before = disk()?;

    let told = machine.berth(["profile", "use", "roomy"]).ok()?;
    let same_disk = disk()?;
    let report = machine
        .berth(["profile", "use", "roomy", "--restart", "--json"])
        .limit(START_LIMIT)
        .ok()?;
    let report: Value = serde_json::from_str(&report).with_context(|| report.clone())?;
    let after = disk()?;
    let restarted = machine.status()?;

    has("what needs a restart", &told, "a disk of 3 GiB: it has 2 GiB")?;
    has("what needs a restart", &told, "--restart")?;
    same("the disk before the restart", &same_disk, &before)?;
    ensure!(
        after > before + 900 * 1024,
        "the guest's file system has {after} KiB and had {before}: {report}"
    );
    same("profile", &restarted["settings"]["profile"], &json!("roomy"))?;
    same("memory", &restarted["settings"]["memory"], &json!(640 * MIB))?;
    for (what, expected) in [
        ("profile", json!("roomy")),
        ("memory", json!(640 * MIB)),
        ("live", json!(true)),
        ("restarted", json!(true)),
        ("needs_restart", json!([])),
    ] {
        same(what, &report[what], &expected)?;
    }

    // The daemon dies, and its successor knows.
    machine.daemon()?.kill()?;
    machine.wait_stopped(crate::docker::STATE_LIMIT)?;
    start(&machine, context, &[])?;
    let restarted = machine.status()?;
    same("profile", &restarted["settings"]["profile"], &json!("roomy"))?;

    // A machine that is stopped has it from its next start on, and an option wins over it.
    machine.stop()?;
    machine.berth(["profile", "use", "nothing"]).fails_with(2)?;
    let told = machine.berth(["profile", "use", "large"]).ok()?;
    has("profile use", &told, "from its next start on")?;
    machine
        .berth(["profile", "delete", "large"])
        .fails_with(1)?
        .says(&["default", "profile use none"])?;
    let config = machine.berth(["config"]).ok()?;
    has("config", &config, "(profile large, line 9)")?;
    has("config", &config, "(file, line 2)")?;
    start(&machine, context, &["--cpus", "1"])?;
    let status = machine.status()?;
    for (pointer, expected) in [
        ("/settings/profile", json!("large")),
        ("/settings/cpus", json!(1)),
        ("/settings/max_cpus", json!(2)),
        ("/settings/memory", json!(768 * MIB)),
        ("/guest/cpus", json!(1)),
    ] {
        same(
            pointer,
            status.pointer(pointer).unwrap_or(&Value::Null),
            &expected,
        )?;
    }
    // What is offline costs the host nothing: an idle machine's virtual CPUs wait.
    wait_until("the CPU to be offline", crate::docker::STATE_LIMIT, || {
        Ok(machine.in_guest("cat /sys/devices/system/cpu/online").ok()? == "0")
    })?;
    machine.stop()?;
    machine.delete()?;
    Ok(Verdict::Passed)
}
