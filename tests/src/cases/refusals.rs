//! What cannot work is refused before anything is started, with a message that names the cause and the way out.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use anyhow::{Context as _, Result, ensure};
use rustix::process::geteuid;

use crate::docker::{has, same};
use crate::machine::Machine;
use crate::namespace::Namespace;
use crate::options::{Engine, on_path};
use crate::program::{Finished, Program};
use crate::suite::{Context, Verdict};

cases!("refusals":
    wrong_configuration_is_refused_with_its_line_and_what_is_accepted,
    wrong_options_are_refused_with_what_is_accepted,
    a_missing_kvm_device_is_named,
    a_kvm_device_without_permission_is_named,
    a_missing_qemu_is_named_with_its_package,
    a_missing_passt_costs_the_network_and_is_named_with_its_package,
    a_host_disk_without_room_is_named_before_anything_starts,
    a_damaged_or_missing_guest_is_named_with_the_way_to_a_good_one,
    commands_that_need_a_running_machine_say_that_it_is_not,
);

/// Checks that a refusal started nothing.
fn nothing_runs(machine: &Machine) -> Result<()> {
    let processes = machine.processes()?;
    ensure!(
        processes.is_empty(),
        "the refused start left processes: {processes:?}"
    );
    Ok(())
}

fn refused(machine: &Machine, finished: &Finished, code: i32, words: &[&str]) -> Result<()> {
    ensure!(
        finished.code() == Some(code),
        "expected exit code {code}: {}",
        finished.describe()
    );
    finished.says(words)?;
    nothing_runs(machine)
}

/// What a refused start was told must not be what the next one does.
fn nothing_is_remembered(machine: &Machine) -> Result<()> {
    let path = machine.data_dir().join("machine.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let record: serde_json::Value = serde_json::from_slice(&text).context("cannot parse the record")?;
    same("what is remembered", &record["chosen"], &serde_json::json!({}))
}

fn wrong_configuration_is_refused_with_its_line_and_what_is_accepted(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;
    for (text, words) in [
        ("# mine\ncpus: 0\n", &["config.yaml:2:", "cpus", "1 to 128"][..]),
        ("memory: lots\n", &["config.yaml:1:", "memory", "4GiB"]),
        ("disk: 5\n", &["config.yaml:1:", "disk", "64GiB"]),
        ("engine: vbox\n", &["config.yaml:1:", "auto", "kvm", "qemu"]),
        ("\ncpu: 2\n", &["config.yaml:2:", "cpu", "cpus"]),
        ("docker: [\n", &["config.yaml:"]),
        ("docker:\n  daemon: 7\n", &["config.yaml:2:", "daemon"]),
        ("timeouts:\n  boot: soon\n", &["config.yaml:2:", "boot", "90s"]),
    ] {
        machine.write_config(text)?;
        let finished = machine.start_command().run()?;
        refused(&machine, &finished, 2, words).with_context(|| format!("configuration {text:?}"))?;
    }
    Ok(Verdict::Passed)
}

fn wrong_options_are_refused_with_what_is_accepted(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;
    for (arguments, words) in [
        (&["start", "--cpus", "0"][..], &["--cpus", "1 to 128"][..]),
        (&["start", "--memory", "12"], &["--memory", "4GiB"]),
        (&["start", "--memory", "900GiB"], &["memory", "900"]),
        (&["start", "--disk", "1MiB"], &["--disk", "64GiB"]),
        (
            &["start", "--engine", "vbox"],
            &["--engine", "auto", "kvm", "qemu"],
        ),
        (&["start", "--machine", "../x"], &["--machine"]),
        (&["start", "--speed", "9"], &["--speed"]),
        (&["sail"], &["sail"]),
    ] {
        let finished = machine.berth(arguments).run()?;
        refused(&machine, &finished, 2, words).with_context(|| format!("{arguments:?}"))?;
    }
    Ok(Verdict::Passed)
}

fn a_missing_kvm_device_is_named(context: &Context) -> Result<Verdict> {
    // A /dev of its own with what programs need, and without kvm.
    let hidden = Namespace::mounts(
        "d=$(mktemp -d); mount -t tmpfs -o mode=755 dev $d\n\
         for n in null zero full random urandom tty ptmx; do touch $d/$n; mount --bind /dev/$n $d/$n; done\n\
         mkdir $d/pts $d/shm; mount --rbind /dev/pts $d/pts; ln -s /proc/self/fd $d/fd\n\
         mount --move $d /dev; rmdir $d",
    )?;
    let machine = context.new_machine()?.behind(hidden.prefix());

    let finished = machine.berth(["start", "--engine", "kvm"]).run()?;

    refused(&machine, &finished, 4, &["/dev/kvm", "no KVM", "kvm_amd"])?;
    nothing_is_remembered(&machine)?;
    Ok(Verdict::Passed)
}

fn a_kvm_device_without_permission_is_named(context: &Context) -> Result<Verdict> {
    if !geteuid().is_root() {
        return Ok(Verdict::NotHere(
            "only root can become a user without the permission".to_owned(),
        ));
    }
    match fs::metadata("/dev/kvm") {
        Ok(device) if device.mode() & 0o006 == 0 => {}
        _ => {
            return Ok(Verdict::NotHere(
                "/dev/kvm is missing or open to everybody".to_owned(),
            ));
        }
    }
    // That user cannot get at root's files: what is under test has to be where it can.
    let place = tempfile::Builder::new()
        .prefix("bt-")
        .tempdir()
        .context("cannot make a directory")?;
    let mut setup = context.setup().clone();
    fs::create_dir(place.path().join("guest")).context("cannot make a directory")?;
    for name in ["vmlinux", "rootfs.erofs", "manifest.json"] {
        fs::copy(setup.guest_dir.join(name), place.path().join("guest").join(name))
            .with_context(|| format!("cannot copy {name}"))?;
    }
    fs::copy(&setup.berth, place.path().join("berth")).context("cannot copy berth")?;
    setup.guest_dir = place.path().join("guest");
    setup.berth = place.path().join("berth");
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--",
    ]
    .map(Into::into)
    .to_vec();
    let machine = Machine::new(&setup)?.behind(nobody);
    for dir in [place.path(), machine.dir()] {
        Program::new("chown").args(["-R", "65534:65534"]).arg(dir).ok()?;
    }

    let finished = machine.berth(["start", "--engine", "kvm"]).run()?;

    refused(&machine, &finished, 4, &["/dev/kvm", "permission", "group"])?;
    Ok(Verdict::Passed)
}

/// A directory to be `$PATH`, with links to these programs only.
fn path_with(programs: &[&str]) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    for name in programs {
        let program = on_path(name).with_context(|| format!("there is no {name} here to begin with"))?;
        symlink(&program, dir.path().join(name)).with_context(|| format!("cannot link {name}"))?;
    }
    Ok(dir)
}

fn a_missing_qemu_is_named_with_its_package(context: &Context) -> Result<Verdict> {
    let path = path_with(&["passt"])?;
    let machine = context.new_machine()?.with_env("PATH", path.path());

    let finished = machine.berth(["start", "--engine", "qemu"]).run()?;

    refused(&machine, &finished, 4, &["qemu-system-x86", "install"])?;
    nothing_is_remembered(&machine)?;
    Ok(Verdict::Passed)
}

fn a_missing_passt_costs_the_network_and_is_named_with_its_package(context: &Context) -> Result<Verdict> {
    let programs: &[&str] = match context.engine() {
        Engine::Kvm => &[],
        Engine::Qemu => &["qemu-system-x86_64"],
    };
    let path = path_with(programs)?;
    let machine = context.new_machine()?.with_env("PATH", path.path());

    let finished = machine.start()?;
    let human = machine.berth(["status"]).ok()?.to_lowercase();

    finished.says(&["passt", "install", "no network"])?;
    has("status", &human, "passt")?;
    machine.delete()?;
    Ok(Verdict::Passed)
}

fn a_host_disk_without_room_is_named_before_anything_starts(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;
    let share = machine.home().join(".local/share/berth");
    fs::create_dir_all(&share).context("cannot make the data directory")?;
    let small = Namespace::mounts(&format!(
        "mount -t tmpfs -o size=64m,mode=700 berth-test '{}'",
        share.display()
    ))?;
    let machine = machine.behind(small.prefix());

    let finished = machine.start_command().run()?;

    ensure!(
        finished.code() != Some(0),
        "a start on a full disk: {}",
        finished.describe()
    );
    finished.says(&["disk", "full", "free"])?;
    nothing_runs(&machine)?;
    Ok(Verdict::Passed)
}

fn a_damaged_or_missing_guest_is_named_with_the_way_to_a_good_one(context: &Context) -> Result<Verdict> {
    let good = context.setup().guest_dir.clone();
    let guest = tempfile::tempdir().context("cannot make a directory")?;
    let machine = context.new_machine()?.with_env("BERTH_GUEST_DIR", guest.path());
    let start = || machine.start_command().run();

    refused(&machine, &start()?, 4, &["guest kernel", "missing", "install"])?;
    fs::copy(good.join("vmlinux"), guest.path().join("vmlinux")).context("cannot copy the kernel")?;
    refused(&machine, &start()?, 4, &["guest image", "missing", "install"])?;
    fs::write(guest.path().join("rootfs.erofs"), vec![0; 1 << 20]).context("cannot write an image")?;
    refused(&machine, &start()?, 4, &["guest image", "damaged", "install"])?;
    fs::write(guest.path().join("vmlinux"), "not a kernel").context("cannot write a kernel")?;
    refused(&machine, &start()?, 4, &["guest kernel", "damaged", "install"])?;
    Ok(Verdict::Passed)
}

fn commands_that_need_a_running_machine_say_that_it_is_not(context: &Context) -> Result<Verdict> {
    let machine = context.new_machine()?;

    machine.berth(["status"]).fails_with(3)?;
    let exec = machine.berth(["exec", "--", "true"]).run()?;
    machine
        .berth(["logs", "--source", "dockerd"])
        .run()
        .and_then(|finished| {
            ensure!(
                finished.code() != Some(0),
                "the logs of what does not run: {}",
                finished.describe()
            );
            finished.says(&["not running", "berth start"])
        })?;
    let version = machine.berth(["version"]).ok()?;
    let completion = machine.berth(["completion", "bash"]).ok()?;

    // What berth itself cannot do is not to be taken for the command's own code.
    ensure!(matches!(exec.code(), Some(3 | 125)), "{}", exec.describe());
    exec.says(&["berth start"])?;
    ensure!(
        version.contains(env!("CARGO_PKG_VERSION")),
        "berth version: {version}"
    );
    ensure!(
        completion.contains("complete"),
        "berth completion bash: {completion}"
    );
    nothing_runs(&machine)?;
    Ok(Verdict::Passed)
}
