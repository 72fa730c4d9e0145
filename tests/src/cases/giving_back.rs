//! What the guest does not need any more goes back to the host by itself: memory, page cache, disk.

use anyhow::{Context as _, Result, ensure};

use crate::base_image::IMAGE;
use crate::docker::{Conversation, STATE_LIMIT, run_script, same, write_mib};
use crate::machine::Machine;
use crate::processes::wait_until;
use crate::suite::{Context, Verdict};

cases!("giving_back":
    memory_that_a_container_used_goes_back,
    page_cache_that_nobody_uses_goes_back,
    disk_of_a_removed_volume_goes_back,
);

const MIB: u64 = 1 << 20;

/// A number of `berth status --json`, in MiB.
fn status(machine: &Machine, pointer: &str) -> Result<u64> {
    let status = machine.status()?;
    let bytes = status.pointer(pointer).and_then(serde_json::Value::as_u64);
    Ok(bytes.with_context(|| format!("no {pointer} in {status}"))? / MIB)
}

/// Waits until a number of [`status`] is `less` below `full`, or lower.
fn goes_back(machine: &Machine, pointer: &str, full: u64, less: u64) -> Result<()> {
    let mut last = full;
    wait_until("it to go back to the host", STATE_LIMIT, || {
        last = status(machine, pointer)?;
        Ok(last + less <= full)
    })
    .with_context(|| format!("{pointer} was {full} MiB and is {last} MiB"))
}

fn memory_that_a_container_used_goes_back(context: &Context) -> Result<Verdict> {
    const BURST: u64 = 256;
    let machine = context.machine()?;
    let name = context.name("burst");
    let shm = format!("--shm-size={}m", BURST + 16);
    let fill = write_mib("zero", "/dev/shm/x", BURST) + "; echo full; read x";
    let command = machine.docker([
        "run", "--rm", "-i", "--name", &name, &shm, IMAGE, "sh", "-c", &fill,
    ]);
    let mut burst = Conversation::start(&machine, name, command)?;
    same("the first line", &burst.answer()?.as_str(), &"full")?;
    let full = status(&machine, "/memory/resident")?;
    ensure!(full >= BURST, "{BURST} MiB are in use, and {full} MiB resident");
    burst.tell("enough")?;
    drop(burst);
    goes_back(&machine, "/memory/resident", full, BURST / 2)?;
    Ok(Verdict::Passed)
}

fn page_cache_that_nobody_uses_goes_back(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let volume = context.name("read");
    let given = status(&machine, "/memory/given")?;
    // What may stay is a quarter.
    let written = given / 2;
    let script = write_mib("zero", "/data/x", written) + "; sync";
    run_script(&machine, &["-v", &format!("{volume}:/data")], &script).ok()?;
    let full = status(&machine, "/memory/resident")?;
    ensure!(
        full >= written,
        "{written} MiB are in the page cache, and {full} MiB resident"
    );
    // The file is there all the time.
    goes_back(&machine, "/memory/resident", full, given / 8)?;
    machine.docker(["volume", "rm", &volume]).ok()?;
    Ok(Verdict::Passed)
}

fn disk_of_a_removed_volume_goes_back(context: &Context) -> Result<Verdict> {
    const WRITTEN: u64 = 64;
    let machine = context.machine()?;
    let volume = context.name("written");
    let script = write_mib("urandom", "/data/x", WRITTEN) + "; sync";
    run_script(&machine, &["-v", &format!("{volume}:/data")], &script).ok()?;
    let full = status(&machine, "/disk/allocated")?;
    ensure!(
        full >= WRITTEN,
        "{WRITTEN} MiB are written, and {full} MiB allocated"
    );
    machine.docker(["volume", "rm", &volume]).ok()?;
    goes_back(&machine, "/disk/allocated", full, WRITTEN * 3 / 4)?;
    Ok(Verdict::Passed)
}
