//! Faults of a running machine. Each kills or breaks something, and ends with what was promised: acknowledged data is
//! there, and the next start brings the machine up, or says what to do.

use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::docker::{STATE_LIMIT, has, same};
use crate::machine::Machine;
use crate::namespace::Namespace;
use crate::options::Engine;
use crate::processes::wait_until;
use crate::suite::{Context, Verdict};

cases!("faults":
    a_killed_daemon_takes_its_machine_along_and_the_next_start_cleans_up,
    a_kernel_panic_ends_the_machine_and_is_named_as_the_reason,
    streams_under_way_end_with_their_machine,
    init_cannot_be_killed_from_inside,
    a_power_off_from_inside_is_orderly_and_does_not_confuse_a_start_right_after_it,
    a_killed_dockerd_is_started_again,
    a_power_cut_keeps_what_was_synced,
    stale_sockets_and_pid_files_do_not_stop_a_start,
    a_full_host_disk_is_named_and_survived,
    auto_takes_qemu_where_kvm_only_emulates,
    an_image_damaged_in_the_middle_is_named_after_the_failed_start,
);

/// Ends a fault: the machine is started as a user would, and its data from before are asked for.
fn comes_back(machine: &Machine) -> Result<()> {
    machine.start().context("the start after the fault")?;
    let kept = machine.in_guest("cat /root/before").ok()?;
    same("data from before the fault", &kept.as_str(), &"before")
}

/// A running machine with something on its disk.
fn prepared(context: &Context) -> Result<Arc<Machine>> {
    let machine = context.fault_machine()?;
    machine
        .in_guest("echo before > /root/before && sync /root/before")
        .ok()?;
    Ok(machine)
}

fn a_killed_daemon_takes_its_machine_along_and_the_next_start_cleans_up(
    context: &Context,
) -> Result<Verdict> {
    let machine = prepared(context)?;
    let vmm = machine.vmm()?;

    machine.daemon()?.kill()?;
    vmm.wait_gone(STATE_LIMIT)?;
    let status = machine.berth(["status"]).fails_with(3)?;
    let docker = machine.docker(["version"]).run()?;

    ensure!(
        docker.code() == Some(1),
        "docker must fail: {}",
        docker.describe()
    );
    has(
        "status",
        &(status.text() + &status.errors()).to_lowercase(),
        "daemon",
    )?;
    comes_back(&machine)?;
    Ok(Verdict::Passed)
}

fn a_kernel_panic_ends_the_machine_and_is_named_as_the_reason(context: &Context) -> Result<Verdict> {
    let machine = prepared(context)?;

    // How the command that dies with its machine ends is not the point.
    machine.in_guest("echo c > /proc/sysrq-trigger").run()?;
    machine.wait_stopped(STATE_LIMIT)?;
    let status = machine.status()?;
    let console = machine.berth(["logs", "--source", "console"]).ok()?;

    let reason = status["failure"]["reason"]
        .as_str()
        .unwrap_or_default()
        .to_lowercase();
    has("the reason", &reason, "panic")?;
    has("the console's log", &console, "sysrq triggered crash")?;
    comes_back(&machine)?;
    same(
        "no failure after a good start",
        &machine.status()?["failure"],
        &json!(null),
    )?;
    Ok(Verdict::Passed)
}

/// A client that waits for bytes of a machine that is gone would wait for ever: its stream has to end with the machine.
fn streams_under_way_end_with_their_machine(context: &Context) -> Result<Verdict> {
    let machine = prepared(context)?;
    // One that waits for the first byte, and two that bytes come through as fast as they go.
    let waiting = machine.docker(["events"]).limit(STATE_LIMIT).spawn()?;
    let flowing = machine
        .in_guest("echo begun; cat /dev/zero")
        .output_file("/dev/null")
        .limit(STATE_LIMIT)
        .spawn()?;
    let sending = machine
        .in_guest("echo begun; cat > /dev/null")
        .input_file("/dev/zero")
        .limit(STATE_LIMIT)
        .spawn()?;
    sending.prints("begun")?;
    machine.docker(["info", "--format", "{{.OSType}}"]).ok()?;

    machine.in_guest("echo c > /proc/sysrq-trigger").run()?;
    machine.wait_stopped(STATE_LIMIT)?;

    // Each within its limit; an endless one that "succeeded" would have been told a lie.
    let events = waiting.finish()?;
    for stream in [flowing.finish()?, sending.finish()?] {
        ensure!(
            stream.code() != Some(0),
            "a stream cut off in the middle counts as done: {}",
            stream.describe()
        );
    }
    ensure!(
        events.text().is_empty(),
        "nothing happened: {}",
        events.describe()
    );
    comes_back(&machine)?;
    Ok(Verdict::Passed)
}

fn init_cannot_be_killed_from_inside(context: &Context) -> Result<Verdict> {
    let machine = prepared(context)?;
    let boot = machine.in_guest("cat /proc/sys/kernel/random/boot_id").ok()?;

    // SIGTERM and SIGINT are how an init is asked to end the machine; those are heeded.
    for signal in ["KILL", "SEGV", "HUP", "USR1", "PIPE", "ABRT"] {
        machine.in_guest(&format!("kill -{signal} 1")).ok()?;
    }

    same(
        "boot",
        &machine.in_guest("cat /proc/sys/kernel/random/boot_id").ok()?,
        &boot,
    )?;
    same(
        "docker",
        &machine.docker(["info", "--format", "{{.OSType}}"]).ok()?.as_str(),
        &"linux",
    )?;
    Ok(Verdict::Passed)
}

fn a_power_off_from_inside_is_orderly_and_does_not_confuse_a_start_right_after_it(
    context: &Context,
) -> Result<Verdict> {
    let machine = prepared(context)?;
    let boot = machine.in_guest("cat /proc/sys/kernel/random/boot_id").ok()?;

    // The machine may be gone before the command's own end is told.
    machine.in_guest("kill -TERM 1").run()?;
    wait_until("the daemon to hear of it", STATE_LIMIT, || {
        let log = fs::read_to_string(machine.state_dir().join("daemon.log")).context("the daemon's log")?;
        Ok(log.contains("the guest shuts down by itself"))
    })?;
    comes_back(&machine)?;

    let after = machine.in_guest("cat /proc/sys/kernel/random/boot_id").ok()?;
    ensure!(after != boot, "the machine was asked to power off and did not");
    same("no failure", &machine.status()?["failure"], &json!(null))?;
    Ok(Verdict::Passed)
}

fn a_killed_dockerd_is_started_again(context: &Context) -> Result<Verdict> {
    let machine = prepared(context)?;
    let before = machine.status()?["docker"]["restarts"].as_u64().unwrap_or(0);

    machine
        .in_guest("for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2>/dev/null)\" = dockerd ] && kill -9 ${p#/proc/}; done; true")
        .ok()?;
    wait_until("dockerd to be started again", STATE_LIMIT, || {
        Ok(machine.status()?["docker"]["restarts"].as_u64().unwrap_or(0) > before)
    })?;
    wait_until("docker to answer", STATE_LIMIT, || {
        Ok(machine.docker(["info", "--format", "{{.OSType}}"]).run()?.text() == "linux")
    })?;

    same("state", &machine.status()?["state"], &json!("running"))?;
    let log = machine.berth(["logs", "--source", "daemon"]).ok()?;
    has("the daemon's log", &log, "signal 9")?;
    Ok(Verdict::Passed)
}

fn a_power_cut_keeps_what_was_synced(context: &Context) -> Result<Verdict> {
    let machine = prepared(context)?;
    // A number is printed only when it is safely on the disk; other writes keep the journal busy meanwhile.
    let script = "cd /root || exit 1; rm -f acked; \
                  (while :; do dd if=/dev/zero of=noise bs=64k count=64 2>/dev/null; done) & \
                  i=0; while :; do i=$((i+1)); echo $i >> acked; sync acked || exit 1; echo $i; done";

    let writer = machine.in_guest(script).spawn()?;
    writer.prints("\n25\n")?;
    machine.vmm()?.kill()?;
    machine.wait_stopped(STATE_LIMIT)?;
    let printed = String::from_utf8_lossy(&writer.stdout.bytes()).into_owned();
    // The last line may have been cut in the middle of its number.
    let whole = printed.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let acknowledged: u64 = whole
        .lines()
        .last()
        .context("nothing was written")?
        .parse()
        .context("a number")?;
    comes_back(&machine)?;
    let found = machine.in_guest("cat /root/acked").ok()?;

    // No line is lost or torn, up to the last acknowledged one at least; one more may have made it.
    let numbers: Vec<u64> = found.lines().map_while(|line| line.parse().ok()).collect();
    let last = numbers.last().copied().unwrap_or(0);
    ensure!(
        last >= acknowledged,
        "the disk has {last} of {acknowledged} acknowledged writes"
    );
    ensure!(
        numbers.iter().copied().eq(1..=last),
        "the acknowledged lines are not all there: {found}"
    );
    let mount = machine.in_guest("grep ' /var/lib/berth ' /proc/mounts").ok()?;
    has("the data disk's mount", &mount, "rw,")?;
    machine.in_guest("rm -f /root/acked /root/noise").ok()?;
    Ok(Verdict::Passed)
}

fn stale_sockets_and_pid_files_do_not_stop_a_start(context: &Context) -> Result<Verdict> {
    let machine = prepared(context)?;
    for process in machine.processes()? {
        process.kill()?;
    }
    // What a power cut of the host leaves, and worse: every file is there and none of it is true.
    for entry in fs::read_dir(machine.socket_dir()).context("cannot list the runtime directory")? {
        let path = entry.context("cannot list the runtime directory")?.path();
        if path.extension().is_some_and(|extension| extension == "sock") {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            drop(UnixListener::bind(&path).with_context(|| format!("cannot make {}", path.display()))?);
        } else if path.is_file() {
            // A process that exists and is not berth's: this one.
            fs::write(&path, format!("{}\n", std::process::id()))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }

    machine.berth(["status"]).fails_with(3)?;
    comes_back(&machine)?;
    Ok(Verdict::Passed)
}

fn a_full_host_disk_is_named_and_survived(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;
    let share = machine.home().join(".local/share/berth");
    fs::create_dir_all(&share).context("cannot make the data directory")?;
    let small = Namespace::mounts(&format!(
        "mount -t tmpfs -o size=300m,mode=700 berth-test '{}'",
        share.display()
    ))?;
    let machine = machine.behind(small.prefix());
    let start = || -> Result<()> {
        let finished = machine.start_command().args(["--disk", "2GiB"]).run()?;
        ensure!(
            finished.code() == Some(0),
            "start: {}\n{}",
            finished.describe(),
            machine.diagnostics()
        );
        Ok(())
    };

    start()?;
    machine
        .in_guest("echo before > /root/before && sync /root/before")
        .ok()?;
    // More than the host's disk has, and less than the guest's believes to have.
    let filled = machine
        .in_guest("dd if=/dev/zero of=/root/fill bs=1M count=600 conv=fsync")
        .limit(Duration::from_secs(180))
        .run();
    let status = machine.berth(["status"]).run()?;
    let doctor = machine.berth(["doctor"]).run()?;

    if let Ok(filled) = &filled {
        ensure!(
            filled.code() != Some(0),
            "600 MiB fitted in 300 MiB: {}",
            filled.describe()
        );
    }
    ensure!(
        doctor.code() == Some(4),
        "doctor finds nothing wrong with a full disk: {}",
        doctor.describe()
    );
    has("doctor", &doctor.text(), "FAIL  disk")?;
    if context.engine() == Engine::Kvm {
        has("status", &status.text(), "the host's disk is full")?;
    }
    // Room is made, as the user would; then the machine has to come up with its data.
    small
        // With the source named, mount does not add the options the mount has, among them ids that mean nothing here.
        .run(&format!(
            "mount -t tmpfs -o remount,size=1500m tmpfs '{}'",
            share.display()
        ))
        .ok()?;
    machine.berth(["stop", "--force"]).run()?;
    start()?;
    comes_back(&machine)?;
    machine.delete()?;
    Ok(Verdict::Passed)
}

fn auto_takes_qemu_where_kvm_only_emulates(context: &Context) -> Result<Verdict> {
    if context.engine() != Engine::Qemu {
        return Ok(Verdict::NotHere("KVM works here".to_owned()));
    }
    let machine = context.new_machine()?;
    let refused = machine.berth(["start", "--engine", "kvm"]).run()?;
    if refused.code() == Some(0) {
        machine.delete()?;
        return Ok(Verdict::NotHere("KVM works here".to_owned()));
    }

    same("exit code of --engine kvm", &refused.code(), &Some(4))?;
    refused.says(&["kvm", "--engine qemu"])?;
    let start = machine
        .berth(["start", "--engine", "auto", "--memory", "1GiB"])
        .limit(crate::machine::START_LIMIT)
        .run()?;
    ensure!(
        start.code() == Some(0),
        "{}\n{}",
        start.describe(),
        machine.diagnostics()
    );
    let status = machine.status()?;

    same("engine", &status["engine"]["engine"], &json!("qemu"))?;
    let reason = status["engine"]["reason"]
        .as_str()
        .unwrap_or_default()
        .to_lowercase();
    has("why", &reason, "kvm")?;
    has("why", &reason, "slower")?;
    machine.delete()?;
    Ok(Verdict::Passed)
}

fn an_image_damaged_in_the_middle_is_named_after_the_failed_start(context: &Context) -> Result<Verdict> {
    let good = context.setup().guest_dir.clone();
    let guest = tempfile::tempdir().context("cannot make a directory")?;
    for name in ["vmlinux", "rootfs.erofs", "manifest.json"] {
        fs::copy(good.join(name), guest.path().join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    let image = guest.path().join("rootfs.erofs");
    let mut bytes = fs::read(&image).context("cannot read the image")?;
    // The superblock stays: what is cheap to check at every start looks right.
    let length = bytes.len();
    bytes[8192..length].fill(0xa5);
    fs::write(&image, bytes).context("cannot write the image")?;
    let machine = context.new_machine()?.with_env("BERTH_GUEST_DIR", guest.path());
    machine.write_config("timeouts:\n  boot: 120s\n")?;

    let refused = machine.start_command().run()?;
    fs::copy(good.join("rootfs.erofs"), &image).context("cannot restore the image")?;

    ensure!(matches!(refused.code(), Some(1 | 4)), "{}", refused.describe());
    refused.says(&["image", "damaged", "install"])?;
    machine.start().context("with the image restored")?;
    machine.delete()?;
    Ok(Verdict::Passed)
}
