//! Programs in containers that watch files: they are told what those on the host are told, of what the host does.

mod sequence;
mod steps;
mod without_fanotify;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{bind, directory, outside, told_of_changes, write};
use crate::api::sync;
use crate::base_image::IMAGE;
use crate::carried::carry;
use crate::docker::{Container, Conversation, STATE_LIMIT, same};
use crate::machine::Machine;
use crate::options::on_path;
use crate::processes::wait_until;
use crate::program::Program;
use crate::suite::{Context, Verdict};
use crate::watcher::{self, Event, Watcher};
use sequence::{difference, normal};
use steps::{BEFORE, ENVIRONMENT, GIT, GROUPS, Group, LOOKED_FOR, NOT_IN_ENVIRONMENT, PROGRAMS, Step};
use without_fanotify::where_fanotify_may_watch_nothing_watchers_are_told_by_inotify;

cases!("shares":
    watchers_in_containers_are_told_what_watchers_on_the_host_are,
    watchers_in_containers_see_what_git_on_the_host_does,
    watchers_in_containers_see_what_editors_copies_and_archives_do,
    watchers_in_containers_are_told_also_while_programs_look_for_the_names,
    berth_events_and_status_tell_of_host_changes,
    where_fanotify_may_watch_nothing_watchers_are_told_by_inotify,
);

/// Where the container has the directory, and the program that watches.
const TARGET: &str = "/x";
const TOOLS: &str = "/tools";

/// Two directories to which the same is done: one is shared, and watched in a container; the other one is not, and is
/// watched here.
struct Pair {
    machine: Arc<Machine>,
    shared: PathBuf,
    guest: Conversation,
    twin: PathBuf,
    host: Watcher,
    asked: usize,
}

impl Pair {
    fn new(context: &Context, machine: &Arc<Machine>) -> Result<Pair> {
        let shared = directory(context, machine, "watched")?;
        let twin = outside(machine, &context.name("twin"))?;
        for dir in [&shared, &twin] {
            shell(machine.program("sh"), dir, BEFORE).ok()?;
        }
        let tools = directory(context, machine, "tools")?;
        let watcher = carry(&tools, TOOLS)?;
        let name = context.name("watcher");
        let run = machine
            .docker(["run", "--rm", "-i", "--name", &name])
            .args(["-v", &bind(&shared, TARGET)])
            .args(["-v", &format!("{}:ro", bind(&tools, TOOLS))])
            .arg(IMAGE)
            .args(watcher)
            .args([watcher::ARGUMENT, TARGET]);
        Ok(Pair {
            machine: Arc::clone(machine),
            guest: Conversation::start(machine, name, run)?,
            host: Watcher::new(&twin)?,
            shared,
            twin,
            asked: 0,
        })
    }

    /// Does the same to both, and says how what was told of it differs; nothing when it does not.
    fn try_step(&mut self, step: &Step) -> Result<String> {
        for dir in step.watch {
            self.host.watch(dir)?;
            self.guest
                .does(&format!("watch {dir}"), &format!("watching {dir}"))?;
        }
        for dir in [&self.twin, &self.shared] {
            shell(self.machine.program("sh"), dir, step.script).ok()?;
        }
        sync(&self.machine)?;
        let expected = self.host.events()?;
        ensure!(!expected.is_empty(), "on the host, nothing is told of this");
        let found = self.events_of_guest()?;
        Ok(difference(&normal(&expected), &normal(&found)))
    }

    /// What the container has been told since it was last asked.
    fn events_of_guest(&mut self) -> Result<Vec<Event>> {
        self.asked += 1;
        self.guest.tell(&format!("tell {}", self.asked))?;
        let end = format!("told {}", self.asked);
        let mut events = Vec::new();
        loop {
            let line = self.guest.answer()?;
            if line == end {
                return Ok(events);
            }
            events.push(Event::parse(&line).with_context(|| format!("{line:?} is no event"))?);
        }
    }
}

/// A script in one of the directories.
fn shell(sh: Program, dir: &Path, script: &str) -> Program {
    // What enters a namespace on its way does not keep its directory.
    let mut sh = sh.args(["-ec", &format!("cd '{}'\n{script}", dir.display())]);
    for (name, value) in ENVIRONMENT {
        sh = sh.env(name, value);
    }
    for name in NOT_IN_ENVIRONMENT {
        sh = sh.without_env(name);
    }
    sh
}

/// Whether this host has what the steps need.
fn is_here(group: &Group) -> bool {
    let any = |names: &&[&str]| names.iter().any(|name| on_path(name).is_some());
    group.needs.iter().all(any)
}

/// Does all steps and compares what both sides are told of each.
fn compare<'a>(context: &Context, steps: impl IntoIterator<Item = &'a Step>) -> Result<Verdict> {
    let machine = context.machine()?;
    if let Some(verdict) = told_of_changes(&machine)? {
        return Ok(verdict);
    }
    let mut pair = Pair::new(context, &machine)?;
    try_all(&mut pair, steps)
}

fn try_all<'a>(pair: &mut Pair, steps: impl IntoIterator<Item = &'a Step>) -> Result<Verdict> {
    let mut differences = String::new();
    for step in steps {
        let difference = pair.try_step(step).with_context(|| step.what)?;
        if !difference.is_empty() {
            differences.push_str(&format!("{}: {}\n{difference}", step.what, step.script));
        }
    }
    if !differences.is_empty() {
        bail!(
            "the host's watcher (-) and the container's (+) were told different things; {}\n{differences}",
            pair.machine.status()?["coherence"]
        );
    }
    Ok(Verdict::Passed)
}

fn watchers_in_containers_are_told_what_watchers_on_the_host_are(context: &Context) -> Result<Verdict> {
    compare(context, &PROGRAMS)
}

fn watchers_in_containers_see_what_git_on_the_host_does(context: &Context) -> Result<Verdict> {
    if on_path("git").is_none() {
        return Ok(Verdict::NotHere("this host has no git".to_owned()));
    }
    compare(context, &GIT)
}

fn watchers_in_containers_see_what_editors_copies_and_archives_do(context: &Context) -> Result<Verdict> {
    let (here, missing): (Vec<_>, Vec<_>) = GROUPS.iter().partition(|group| is_here(group));
    let missing: Vec<_> = missing.iter().map(|group| group.program).collect();
    if here.is_empty() {
        return Ok(Verdict::NotHere(format!(
            "this host has no {}",
            missing.join(", no ")
        )));
    }
    if !missing.is_empty() {
        eprintln!(
            "left out, as this host does not have them: {}",
            missing.join(", ")
        );
    }
    compare(context, here.iter().flat_map(|group| group.steps))
}

/// What watches looks at what it is told of, and often finds it gone again. What the guest's kernel then knows, that there is no
/// such name, must not be in the way of what is told next.
fn watchers_in_containers_are_told_also_while_programs_look_for_the_names(
    context: &Context,
) -> Result<Verdict> {
    let machine = context.machine()?;
    if let Some(verdict) = told_of_changes(&machine)? {
        return Ok(verdict);
    }
    let mut pair = Pair::new(context, &machine)?;
    let script = "cd /x/here; while :; do \
        for i in $(seq 40); do test -e tmp$i; test -e gone$i; test -e dir$i; done; done";
    let _looking = Container::start(
        &machine,
        context.name("looking"),
        &["-v", &bind(&pair.shared, TARGET)],
        &["sh", "-c", script],
    )?;
    try_all(&mut pair, &LOOKED_FOR)
}

fn berth_events_and_status_tell_of_host_changes(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    if let Some(verdict) = told_of_changes(&machine)? {
        return Ok(verdict);
    }
    let dir = directory(context, &machine, "told")?;
    let container = Container::idle(&machine, context.name("looks"), &["-v", &bind(&dir, "/x")])?;
    container.exec("ls /x; test ! -e /x/a").ok()?;
    let before = machine.status()?["coherence"].clone();

    let events = machine.berth(["events", "--json"]).limit(STATE_LIMIT).spawn()?;
    // It tells of what comes after it has begun, which is when it tells of something.
    let mut tries = 0;
    wait_until("berth events to tell of something", STATE_LIMIT, || {
        tries += 1;
        write(&dir.join(format!("try-{tries}")), "")?;
        Ok(!events.stdout.is_empty())
    })?;
    let changes: [fn(&Path) -> Result<()>; 3] = [
        |dir| write(&dir.join("a"), "text"),
        |dir| fs::rename(dir.join("a"), dir.join("b")).context("cannot rename"),
        |dir| fs::remove_file(dir.join("b")).context("cannot remove"),
    ];
    for change in changes {
        change(&dir)?;
        // One after the other, so that each is told as it was.
        same("berth sync", &machine.berth(["sync"]).ok()?.as_str(), &"")?;
    }
    let synced: Value = serde_json::from_str(&machine.berth(["sync", "--json"]).ok()?)?;
    let last = events.stdout.wait_for("\"remove\"", 0, STATE_LIMIT)?;
    events.stdout.wait_for("\n", last, STATE_LIMIT)?;
    let after = machine.status()?["coherence"].clone();

    let text = String::from_utf8_lossy(&events.stdout.bytes()).into_owned();
    // As the share has it, without symbolic links.
    let shared = dir.canonicalize().context("the directory")?;
    let of = |name: &str| json!(shared.join(name));
    let mut found = Vec::new();
    for line in text.lines() {
        let change: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        if change["path"] != of("a") && change["path"] != of("b") {
            continue;
        }
        ensure!(
            change["latency_ms"].is_number() && change["unix_time_ms"].is_u64() && change["error"].is_null(),
            "{change}"
        );
        found.push((
            change["kind"].as_str().unwrap_or_default().to_owned(),
            change["new_path"].clone(),
        ));
    }
    let expected = [
        ("create", Value::Null),
        ("modify", Value::Null),
        ("close_write", Value::Null),
        ("rename", of("b")),
        ("remove", Value::Null),
    ];
    same(
        "what berth events tells",
        &found,
        &expected.map(|(kind, new)| (kind.to_owned(), new)).to_vec(),
    )?;
    ensure!(synced["milliseconds"].is_number(), "berth sync --json: {synced}");
    for figure in ["watched", "seen", "replayed"] {
        ensure!(after[figure].as_u64() > Some(0), "{figure} in {after}");
    }
    // Making, writing, renaming and removing are four at least.
    let replayed = |figures: &Value| figures["replayed"].as_u64().unwrap_or_default();
    ensure!(
        replayed(&after) >= replayed(&before) + 4,
        "from {before} to {after}"
    );
    same("coherent", &after["coherent"], &json!(true))?;
    Ok(Verdict::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the comparison stands on: the same steps are told in the same way, whichever directory they are done in.
    fn are_told_alike(steps: &[Step]) {
        let dir = tempfile::tempdir().unwrap();
        let mut sides = ["one", "two"].map(|name| {
            let root = dir.path().join(name);
            fs::create_dir(&root).unwrap();
            let watcher = Watcher::new(&root).unwrap();
            (root, watcher)
        });
        let run = |root: &Path, script: &str| {
            let sh = Program::new("sh").env("HOME", dir.path());
            shell(sh, root, script).ok().unwrap();
        };
        for (root, _) in &sides {
            run(root, BEFORE);
        }
        for step in steps {
            let [one, two] = sides.each_mut().map(|(root, watcher)| {
                for dir in step.watch {
                    watcher.watch(dir).unwrap();
                }
                run(root, step.script);
                let events = watcher.events().unwrap();
                assert!(!events.is_empty(), "{}", step.what);
                normal(&events)
            });
            let difference = difference(&one, &two);
            assert!(difference.is_empty(), "{}:\n{difference}", step.what);
        }
    }

    #[test]
    fn the_same_steps_are_told_alike_on_the_host() {
        are_told_alike(&PROGRAMS);
    }

    #[test]
    fn the_same_steps_with_names_that_are_looked_for_are_told_alike_on_the_host() {
        are_told_alike(&LOOKED_FOR);
    }

    #[test]
    fn the_same_steps_of_git_are_told_alike_on_the_host() {
        if on_path("git").is_some() {
            are_told_alike(&GIT);
        }
    }

    #[test]
    fn the_same_steps_of_other_programs_are_told_alike_on_the_host() {
        for group in GROUPS.iter().filter(|group| is_here(group)) {
            are_told_alike(group.steps);
        }
    }
}
