//! Two containers and the host on the same files, in an order that the test gives: `agent.py` does in a container
//! what it is told.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use super::{Shared, USER, all_ours, no_image};
use crate::docker::{Conversation, STATE_LIMIT, same};
use crate::suite::{Context, Verdict};

/// A container that does what it is told.
fn agent(shared: &Shared, name: String, options: &[&str]) -> Result<Conversation> {
    let options = [&["-i", "--name", &name], options].concat();
    let command = shared.python(&options, "agent.py", &[]);
    Conversation::start(&shared.machine, name, command)
}

pub(super) fn containers_see_each_others_files_maps_and_sockets(context: &Context) -> Result<Verdict> {
    let Some(shared) = Shared::new(context, "together")? else {
        return Ok(no_image());
    };
    let dir = &shared.dir;
    let mut one = agent(&shared, context.name("one"), &[])?;
    let mut two = agent(&shared, context.name("two"), &["-u", USER])?;

    // Names and what they lead to.
    one.does("put('file', 'one'); os.chmod('file', 0o666)", "= null")?;
    two.does("text('file')", "= \"one\"")?;
    two.does("f = os.open('file', os.O_RDWR)", "= null")?;
    one.does("os.rename('file', 'moved')", "= null")?;
    two.does("text('file')", "! ENOENT")?;
    one.does("os.unlink('moved')", "= null")?;
    two.does(
        "[os.pread(f, 9, 0).decode(), os.fstat(f).st_nlink]",
        "= [\"one\", 0]",
    )?;
    two.does("os.pwrite(f, b'still', 0)", "= 5")?;
    two.does("os.pread(f, 9, 0).decode()", "= \"still\"")?;

    // Each name is made by one of them, however they race.
    one.does("os.mkdir('claims'); os.chmod('claims', 0o777)", "= null")?;
    for agent in [&mut one, &mut two] {
        agent.tell("claim('claims', 300)")?;
    }
    let claimed = [one.answer()?, two.answer()?]
        .iter()
        .map(|answer| answer.trim_start_matches("= ").parse::<usize>())
        .sum::<Result<usize, _>>()
        .context("not a number of files")?;
    same("files made by one of two", &claimed, &300)?;

    // Appends of both and of the host.
    one.does("put('log', ''); os.chmod('log', 0o666)", "= null")?;
    for (agent, name) in [(&mut one, "one"), (&mut two, "two")] {
        agent.tell(&format!("append('log', '{name}', 300)"))?;
    }
    let mut log = fs::OpenOptions::new()
        .append(true)
        .open(dir.join("log"))
        .context("the log")?;
    for line in 0..300 {
        log.write_all(format!("host-{line}-end\n").as_bytes())
            .context("cannot append")?;
    }
    for agent in [&mut one, &mut two] {
        same("appending", &agent.answer()?.as_str(), &"= null")?;
    }
    let text = fs::read_to_string(dir.join("log")).context("the log")?;
    for side in ["one", "two", "host"] {
        let lines = text.lines().filter(|line| line.starts_with(side));
        let expected = (0..300).map(|line| format!("{side}-{line}-end"));
        ensure!(
            lines.eq(expected),
            "lines of {side} are torn, lost or out of order:\n{text}"
        );
    }
    same("lines of all three", &text.lines().count(), &900)?;

    // A map that both have is one memory, and the host has it once it is synced.
    one.does(
        "put('map', '.' * 8192); os.chmod('map', 0o666); m = mmap.mmap(os.open('map', os.O_RDWR), 8192)",
        "= null",
    )?;
    two.does("m = mmap.mmap(os.open('map', os.O_RDWR), 8192)", "= null")?;
    one.does("m[4090:4100] = b'0123456789'", "= null")?;
    two.does("m[4090:4100].decode()", "= \"0123456789\"")?;
    two.does("m[0:3] = b'two'", "= null")?;
    one.does("m[0:3].decode()", "= \"two\"")?;
    one.does("os.pwrite(os.open('map', os.O_RDWR), b'write', 8000)", "= 5")?;
    two.does("m[8000:8005].decode()", "= \"write\"")?;
    two.does("m.flush()", "= null")?;
    let map = fs::File::open(dir.join("map")).context("the map")?;
    for (offset, expected) in [(0, &b"two"[..]), (4090, b"0123456789"), (8000, b"write")] {
        let mut found = vec![0; expected.len()];
        map.read_exact_at(&mut found, offset).context("the map")?;
        same(
            &format!("the map at {offset} on the host"),
            &found.as_slice(),
            &expected,
        )?;
    }

    // Sockets and FIFOs lead from one to the other.
    one.does(
        "s = socket.socket(socket.AF_UNIX); s.bind('socket'); s.listen(); os.chmod('socket', 0o777)",
        "= null",
    )?;
    two.does("c = socket.socket(socket.AF_UNIX); c.connect('socket')", "= null")?;
    two.does("c.send(b'hello')", "= 5")?;
    one.does("s.accept()[0].recv(9).decode()", "= \"hello\"")?;
    one.does("os.mkfifo('fifo'); os.chmod('fifo', 0o666)", "= null")?;
    one.tell("text('fifo')")?;
    two.does("put('fifo', 'through')", "= null")?;
    same("through the FIFO", &one.answer()?.as_str(), &"= \"through\"")?;
    all_ours(dir)?;
    Ok(Verdict::Passed)
}

pub(super) fn containers_and_the_host_lock_each_other_out(context: &Context) -> Result<Verdict> {
    let Some(shared) = Shared::new(context, "locks")? else {
        return Ok(no_image());
    };
    let path = shared.dir.join("file");
    fs::write(&path, vec![b'.'; 100]).context("cannot write the file")?;
    let host = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .context("the file")?;
    let mut one = agent(&shared, context.name("one"), &[])?;
    let mut two = agent(&shared, context.name("two"), &[])?;
    for agent in [&mut one, &mut two] {
        agent.does("f = os.open('file', os.O_RDWR)", "= null")?;
    }
    let host_has_flock = || host.try_lock().is_ok();

    // flock(2).
    one.does("fcntl.flock(f, EX)", "= null")?;
    two.does("fcntl.flock(f, EX | NB)", "! EAGAIN")?;
    two.does("fcntl.flock(f, SH | NB)", "! EAGAIN")?;
    ensure!(!host_has_flock(), "the host got a lock that a container has");
    one.does("fcntl.flock(f, SH)", "= null")?;
    two.does("fcntl.flock(f, SH | NB)", "= null")?;
    ensure!(!host_has_flock(), "the host got a lock that containers share");
    one.does("fcntl.flock(f, UN)", "= null")?;
    two.does("fcntl.flock(f, UN)", "= null")?;
    ensure!(host_has_flock(), "the host does not get a lock that nobody has");
    two.does("fcntl.flock(f, EX | NB)", "! EAGAIN")?;
    host.unlock().context("cannot unlock")?;
    two.does("fcntl.flock(f, EX | NB)", "= null")?;
    two.does("fcntl.flock(f, UN)", "= null")?;

    // POSIX locks, by ranges.
    one.does("fcntl.lockf(f, EX, 10, 0)", "= null")?;
    two.does("fcntl.lockf(f, EX | NB, 10, 10)", "= null")?;
    two.does("fcntl.lockf(f, SH | NB, 1, 9)", "! EAGAIN")?;
    one.does("fcntl.lockf(f, EX | NB, 100, 5)", "! EAGAIN")?;
    one.does("fcntl.lockf(f, EX | NB, 80, 20)", "= null")?;
    same(
        "the host's try of the whole file",
        &fcntl_lock(&host, FlockOperation::NonBlockingLockExclusive).err(),
        &Some(Errno::AGAIN),
    )?;

    // A wait ends when the lock is free, not before. That it is free is written down first.
    two.does("fcntl.lockf(f, UN)", "= null")?;
    two.tell("fcntl.lockf(f, EX); seen = text('marker'); fcntl.lockf(f, UN)")?;
    one.does("put('marker', 'free'); fcntl.lockf(f, UN)", "= null")?;
    same("the wait", &two.answer()?.as_str(), &"= null")?;
    two.does("seen", "= \"free\"")?;

    // A signal ends a wait, and so does SIGKILL.
    one.does("fcntl.flock(f, EX); fcntl.lockf(f, EX)", "= null")?;
    two.does("interrupted(lambda: fcntl.flock(f, EX))", "= true")?;
    two.does("interrupted(lambda: fcntl.lockf(f, EX))", "= true")?;
    let mut doomed = agent(&shared, context.name("doomed"), &[])?;
    doomed.does("f = os.open('file', os.O_RDWR)", "= null")?;
    doomed.tell("fcntl.lockf(f, EX)")?;
    // Its main thread is in fcntl(2), number 72, and stays there.
    let waits =
        "for p in /proc/[0-9]*; do case $(cat $p/syscall 2>/dev/null) in '72 '*) exit 0;; esac; done; exit 1";
    crate::processes::wait_until("a process to wait for the lock", STATE_LIMIT, || {
        Ok(shared.machine.in_guest(waits).run()?.code() == Some(0))
    })?;
    same("exit code of who was killed", &doomed.killed()?, &Some(137))?;
    one.does("fcntl.flock(f, UN); fcntl.lockf(f, UN)", "= null")?;
    two.does("fcntl.flock(f, EX | NB); fcntl.flock(f, UN)", "= null")?;
    one.does("fcntl.lockf(f, EX); fcntl.flock(f, EX)", "= null")?;

    // The locks of a container that dies go with it.
    two.tell("fcntl.lockf(f, EX); fcntl.flock(f, EX)")?;
    one.kill()?;
    same(
        "the wait for a dead container",
        &two.answer()?.as_str(),
        &"= null",
    )?;
    ensure!(!host_has_flock(), "the host got a lock that a container has");
    drop(two);
    let free = || -> Result<bool> {
        Ok(host_has_flock() && fcntl_lock(&host, FlockOperation::NonBlockingLockExclusive).is_ok())
    };
    crate::processes::wait_until("the locks of ended containers to go", STATE_LIMIT, free)?;
    Ok(Verdict::Passed)
}
