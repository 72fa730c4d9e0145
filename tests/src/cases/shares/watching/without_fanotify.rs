//! A host on which fanotify may watch nothing, as on one with an old kernel: inotify does, in its place.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::sequence::{difference, normal};
use super::steps::PROGRAMS;
use super::{Pair, TARGET, bind, shell, told_of_changes, try_all, write};
use crate::api::sync;
use crate::base_image;
use crate::docker::{Container, same};
use crate::namespace::Namespace;
use crate::suite::{Context, Verdict};

/// Done by a program in a container, where nobody has to be told of it by the host.
const OWN: &str =
    "echo one > own; echo two >> own; chmod 600 own; mv own owned; mkdir made; rmdir made; rm owned";

pub(super) fn where_fanotify_may_watch_nothing_watchers_are_told_by_inotify(
    context: &Context,
) -> Result<Verdict> {
    let few = Namespace::user("echo 0 > /proc/sys/user/max_fanotify_marks")?;
    // The machine is dropped before the namespace it runs in.
    let machine = Arc::new(context.new_machine()?.behind(few.prefix()));
    machine.start().with_context(|| machine.diagnostics())?;
    base_image::import(&machine)?;
    if let Some(verdict) = told_of_changes(&machine)? {
        return Ok(verdict);
    }
    let mut pair = Pair::new(context, &machine)?;
    let worker = Container::idle(
        &machine,
        context.name("worker"),
        &["-v", &bind(&pair.shared, TARGET)],
    )?;

    try_all(&mut pair, &PROGRAMS)?;

    shell(machine.program("sh"), &pair.twin, OWN).ok()?;
    worker.exec(&format!("cd {TARGET}; {OWN}")).ok()?;
    sync(&machine)?;
    let (host, guest) = (pair.host.events()?, pair.events_of_guest()?);
    let own = difference(&normal(&host), &normal(&guest));
    ensure!(own.is_empty(), "what a container has done itself (+):\n{own}");

    // docker's commands wait here as well.
    for text in ["first", "second", "third"] {
        write(&pair.shared.join("edited"), text)?;
        same(
            "what docker exec sees",
            &worker.exec(&format!("cat {TARGET}/edited")).ok()?.as_str(),
            &text,
        )?;
    }

    let status = machine.status()?;
    let figures = &status["coherence"];
    ensure!(
        figures["by_inotify"].as_u64() > Some(1) && figures["by_inotify"] == figures["watched"],
        "{figures}"
    );
    same("not watched", &figures["unwatched"], &json!(0))?;
    let warnings = status["warnings"].to_string();
    ensure!(warnings.contains("fs.fanotify.max_user_marks"), "{warnings}");
    drop((worker, pair));
    machine.stop()?;
    machine.delete()?;
    Ok(Verdict::Passed)
}
