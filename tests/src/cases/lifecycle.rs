//! The machine's life as its user sees it: start, status, exec, shell, logs, stop.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::api;
use crate::docker::{has, same};
use crate::machine::Machine;
use crate::namespace::Namespace;
use crate::options::Engine;
use crate::program::Program;
use crate::suite::{Context, Verdict};
use crate::terminal::Terminal;

cases!("lifecycle":
    starting_a_running_machine_changes_nothing,
    status_tells_what_runs_and_how_much_it_takes,
    exec_passes_streams_and_exit_codes,
    shell_is_a_terminal_in_the_guest,
    logs_of_every_source_have_what_they_are_for,
    the_docker_context_is_switched_on_start_and_given_back_on_stop,
    doctor_finds_nothing_wrong_with_a_running_machine,
    restart_brings_a_fresh_guest_with_the_old_data,
    two_starts_at_once_start_one_machine,
    a_host_without_a_network_starts_a_machine_all_the_same,
    several_cpus_come_up_and_work,
    the_clock_is_right_when_a_paused_machine_answers_again,
    delete_leaves_nothing,
);

fn starting_a_running_machine_changes_nothing(context: &Context) -> Result<Verdict> {
    let machine = context.fault_machine()?;
    let daemon = machine.daemon()?;
    let boot = machine.in_guest("cat /proc/sys/kernel/random/boot_id").ok()?;

    machine.start()?;

    same("daemon", &machine.daemon()?, &daemon)?;
    same(
        "boot",
        &machine.in_guest("cat /proc/sys/kernel/random/boot_id").ok()?,
        &boot,
    )?;
    Ok(Verdict::Passed)
}

fn status_tells_what_runs_and_how_much_it_takes(context: &Context) -> Result<Verdict> {
    let machine = context.fault_machine()?;

    let status = machine.status()?;
    let human = machine.berth(["status"]).ok()?;
    let list: Value =
        serde_json::from_str(&machine.berth(["list", "--json"]).ok()?).context("list --json")?;

    let accelerator = match context.engine() {
        Engine::Kvm => "kvm",
        Engine::Qemu => "tcg",
    };
    same("state", &status["state"], &json!("running"))?;
    same(
        "engine",
        &status["engine"]["engine"],
        &json!(context.engine().to_string()),
    )?;
    same(
        "accelerator",
        &status["engine"]["accelerator"],
        &json!(accelerator),
    )?;
    same("CPUs", &status["settings"]["cpus"], &json!(context.cpus()))?;
    same("daemon", &status["daemon_pid"], &json!(machine.daemon()?.pid))?;
    same(
        "docker socket",
        &status["docker"]["socket"],
        &json!(machine.docker_socket()),
    )?;
    let version = machine
        .docker(["version", "--format", "{{.Server.Version}}"])
        .ok()?;
    same("docker version", &status["docker"]["version"], &json!(version))?;
    for figure in [
        "/uptime_seconds",
        "/memory/given",
        "/memory/used",
        "/memory/resident",
        "/disk/size",
        "/disk/used",
    ] {
        ensure!(
            status.pointer(figure).is_some_and(|value| !value.is_null()),
            "status has no {figure}: {status}"
        );
    }
    for word in ["running", &context.engine().to_string(), accelerator, &version] {
        has("status", &human, word)?;
    }
    has("list", &list.to_string(), "default")?;
    Ok(Verdict::Passed)
}

fn exec_passes_streams_and_exit_codes(context: &Context) -> Result<Verdict> {
    let machine = context.fault_machine()?;

    let finished = machine
        .in_guest("cat; echo to-err >&2; exit 7")
        .input("from the host\n")
        .fails_with(7)?;
    let missing = machine
        .berth(["exec", "--", "/no/such/program"])
        .fails_with(127)?;
    machine.berth(["exec", "--", "/etc/passwd"]).fails_with(126)?;
    let signalled = machine.in_guest("kill -TERM $$").run()?;

    same("stdout", &finished.text().as_str(), &"from the host")?;
    same("stderr", &finished.errors().as_str(), &"to-err")?;
    missing.says(&["/no/such/program"])?;
    same("exit code after SIGTERM", &signalled.code(), &Some(143))?;
    Ok(Verdict::Passed)
}

fn shell_is_a_terminal_in_the_guest(context: &Context) -> Result<Verdict> {
    let machine = context.fault_machine()?;

    let mut terminal = Terminal::start(machine.berth(["shell"]), 33, 111)?;
    terminal.asks_until("stty size\r", "33 111")?;
    terminal.resize(34, 112)?;
    terminal.asks_until("stty size\r", "34 112")?;
    terminal.types("echo in $(hostname)\r")?;
    terminal.shows("in berth")?;
    terminal.types("exit 9\r")?;

    same("exit code", &terminal.finish()?, &9)?;
    Ok(Verdict::Passed)
}

fn logs_of_every_source_have_what_they_are_for(context: &Context) -> Result<Verdict> {
    let machine = context.fault_machine()?;

    for (source, content) in [
        ("daemon", "daemon started"),
        ("console", "init"),
        ("dockerd", "API listen"),
        ("kernel", "Linux version"),
    ] {
        let log = machine.berth(["logs", "--source", source]).ok()?;
        has(&format!("the {source} log"), &log, content)?;
    }
    machine
        .berth(["logs", "--source", "harbour"])
        .fails_with(2)?
        .says(&["dockerd"])?;
    Ok(Verdict::Passed)
}

fn the_docker_context_is_switched_on_start_and_given_back_on_stop(context: &Context) -> Result<Verdict> {
    let machine = context.fault_machine()?;
    let docker = |arguments: &[&str]| machine.program(&machine.setup().docker).args(arguments);

    let during = docker(&["context", "show"]).ok()?;
    let through = docker(&["info", "--format", "{{.OSType}}"])
        .ok()
        .context("docker without DOCKER_HOST")?;
    machine.stop()?;
    let after = docker(&["context", "show"]).ok()?;
    let stopped = machine.docker(["version"]).run()?;

    same("context while it runs", &during.as_str(), &"berth")?;
    same("docker through the context", &through.as_str(), &"linux")?;
    same("context after stop", &after.as_str(), &"default")?;
    ensure!(
        stopped.code() == Some(1),
        "docker must fail with the machine stopped: {}",
        stopped.describe()
    );
    machine.berth(["status"]).fails_with(3)?;
    Ok(Verdict::Passed)
}

fn doctor_finds_nothing_wrong_with_a_running_machine(context: &Context) -> Result<Verdict> {
    let machine = context.fault_machine()?;

    let report = machine.berth(["doctor"]).ok()?;

    for check in ["kvm", "passt", "kernel", "image", "disk", "context", "clock"] {
        has("doctor", &report.to_lowercase(), check)?;
    }
    Ok(Verdict::Passed)
}

fn restart_brings_a_fresh_guest_with_the_old_data(context: &Context) -> Result<Verdict> {
    let machine = context.fault_machine()?;
    let boot = machine
        .in_guest("echo kept > /root/kept; cat /proc/sys/kernel/random/boot_id")
        .ok()?;

    machine
        .berth(["restart"])
        .limit(crate::machine::START_LIMIT)
        .ok()?;
    let after = machine
        .in_guest("cat /root/kept /proc/sys/kernel/random/boot_id")
        .ok()?;

    let (kept, new_boot) = after.split_once('\n').context("two lines")?;
    same("data", &kept, &"kept")?;
    ensure!(new_boot != boot, "the guest was not started anew");
    Ok(Verdict::Passed)
}

fn two_starts_at_once_start_one_machine(context: &Context) -> Result<Verdict> {
    let machine = context.fault_machine()?;
    machine.stop()?;

    let (first, second) = (machine.start_command().spawn()?, machine.start_command().spawn()?);
    let (first, second) = (first.finish()?, second.finish()?);

    ensure!(first.code() == Some(0), "the first start: {}", first.describe());
    ensure!(
        second.code() == Some(0),
        "the second start: {}",
        second.describe()
    );
    // Each of these fails when there are two.
    machine.daemon()?;
    machine.vmm()?;
    machine.docker(["info", "--format", "{{.OSType}}"]).ok()?;
    Ok(Verdict::Passed)
}

fn a_host_without_a_network_starts_a_machine_all_the_same(context: &Context) -> Result<Verdict> {
    let nowhere = Namespace::without_network()?;
    // The machine is dropped before the namespace it runs in.
    let machine = context.new_machine()?.behind(nowhere.prefix());

    started(&machine)?;
    let guest = machine.in_guest("ls /sys/class/net").ok()?;

    has("the guest's devices", &guest, "lo")?;
    machine.stop()?;
    machine.delete()?;
    Ok(Verdict::Passed)
}

/// Whatever number of virtual CPUs the other cases are run with, here are three: not a power of two, which topologies like.
fn several_cpus_come_up_and_work(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?.with_cpus(3);
    machine.start().with_context(|| machine.diagnostics())?;

    let seen = machine
        .in_guest(
            "nproc; cat /sys/devices/system/cpu/online; cat /sys/devices/system/cpu/cpu2/topology/core_id",
        )
        .ok()?;
    let docker = machine.docker(["info", "--format", "{{.NCPU}}"]).ok()?;
    // Each counts to the same number, at the same time as the others, on whatever CPU it gets.
    let sums = machine
        .in_guest("for i in 1 2 3; do (head -c 4000000 /dev/zero | sha256sum) & done; wait")
        .ok()?;
    // All of them are asked for at the end: a CPU that does not answer holds the machine's stop.
    machine.stop()?;

    same("CPUs in the guest", &seen.as_str(), &"3\n0-2\n2")?;
    same("CPUs that docker knows", &docker.as_str(), &"3")?;
    let sums: Vec<_> = sums.lines().collect();
    ensure!(
        sums.len() == 3 && sums.iter().all(|sum| *sum == sums[0]),
        "different sums of the same bytes: {sums:?}"
    );
    machine.delete()?;
    Ok(Verdict::Passed)
}

fn delete_leaves_nothing(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;
    started(&machine)?;

    // Asks first, and without a terminal to ask on it refuses.
    machine.berth(["delete"]).run().and_then(|finished| {
        ensure!(
            finished.code() != Some(0),
            "delete without --force deleted: {}",
            finished.describe()
        );
        finished.says(&["--force"])
    })?;
    machine.delete()?;

    ensure!(!machine.docker_socket().exists(), "the docker socket is left");
    let contexts = machine
        .program(&machine.setup().docker)
        .args(["context", "ls", "--format", "{{.Name}}"])
        .ok()?;
    same("docker contexts", &contexts.as_str(), &"default")?;
    machine.berth(["status"]).fails_with(3)?;
    Ok(Verdict::Passed)
}

/// Starts a machine of a case's own; the suite does not know it, so the error has its logs.
fn started(machine: &Machine) -> Result<()> {
    machine
        .start()
        .map(drop)
        .map_err(|error| anyhow::anyhow!("{error:#}\n{}", machine.diagnostics()))?;
    machine
        .docker(["ps"])
        .limit(Duration::from_secs(60))
        .ok()
        .map(drop)
}

fn the_clock_is_right_when_a_paused_machine_answers_again(context: &Context) -> Result<Verdict> {
    /// Long enough to be told from a clock that is a second off by rounding.
    const PAUSE: Duration = Duration::from_secs(5);
    let machine = context.fault_machine()?;
    let now = || -> Result<u64> { Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()) };
    let info = || machine.docker(["info", "--format", "{{.SystemTime}}"]);
    let seconds = |text: String| -> Result<u64> {
        let seconds = Program::new("date").args(["+%s", "-d"]).arg(text).ok()?;
        seconds.parse().context("date printed no number")
    };

    // Whoever asks while it stands still is answered when it goes on, with the right time.
    same("pause", &api::post(&machine, "/v1/pause")?.status, &204)?;
    let waiting = info().spawn()?;
    thread::sleep(PAUSE);
    let before = now()?;
    same("resume", &api::post(&machine, "/v1/resume")?.status, &204)?;
    let inside = [seconds(info().ok()?)?, seconds(waiting.finish()?.ok()?)?];
    let after = now()?;

    for inside in inside {
        ensure!(
            (before - 1..=after + 1).contains(&inside),
            "Docker's clock says {inside}, between {before} and {after} of the host's"
        );
    }
    Ok(Verdict::Passed)
}
