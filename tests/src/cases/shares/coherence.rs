//! What the host has changed is what containers see: at once after the barrier, which docker's commands wait for by
//! themselves.

use std::fs::{self, File, FileTimes};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{bind, directory, read, told_of_changes, write};
use crate::api::{post, sync};
use crate::base_image::IMAGE;
use crate::docker::{Container, Conversation, STATE_LIMIT, has, same};
use crate::machine::Machine;
use crate::processes::wait_until;
use crate::suite::{Context, Verdict};

cases!("shares":
    docker_exec_sees_what_the_host_has_just_written,
    after_a_barrier_a_running_process_sees_what_the_host_has_written,
    what_was_not_there_is_there_at_once_and_what_was_is_gone,
    a_directory_that_a_container_made_is_right_whatever_either_side_does_in_it,
    tail_follows_a_log_of_the_host_through_its_rotation,
    more_changes_than_can_be_told_are_seen_all_the_same,
);

/// Rounds with a `docker exec` each.
const EXECS: usize = 50;
/// Rounds with a barrier each, of a normal run and of a full one.
const BARRIERS: (usize, usize) = (300, 10_000);
/// Rounds of names that come and go.
const NAMES: usize = 15;
/// More files than the host's kernel keeps events (16384 unless configured otherwise).
const FLOOD: usize = 20_000;
/// How long an emulated machine may take to be told of as much as can be told of them, and to forget what it had.
const FLOOD_LIMIT: Duration = Duration::from_secs(600);

/// Writes something new to a file on the host, each round in another way, and returns it. Every third time it is as long as
/// `before`, what was there, and every fifth time the file's time of modification is put back.
fn edit(file: &Path, round: usize, before: &str, longest: usize) -> Result<String> {
    let old = fs::metadata(file).and_then(|metadata| metadata.modified());
    let length = match round % 3 {
        0 => before.len(),
        _ => 8 + round * 7919 % (longest - 8),
    };
    let mut text = format!("{round:07}-");
    text.extend(('a'..='z').cycle().skip(round % 26).take(length - text.len()));
    match round % 4 {
        0 => write(file, &text)?,
        // Without a moment in which it is empty.
        1 => {
            let mut open = File::options().write(true).open(file).context("cannot open")?;
            open.write_all(text.as_bytes()).context("cannot write")?;
            open.set_len(text.len() as u64).context("cannot truncate")?;
        }
        2 => {
            let other = file.with_extension("new");
            write(&other, &text)?;
            fs::rename(&other, file).context("cannot rename")?;
        }
        _ => {
            fs::remove_file(file).context("cannot remove")?;
            write(file, &text)?;
        }
    }
    if round.is_multiple_of(5) {
        let times = FileTimes::new().set_modified(old.context("cannot tell the time")?);
        let open = File::options().write(true).open(file).context("cannot open")?;
        open.set_times(times).context("cannot set the time")?;
    }
    Ok(text)
}

fn docker_exec_sees_what_the_host_has_just_written(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    if let Some(verdict) = told_of_changes(&machine)? {
        return Ok(verdict);
    }
    let dir = directory(context, &machine, "exec")?;
    let file = dir.join("file");
    let mut text = "0000000-".to_owned();
    write(&file, &text)?;
    let container = Container::idle(&machine, context.name("exec"), &["-v", &bind(&dir, "/x")])?;

    for round in 1..=EXECS {
        text = edit(&file, round, &text, 9000)?;
        let seen = machine
            .docker(["exec", container.name(), "cat", "/x/file"])
            .ok()?;
        same(&format!("round {round}"), &seen, &text)?;
    }
    Ok(Verdict::Passed)
}

fn after_a_barrier_a_running_process_sees_what_the_host_has_written(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    if let Some(verdict) = told_of_changes(&machine)? {
        return Ok(verdict);
    }
    let rounds = if context.setup().options.full {
        BARRIERS.1
    } else {
        BARRIERS.0
    };
    let dir = directory(context, &machine, "barrier")?;
    let file = dir.join("file");
    let mut text = "0000000-".to_owned();
    write(&file, &text)?;
    let name = context.name("reader");
    let script =
        "while read -r file; do read -r text < $file; stat -c '%s %Y' $file || exit; echo \"$text\"; done";
    let run = machine
        .docker(["run", "--rm", "-i", "--name", &name, "-v", &bind(&dir, "/x")])
        .args([IMAGE, "sh", "-c", script]);
    let mut reader = Conversation::start(&machine, name, run)?;

    for round in 1..=rounds {
        text = edit(&file, round, &text, 300)?;
        let modified = fs::metadata(&file).context("the file")?.mtime();
        sync(&machine)?;
        reader.tell("/x/file")?;
        let what = format!("round {round}");
        same(&what, &reader.answer()?, &format!("{} {modified}", text.len()))?;
        same(&what, &reader.answer()?, &text)?;
    }
    Ok(Verdict::Passed)
}

fn what_was_not_there_is_there_at_once_and_what_was_is_gone(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    if let Some(verdict) = told_of_changes(&machine)? {
        return Ok(verdict);
    }
    let dir = directory(context, &machine, "names")?;
    write(&dir.join("always"), "")?;
    let container = Container::idle(&machine, context.name("names"), &["-v", &bind(&dir, "/x")])?;
    // What it sees of a name, by itself and in the list, several times, so that the last ones come from its caches.
    let seen = |name: &str| {
        container
            .exec(&format!(
                "for i in 1 2 3; do cat /x/{name} 2>&1; ls /x; done | sort | uniq -c | sed 's/^ *//'"
            ))
            .ok()
    };

    for round in 0..NAMES {
        // Also one that was there before, and a directory.
        let name = if round % 3 == 0 {
            "again".to_owned()
        } else {
            format!("new-{round}")
        };
        let path = dir.join(&name);
        let error = |why: &str| format!("cat: {why}");
        let lines = |lines: &[&str]| {
            let mut lines: Vec<String> = lines.iter().map(|line| format!("3 {line}")).collect();
            lines.sort();
            lines.join("\n")
        };
        let not_there = lines(&[
            "always",
            &error(&format!("can't open '/x/{name}': No such file or directory")),
        ]);
        same(&format!("{name} before"), &seen(&name)?, &not_there)?;
        if round % 5 == 4 {
            fs::create_dir(&path).context("cannot make a directory")?;
            let there = lines(&["always", &error("read error: Is a directory"), &name]);
            same(&format!("{name} when made"), &seen(&name)?, &there)?;
            fs::remove_dir(&path).context("cannot remove a directory")?;
        } else {
            write(&path, "content\n")?;
            let there = lines(&["always", "content", &name]);
            same(&format!("{name} when made"), &seen(&name)?, &there)?;
            fs::remove_file(&path).context("cannot remove")?;
        }
        same(&format!("{name} when removed"), &seen(&name)?, &not_there)?;
    }
    Ok(Verdict::Passed)
}

/// The guest answers by itself for names in a directory that it has made: until it may not know all of them any more.
fn a_directory_that_a_container_made_is_right_whatever_either_side_does_in_it(
    context: &Context,
) -> Result<Verdict> {
    let machine = context.machine()?;
    if let Some(verdict) = told_of_changes(&machine)? {
        return Ok(verdict);
    }
    let dir = directory(context, &machine, "made")?;
    let name = context.name("maker");
    // It stays in the directory.
    let script = "mkdir /x/d; cd /x/d; while read -r line; do eval \"$line\" 2>&1; done";
    let run = machine
        .docker(["run", "--rm", "-i", "--name", &name, "-v", &bind(&dir, "/x")])
        .args([IMAGE, "sh", "-c", script]);
    let mut maker = Conversation::start(&machine, name, run)?;
    let mut does = |line: &str, answer: &str| -> Result<()> {
        sync(&machine)?;
        maker.tell(line)?;
        same(line, &maker.answer()?.as_str(), &answer)
    };
    let made = dir.join("d");
    let gone = "cat: can't open 'theirs': No such file or directory";
    does("cat theirs", gone)?;
    does("cat theirs", gone)?;
    write(&made.join("theirs"), "of the host\n")?;
    does("cat theirs", "of the host")?;
    does("echo mine > mine; cat mine", "mine")?;
    fs::rename(made.join("theirs"), made.join("moved")).context("cannot rename")?;
    does("cat theirs", gone)?;
    does("cat moved", "of the host")?;
    // What replaces what, and is in the way of what.
    does("mv mine moved; cat moved", "mine")?;
    same(
        "moved on the host",
        &read(&made.join("moved"))?.as_str(),
        &"mine\n",
    )?;
    does(
        "mkdir moved",
        "mkdir: can't create directory 'moved': File exists",
    )?;
    does("mkdir new; ln moved new/linked; cat new/linked", "mine")?;
    write(&made.join("new/theirs"), "deeper\n")?;
    does("cat new/theirs", "deeper")?;
    fs::remove_dir_all(made.join("new")).context("cannot remove")?;
    does(
        "cat new/theirs",
        "cat: can't open 'new/theirs': No such file or directory",
    )?;
    // What is moved out of what is removed right after.
    does(
        "mkdir from to; echo x > from/f; echo $(ls from to)",
        "from: f to:",
    )?;
    fs::rename(made.join("from/f"), made.join("to/f")).context("cannot rename")?;
    fs::remove_dir(made.join("from")).context("cannot remove")?;
    does("echo $(ls to) $(cat to/f)", "f x")?;
    // It forgets what it knows, for want of memory.
    machine
        .docker(["run", "--rm", "--privileged", IMAGE])
        .args(["sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches"])
        .ok()?;
    does("cat moved", "mine")?;
    does("cat theirs", gone)?;
    write(&made.join("theirs"), "again\n")?;
    does("cat theirs", "again")?;
    Ok(Verdict::Passed)
}

fn tail_follows_a_log_of_the_host_through_its_rotation(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    if let Some(verdict) = told_of_changes(&machine)? {
        return Ok(verdict);
    }
    let dir = directory(context, &machine, "log")?;
    let log = dir.join("log");
    write(&log, "first\n")?;
    let tail = Container::start(
        &machine,
        context.name("tail"),
        &["-v", &bind(&dir, "/x")],
        &["tail", "-n", "+1", "-F", "/x/log"],
    )?;
    let follower = machine
        .docker(["logs", "--follow", tail.name()])
        .limit(STATE_LIMIT)
        .spawn()?;
    follower.prints("first\n")?;
    let mut expected = vec!["first".to_owned()];
    // A line is waited for before the file is taken away: tail reads it once a second.
    let append = |line: String, expected: &mut Vec<String>| -> Result<()> {
        let mut open = File::options()
            .append(true)
            .create(true)
            .open(&log)
            .context("cannot open the log")?;
        writeln!(open, "{line}").context("cannot append")?;
        follower.prints(&format!("{line}\n"))?;
        expected.push(line);
        Ok(())
    };

    for rotation in 0..3 {
        for line in 0..3 {
            append(format!("appended-{rotation}-{line}"), &mut expected)?;
        }
        fs::rename(&log, dir.join(format!("log.{rotation}"))).context("cannot rotate the log")?;
        append(format!("in-the-new-log-{rotation}"), &mut expected)?;
    }
    // The other way of rotation: the file stays and is shorter than what was read of it.
    append("and-a-longer-line-".repeat(20), &mut expected)?;
    fs::copy(&log, dir.join("log.copy")).context("cannot copy the log")?;
    write(&log, "")?;
    append("short".to_owned(), &mut expected)?;

    let text = String::from_utf8_lossy(&follower.stdout.bytes()).into_owned();
    same("all of it", &text, &(expected.join("\n") + "\n"))?;
    Ok(Verdict::Passed)
}

/// When more happens than the host's kernel keeps events, the machine is made to forget what it knew, and is right again.
fn more_changes_than_can_be_told_are_seen_all_the_same(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    if let Some(verdict) = told_of_changes(&machine)? {
        return Ok(verdict);
    }
    let dir = directory(context, &machine, "flood")?;
    write(&dir.join("known"), "before")?;
    let container = Container::idle(&machine, context.name("flood"), &["-v", &bind(&dir, "/x")])?;
    // Looked at, so that it is watched, and what is there is in the machine's caches, also what is not.
    container.exec("ls /x; cat /x/known; test ! -e /x/1").ok()?;
    // And one that it has made itself, which somebody is in: it answers for the names there by itself.
    container
        .exec("mkdir /x/made; cd /x/made; test ! -e late; sleep 600 > /dev/null 2>&1 &")
        .ok()?;
    let before = machine.status()?["coherence"].clone();

    let script = format!(
        "i=0; while [ $i -lt {FLOOD} ]; do : > $i; i=$((i+1)); done; printf %s after! > known; : > made/late"
    );
    machine.program("sh").args(["-ec", &script]).in_dir(&dir).ok()?;
    let coherent = recovered(&machine)?;
    let seen = container
        .exec("cd /x; cat known; test -f 1 && test -f made/late && ls | wc -l")
        .ok()?;
    same("after the flood", &seen, &format!("after!{}", FLOOD + 2))?;
    let figure = |of: &Value, name: &str| of[name].as_u64().unwrap_or_default();
    ensure!(
        figure(&coherent, "overflows") == figure(&before, "overflows")
            || figure(&coherent, "invalidations") > figure(&before, "invalidations"),
        "events were lost, and the machine was not made to forget: from {before} to {coherent}"
    );

    // All is as before.
    write(&dir.join("known"), "again!")?;
    let seen = container.exec("cat /x/known").ok()?;
    same("after all", &seen.as_str(), &"again!")?;
    for file in 0..FLOOD {
        fs::remove_file(dir.join(file.to_string())).context("cannot remove a file")?;
    }
    recovered(&machine)?;
    let seen = container.exec("cd /x; test ! -e 1 && ls").ok()?;
    same("when the files are gone", &seen.as_str(), &"known\nmade")?;
    Ok(Verdict::Passed)
}

/// Waits until a barrier is reached once more, and returns what `berth status` says of it.
fn recovered(machine: &Machine) -> Result<Value> {
    wait_until("a barrier to be reached", FLOOD_LIMIT, || {
        let answer = post(machine, "/v1/sync")?;
        if answer.status != 200 {
            // Not yet coherent, or not within the time of one call.
            ensure!(matches!(answer.status, 503 | 504), "the barrier: {answer:?}");
            has("why not", &answer.body, "message")?;
        }
        Ok(answer.status == 200)
    })?;
    let coherence = machine.status()?["coherence"].clone();
    same("coherent", &coherence["coherent"], &json!(true))?;
    Ok(coherence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_differ_in_what_they_are_to_differ_in() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let mut before = "0000000-".to_owned();
        write(&file, &before).unwrap();
        let (mut as_long, mut as_old, mut both) = (0, 0, 0);
        for round in 1..=60 {
            let old = fs::metadata(&file).unwrap();
            let text = edit(&file, round, &before, 300).unwrap();
            let new = fs::metadata(&file).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
            assert!(text != before && text.len() <= 300);
            let same_time = (old.mtime(), old.mtime_nsec()) == (new.mtime(), new.mtime_nsec());
            // Clocks of files are coarse: two writes may come in one tick.
            assert!(same_time || round % 5 != 0);
            as_long += usize::from(old.len() == new.len());
            as_old += usize::from(same_time);
            both += usize::from(same_time && old.len() == new.len() && old.ino() == new.ino());
            before = text;
        }
        assert!(
            as_long >= 20 && as_old >= 12 && both >= 2,
            "{as_long} {as_old} {both}"
        );
    }
}
