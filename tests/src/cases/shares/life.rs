//! Shares that come, go, guard what is in them, and outlive their machine.

use std::fs;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{bind, directory, outside, read, share, write};
use crate::docker::{Container, STATE_LIMIT, has, run_script, same};
use crate::machine::Machine;
use crate::suite::{Context, Verdict};

cases!("shares":
    a_share_comes_and_goes_while_the_machine_runs,
    a_read_only_share_cannot_be_written_and_an_exclusion_is_not_there,
    shares_of_a_stopped_machine_are_those_of_its_next_start,
    what_was_synced_is_on_the_host_when_the_daemon_is_killed,
);

fn a_share_comes_and_goes_while_the_machine_runs(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let dir = outside(&machine, &context.name("live"))?;
    write(&dir.join("file"), "live\n")?;
    let path = dir.display().to_string();
    let mount = bind(&dir, "/x");
    // It sees the guest's mounts come and go.
    let watcher = Container::idle(&machine, context.name("watcher"), &["-v", "/:/guest:ro,rslave"])?;
    let watched = format!("/guest{path}/file");

    let added: Value = serde_json::from_str(&machine.berth(["share", "add", &path, "--json"]).ok()?)?;
    machine
        .berth(["share", "add", &path])
        .ok()
        .context("the same share again")?;
    let seen = run_script(&machine, &["-v", &mount], "cat /x/file; echo new > /x/new").ok()?;
    let propagated = watcher.exec(&format!("cat {watched}")).ok()?;
    let listed = share(&machine, &dir)?.context("the added share is not listed")?;
    let home = machine.home().join("part");
    fs::create_dir(&home).context("cannot make a directory")?;
    let part = machine.berth(["share", "add"]).arg(&home).fails_with(2)?;
    let system = machine.berth(["share", "add", "/usr"]).fails_with(2)?;

    same("live", &added["live"], &json!(true))?;
    same("state", &listed["state"], &json!("shared"))?;
    same("read", &seen.as_str(), &"live")?;
    same(
        "in a container that was there before",
        &propagated.as_str(),
        &"live",
    )?;
    same("written", &read(&dir.join("new"))?, &"new\n".to_owned())?;
    part.says(&["overlap", &machine.home().display().to_string()])?;
    system.says(&["would hide /usr", "another target"])?;

    let user = Container::idle(&machine, context.name("user"), &["-v", &mount])?;
    machine
        .berth(["share", "remove", &path])
        .fails_with(1)?
        .says(&["used by", user.name(), "--force"])?;
    user.exec("cat /x/file")
        .ok()
        .context("after the refused removal")?;
    machine.berth(["share", "remove", "--force", &path]).ok()?;
    let after = user.exec("cat /x/file").run()?;
    ensure!(
        after.code() != Some(0),
        "a removed share is still read: {}",
        after.describe()
    );
    drop(user);
    let gone = watcher.exec(&format!("test ! -e {watched}")).run()?;
    ensure!(
        gone.code() == Some(0),
        "the mount stayed in another container: {}",
        gone.describe()
    );
    // It has the guest's root, and so the share's place, for itself.
    drop(watcher);

    run_script(&machine, &["-v", &mount], "true")
        .fails_with(125)?
        .says(&["outside every share"])?;
    same("listed after the removal", &share(&machine, &dir)?, &None)?;
    machine
        .berth(["share", "remove", &path])
        .fails_with(1)?
        .says(&["is not shared", "berth share list"])?;
    same("the host's file", &read(&dir.join("file"))?, &"live\n".to_owned())?;
    // The place it had can be taken again.
    machine.berth(["share", "add", &path]).ok()?;
    run_script(&machine, &["-v", &mount], "cat /x/file").ok()?;
    machine.berth(["share", "remove", &path]).ok()?;
    Ok(Verdict::Passed)
}

fn a_read_only_share_cannot_be_written_and_an_exclusion_is_not_there(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let dir = outside(&machine, &context.name("guarded"))?;
    for name in [".secret", "open"] {
        fs::create_dir(dir.join(name)).context("cannot make a directory")?;
    }
    write(&dir.join(".secret/key"), "secret")?;
    write(&dir.join("open/file"), "open\n")?;
    let path = dir.display().to_string();
    let elsewhere = format!("/mnt/host{path}");

    machine
        .berth([
            "share",
            "add",
            &path,
            "--read-only",
            "--exclude",
            ".secret",
            "--target",
            &elsewhere,
        ])
        .ok()?;
    let seen = run_script(
        &machine,
        &["-v", &bind(&dir, "/x")],
        "ls -A /x; cat /x/open/file; for f in /x/new /x/open/file; do echo bad > $f; done 2>&1; rm /x/open/file 2>&1",
    )
    .run()?;
    let excluded =
        run_script(&machine, &["-v", &bind(&dir.join(".secret"), "/x")], "true").fails_with(125)?;
    // Not only by the mount: root of the guest itself gets no further.
    let guest = machine
        .in_guest(&format!(
            "mount -o remount,bind,rw {elsewhere}; echo bad > {elsewhere}/open/file; cat {elsewhere}/.secret/key"
        ))
        .run()?;
    machine.berth(["share", "remove", &path]).ok()?;

    has("a listing", &seen.text(), "open\nopen\n")?;
    ensure!(
        !seen.text().contains(".secret"),
        "the exclusion is listed: {}",
        seen.describe()
    );
    has(
        "a write",
        &(seen.text() + &seen.errors()),
        "Read-only file system",
    )?;
    excluded.says(&["excluded from the share", &path])?;
    ensure!(
        guest.code() != Some(0) && !guest.text().contains("secret"),
        "{}",
        guest.describe()
    );
    same("the file", &read(&dir.join("open/file"))?, &"open\n".to_owned())?;
    Ok(Verdict::Passed)
}

fn shares_of_a_stopped_machine_are_those_of_its_next_start(context: &Context) -> Result<Verdict> {
    let machine = context.fault_machine()?;
    crate::base_image::import(&machine)?;
    let (kept, gone) = (outside(&machine, "kept")?, outside(&machine, "gone")?);
    write(&kept.join("file"), "kept\n")?;
    fs::create_dir_all(machine.home().join("src")).context("cannot make a directory")?;
    write(&machine.home().join("src/file"), "mapped\n")?;
    let before = read(&machine.config_file())?;
    machine.stop()?;

    let added: Value = serde_json::from_str(&machine.berth(["share", "add", "--json"]).arg(&kept).ok()?)?;
    machine.berth(["share", "add"]).arg(&gone).ok()?;
    fs::remove_dir(&gone).context("cannot remove the share's directory")?;
    machine.write_config(&format!(
        "{before}paths:\n  'C:\\Users\\me': {}\n",
        machine.home().display()
    ))?;
    let started = machine.start()?;
    let status = machine.status()?;
    let read_kept = run_script(&machine, &["-v", &bind(&kept, "/x")], "cat /x/file").ok()?;
    let mapped = run_script(&machine, &["-v", r"C:\Users\me\src:/x"], "cat /x/file").ok()?;
    let missing = share(&machine, &gone)?.context("the share without a directory is not listed")?;
    fs::create_dir(&gone).context("cannot make the share's directory")?;
    machine
        .berth(["share", "add"])
        .arg(&gone)
        .ok()
        .context("once its directory is there")?;
    run_script(&machine, &["-v", &bind(&gone, "/x")], "touch /x/back").ok()?;
    for dir in [&kept, &gone] {
        machine.berth(["share", "remove"]).arg(dir).ok()?;
    }
    machine.write_config(&before)?;

    same("live", &added["live"], &json!(false))?;
    started.says(&[&gone.display().to_string(), "is not there"])?;
    has(
        "the warnings of status",
        &status["warnings"].to_string(),
        "is not there",
    )?;
    same("state", &missing["state"], &json!("failed"))?;
    same("in the added share", &read_kept.as_str(), &"kept")?;
    same("by a path of Windows", &mapped.as_str(), &"mapped")?;
    ensure!(
        gone.join("back").exists(),
        "the share that came back was not written"
    );
    Ok(Verdict::Passed)
}

fn what_was_synced_is_on_the_host_when_the_daemon_is_killed(context: &Context) -> Result<Verdict> {
    let machine: Arc<Machine> = context.fault_machine()?;
    crate::base_image::import(&machine)?;
    let dir = directory(context, &machine, "synced")?;
    let vmm = machine.vmm()?;
    let writer = Container::start(
        &machine,
        context.name("writer"),
        &["-v", &bind(&dir, "/x")],
        &[
            "sh",
            "-c",
            "i=0; while :; do printf '%08d\\n' $i | dd of=/x/file bs=9 seek=$i conv=fsync,notrunc 2>/dev/null; \
             echo $i; i=$((i+1)); done",
        ],
    )?;
    let follower = machine.docker(["logs", "--follow", writer.name()]).spawn()?;
    follower.prints("\n20\n")?;

    machine.daemon()?.kill()?;
    vmm.wait_gone(STATE_LIMIT)?;

    // Everything the container had told to be written is there, whole.
    let told = String::from_utf8_lossy(&follower.stdout.bytes()).lines().count();
    let text = read(&dir.join("file"))?;
    for (index, line) in text.lines().take(told).enumerate() {
        same("a line", &line, &format!("{index:08}").as_str())?;
    }
    ensure!(
        text.lines().count() >= told,
        "{told} lines were synced, and the file has {}",
        text.lines().count()
    );
    machine.start().context("the start after the fault")?;
    let again = run_script(&machine, &["-v", &bind(&dir, "/x")], "head -n 3 /x/file").ok()?;
    same(
        "the file after the start",
        &again.as_str(),
        &"00000000\n00000001\n00000002",
    )?;
    Ok(Verdict::Passed)
}
