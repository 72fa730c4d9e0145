//! The streams between a user's terminal or pipe and a process in a container: where proxies usually go wrong.

use std::thread;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::json;

use crate::base_image::IMAGE;
use crate::docker::{Container, has, run_script, same};
use crate::suite::{Context, Verdict};
use crate::terminal::Terminal;

cases!("streams":
    stdin_ends_in_the_container_while_its_output_goes_on,
    interactive_run_has_a_terminal_that_follows_a_resize,
    interactive_exec_has_a_terminal_too,
    logs_follow_until_the_container_ends,
    attach_joins_both_directions_and_returns_the_exit_code,
    a_megabyte_through_cat_comes_back_unchanged,
    events_tell_the_life_of_a_container_in_order,
    many_containers_at_once_all_run,
);

fn stdin_ends_in_the_container_while_its_output_goes_on(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;

    // cat ends only when its stdin does; what is printed after that comes through the other, still open half.
    let output = machine
        .docker(["run", "--rm", "-i", IMAGE, "sh", "-c", "cat; echo after the end"])
        .input("x\n")
        .ok()?;

    same("output", &output.as_str(), &"x\nafter the end")?;
    Ok(Verdict::Passed)
}

fn interactive_run_has_a_terminal_that_follows_a_resize(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let program = machine.docker(["run", "--rm", "-it", "-e", "PS1=ready> ", IMAGE, "sh"]);

    let mut terminal = Terminal::start(program, 24, 80)?;
    terminal.shows("ready> ")?;
    terminal.types("tty; echo $((6 * 7))\r")?;
    terminal.shows("/dev/pts/")?;
    terminal.shows("42")?;
    terminal.asks_until("stty size\r", "24 80")?;
    terminal.resizes_until_seen(43, 131)?;
    // Control-C ends what runs in the foreground and not the shell.
    terminal.types("sleep 1000\r")?;
    terminal.asks_until("\x03echo still $((1 + 1)) here\r", "still 2 here")?;
    terminal.types("exit 5\r")?;

    same("exit code", &terminal.finish()?, &5)?;
    Ok(Verdict::Passed)
}

fn interactive_exec_has_a_terminal_too(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let container = Container::idle(&machine, context.name("shelled"), &[])?;
    let program = machine.docker(["exec", "-it", "-e", "PS1=ready> ", container.name(), "sh"]);

    let mut terminal = Terminal::start(program, 30, 100)?;
    terminal.shows("ready> ")?;
    terminal.asks_until("stty size\r", "30 100")?;
    terminal.resizes_until_seen(31, 99)?;
    terminal.types("exit 6\r")?;

    same("exit code", &terminal.finish()?, &6)?;
    same(
        "the container goes on",
        &container.at("/State/Running")?,
        &json!(true),
    )?;
    Ok(Verdict::Passed)
}

fn logs_follow_until_the_container_ends(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let container = Container::start(
        &machine,
        context.name("logging"),
        &[],
        &[
            "sh",
            "-c",
            "echo first; while [ ! -e /go ]; do sleep 0.2; done; echo second; echo third >&2",
        ],
    )?;

    let follower = machine.docker(["logs", "-f", container.name()]).spawn()?;
    follower.prints("first")?;
    container.exec("touch /go").ok()?;
    let finished = follower.finish()?;
    let tail = machine.docker(["logs", "--tail", "1", container.name()]).run()?;

    same("stdout of logs -f", &finished.text().as_str(), &"first\nsecond")?;
    same("stderr of logs -f", &finished.errors().as_str(), &"third")?;
    // Which of the two streams' last lines came first, docker does not say.
    same(
        "lines of logs --tail 1",
        &(tail.text() + &tail.errors()).lines().count(),
        &1,
    )?;
    Ok(Verdict::Passed)
}

fn attach_joins_both_directions_and_returns_the_exit_code(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let container = Container::start(
        &machine,
        context.name("attached"),
        &["-i"],
        &[
            "sh",
            "-c",
            "while read line; do echo \"got $line\"; [ \"$line\" = end ] && exit 9; done",
        ],
    )?;

    let mut attached = machine.docker(["attach", container.name()]).piped().spawn()?;
    attached.write(b"one\n")?;
    attached.prints("got one")?;
    attached.write(b"end\n")?;
    let finished = attached.finish()?;

    same("exit code", &finished.code(), &Some(9))?;
    same("output", &finished.text().as_str(), &"got one\ngot end")?;
    Ok(Verdict::Passed)
}

fn a_megabyte_through_cat_comes_back_unchanged(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    // Not text, and no multiple of any buffer's size.
    let bytes: Vec<u8> = (0..(1_u32 << 20) + 12_345)
        .map(|i| (i.wrapping_mul(2_246_822_519) >> 16) as u8)
        .collect();

    let finished = machine
        .docker(["run", "--rm", "-i", IMAGE, "cat"])
        .input(bytes.clone())
        .run()?;

    ensure!(finished.code() == Some(0), "{}", finished.describe());
    ensure!(
        finished.stdout == bytes,
        "{} bytes went in and {} others came out",
        bytes.len(),
        finished.stdout.len()
    );
    Ok(Verdict::Passed)
}

fn events_tell_the_life_of_a_container_in_order(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let name = context.name("observed");
    let filter = format!("container={name}");

    // One observer from before, as tools do it, and one asking for the past.
    let observer = machine
        .docker(["events", "--filter", &filter, "--format", "{{.Action}}"])
        .spawn()?;
    run_script(&machine, &["--name", &name], "exit 3").fails_with(3)?;
    let now = machine.docker(["info", "--format", "{{.SystemTime}}"]).ok()?;
    let past = machine
        .docker([
            "events",
            "--since",
            "1h",
            "--until",
            &now,
            "--filter",
            &filter,
            "--format",
            "{{.Action}}",
        ])
        .ok()?;
    run_script(&machine, &["--name", &name], "exit 0").ok()?;

    same(
        "events",
        &past.lines().collect::<Vec<_>>(),
        &vec!["create", "attach", "start", "die", "destroy"],
    )?;
    // When it was connected is not known, but the second life it has seen whole.
    observer.prints("create\nattach\nstart\ndie\ndestroy")?;
    Ok(Verdict::Passed)
}

fn many_containers_at_once_all_run(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let count = if context.setup().options.full { 200 } else { 20 };
    let label = context.name("berth.many");

    let results: Vec<Result<String>> = thread::scope(|scope| {
        let runs: Vec<_> = (0..count)
            .map(|i| {
                let (machine, label) = (&machine, &label);
                scope.spawn(move || {
                    run_script(machine, &["--label", label], &format!("echo container {i}"))
                        .limit(std::time::Duration::from_secs(1800))
                        .ok()
                })
            })
            .collect();
        runs.into_iter()
            .map(|run| run.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
            .collect()
    });

    let mut failures = Vec::new();
    for (i, result) in results.into_iter().enumerate() {
        match result {
            Ok(output) if output == format!("container {i}") => {}
            Ok(output) => failures.push(format!("{i} printed {output:?}")),
            Err(error) => failures.push(format!("{i}: {error:#}")),
        }
    }
    if !failures.is_empty() {
        bail!("{} of {count} failed:\n{}", failures.len(), failures.join("\n"));
    }
    let left = machine
        .docker(["ps", "-aq", "--filter", &format!("label={label}")])
        .ok()?;
    same("containers left", &left.as_str(), &"")?;
    has(
        "the engine",
        &machine
            .docker(["info", "--format", "{{.OSType}}"])
            .ok()
            .context("after many containers")?,
        "linux",
    )?;
    Ok(Verdict::Passed)
}
