//! Running containers: options that must reach the kernel, and every way a container begins, waits and ends.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::base_image::IMAGE;
use crate::docker::{Container, STATE_LIMIT, has, run_script, same};
use crate::processes::wait_until;
use crate::suite::{Context, Verdict};

cases!("run":
    foreground_run_returns_output_streams_and_exit_code,
    options_reach_the_process_and_its_cgroup,
    detached_container_is_listed_inspected_and_measured,
    restart_policy_restarts_a_failing_container_as_often_as_told,
    stop_start_kill_pause_and_rm_change_the_state_they_name,
    wait_returns_exit_codes_and_ps_filters_by_them,
    files_are_copied_in_and_out_unchanged,
    running_an_image_that_is_not_there_says_so,
);

fn foreground_run_returns_output_streams_and_exit_code(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;

    let finished = run_script(&machine, &[], "echo to-out; echo to-err >&2; exit 7").fails_with(7)?;

    same("stdout", &finished.text().as_str(), &"to-out")?;
    same("stderr", &finished.errors().as_str(), &"to-err")?;
    Ok(Verdict::Passed)
}

fn options_reach_the_process_and_its_cgroup(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;

    let output = run_script(
        &machine,
        &[
            "-e", "WORD=with space", "-w", "/tmp", "-u", "1234:1234", "--memory", "96m", "--cpus", "0.5",
            "--pids-limit", "64", "--init", "--hostname", "pier", "--read-only", "--cap-drop", "ALL",
        ],
        "echo \"$WORD\"; pwd; id -u; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max; \
         cat /proc/1/comm; hostname; touch /tmp/x 2>/dev/null || echo read-only; grep CapEff /proc/self/status",
    )
    .ok()?;

    same(
        "what the container sees",
        &output.lines().collect::<Vec<_>>(),
        &vec![
            "with space",
            "/tmp",
            "1234",
            "100663296",
            "50000 100000",
            "64",
            "docker-init",
            "pier",
            "read-only",
            "CapEff:\t0000000000000000",
        ],
    )?;
    Ok(Verdict::Passed)
}

fn detached_container_is_listed_inspected_and_measured(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let container = Container::idle(&machine, context.name("idle"), &["--label", "berth.test=listed"])?;

    let ps = machine
        .docker([
            "ps",
            "--filter",
            "label=berth.test=listed",
            "--format",
            "{{.Names}} {{.State}}",
        ])
        .ok()?;
    let top = machine.docker(["top", container.name()]).ok()?;
    let stats = machine
        .docker([
            "stats",
            "--no-stream",
            "--format",
            "{{.Name}}|{{.MemUsage}}|{{.PIDs}}",
            container.name(),
        ])
        .ok()?;
    let running = container.at("/State/Running")?;
    let exec = container.exec("exit 3").fails_with(3)?;

    same("ps", &ps, &format!("{} running", container.name()))?;
    has("top", &top, "sleep 1000")?;
    let fields: Vec<_> = stats.split('|').collect();
    same("stats' name", &fields[0], &container.name())?;
    ensure!(
        !fields[1].starts_with("0B"),
        "stats shows no memory in use: {stats}"
    );
    ensure!(fields[2] != "0", "stats shows no processes: {stats}");
    same("running", &running, &json!(true))?;
    same("exec's output", &exec.text().as_str(), &"")?;
    Ok(Verdict::Passed)
}

fn restart_policy_restarts_a_failing_container_as_often_as_told(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let container = Container::start(
        &machine,
        context.name("failing"),
        &["--restart", "on-failure:2"],
        &["sh", "-c", "echo attempt; exit 4"],
    )?;

    container.wait_for("/RestartCount", &json!(2))?;
    container.wait_for("/State/Status", &json!("exited"))?;
    let logs = machine.docker(["logs", container.name()]).ok()?;

    same("attempts", &logs.lines().collect::<Vec<_>>(), &vec!["attempt"; 3])?;
    same("exit code", &container.at("/State/ExitCode")?, &json!(4))?;
    Ok(Verdict::Passed)
}

fn stop_start_kill_pause_and_rm_change_the_state_they_name(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let container = Container::idle(&machine, context.name("moved"), &[])?;
    let name = container.name();
    let docker = |command: &str| machine.docker([command, name]).ok().map(drop);

    docker("pause")?;
    same("after pause", &container.at("/State/Status")?, &json!("paused"))?;
    container.exec("true").fails_with(1)?.says(&["paused"])?;
    docker("unpause")?;
    same(
        "after unpause",
        &container.at("/State/Status")?,
        &json!("running"),
    )?;
    docker("stop")?;
    same("after stop", &container.at("/State/Status")?, &json!("exited"))?;
    same(
        "exit code of what heeds SIGTERM",
        &container.at("/State/ExitCode")?,
        &json!(0),
    )?;
    docker("start")?;
    same("after start", &container.at("/State/Status")?, &json!("running"))?;
    machine.docker(["rm", name]).fails_with(1)?.says(&["running"])?;
    docker("kill")?;
    container.wait_for("/State/Status", &json!("exited"))?;
    same(
        "exit code after SIGKILL",
        &container.at("/State/ExitCode")?,
        &json!(137),
    )?;
    docker("rm")?;
    machine
        .docker(["inspect", name])
        .fails_with(1)?
        .says(&["no such object"])?;
    Ok(Verdict::Passed)
}

fn wait_returns_exit_codes_and_ps_filters_by_them(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let container = Container::start(
        &machine,
        context.name("ending"),
        &[],
        &["sh", "-c", "sleep 1; exit 17"],
    )?;

    let code = machine.docker(["wait", container.name()]).ok()?;
    // Docker tells those who wait before its own list knows.
    let filter = ["ps", "-a", "--filter", "exited=17", "--format", "{{.Names}}"];
    wait_until("docker ps to list it by its exit code", STATE_LIMIT, || {
        Ok(machine.docker(filter).ok()? == container.name())
    })?;

    same("docker wait", &code.as_str(), &"17")?;
    Ok(Verdict::Passed)
}

fn files_are_copied_in_and_out_unchanged(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let container = Container::idle(&machine, context.name("copied"), &[])?;
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let bytes: Vec<u8> = (0..1_000_003_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::create_dir_all(dir.path().join("in/sub")).context("cannot make a directory")?;
    fs::write(dir.path().join("in/sub/bytes"), &bytes).context("cannot write a file")?;
    let inside = format!("{}:/tmp/in", container.name());

    machine
        .docker(["cp"])
        .arg(dir.path().join("in"))
        .arg(&inside)
        .ok()?;
    container.exec("mv /tmp/in/sub/bytes /tmp/in/moved").ok()?;
    machine.docker(["cp", &inside]).arg(dir.path().join("out")).ok()?;
    let missing = machine
        .docker(["cp", &format!("{}:/nothing", container.name()), "-"])
        .fails_with(1)?;

    let back = fs::read(dir.path().join("out/moved")).context("the file did not come out")?;
    ensure!(
        back == bytes,
        "the bytes that came out differ ({} in, {} out)",
        bytes.len(),
        back.len()
    );
    missing.says(&["could not find the file"])?;
    Ok(Verdict::Passed)
}

fn running_an_image_that_is_not_there_says_so(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;

    let finished = machine
        .docker(["run", "--rm", "--pull", "never", &format!("{IMAGE}-missing")])
        .fails_with(125)?;
    let no_program = machine
        .docker(["run", "--rm", IMAGE, "/no/such/program"])
        .fails_with(127)?;

    finished.says(&["no such image"])?;
    no_program.says(&["/no/such/program", "no such file"])?;
    Ok(Verdict::Passed)
}
