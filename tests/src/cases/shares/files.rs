//! The same files on both sides: contents, owners, two writers at once.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context as _, Result, ensure};

use super::{bind, directory, is_ours, read, write};
use crate::docker::{STATE_LIMIT, run_script, same};
use crate::processes::wait_until;
use crate::suite::{Context, Verdict};

cases!("shares":
    a_directory_of_the_home_is_the_same_on_both_sides,
    compose_takes_directories_beside_its_file,
    a_plain_user_of_a_container_owns_what_it_makes,
    owners_and_modes_that_containers_set_are_shown_back,
    writers_on_both_sides_do_not_tear_each_others_files,
);

fn a_directory_of_the_home_is_the_same_on_both_sides(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let dir = directory(context, &machine, "project")?;
    write(&dir.join("from-host"), "host\n")?;
    let here = dir.display().to_string();

    let seen = run_script(
        &machine,
        &["-v", &bind(&dir, "/src")],
        "cat /src/from-host; mkdir /src/made; echo container > /src/made/file; mv /src/from-host /src/moved; \
         ln -s moved /src/link; dd if=/dev/zero of=/src/big bs=1M count=8 2>/dev/null; sync",
    )
    .ok()?;
    let same_path = run_script(
        &machine,
        &["-v", &bind(&dir, &here), "-w", &here],
        "pwd; cat moved",
    )
    .ok()?;

    same("read in the container", &seen.as_str(), &"host")?;
    same("at its own path", &same_path, &format!("{here}\nhost"))?;
    same(
        "written in the container",
        &read(&dir.join("made/file"))?,
        &"container\n".to_owned(),
    )?;
    same(
        "through the link",
        &read(&dir.join("link"))?,
        &"host\n".to_owned(),
    )?;
    ensure!(
        !dir.join("from-host").exists(),
        "the moved file is still under its old name"
    );
    let big = fs::metadata(dir.join("big")).context("the large file")?.len();
    same("size of a larger file", &big, &(8 << 20))?;
    for name in ["made", "made/file", "link", "big"] {
        is_ours(&dir.join(name))?;
    }
    Ok(Verdict::Passed)
}

fn compose_takes_directories_beside_its_file(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let dir = directory(context, &machine, "compose")?;
    fs::create_dir(dir.join("src")).context("cannot make a directory")?;
    write(&dir.join("src/in"), "in\n")?;
    write(
        &dir.join("compose.yaml"),
        &format!(
            "services:\n\
             \x20 one:\n\
             \x20   image: {}\n\
             \x20   command: sh -c 'cat /src/in > /out/copy'\n\
             \x20   volumes:\n\
             \x20     - ./src:/src:ro\n\
             \x20     - ./made-by-compose:/out\n",
            crate::base_image::IMAGE
        ),
    )?;
    let project = context.name("sharing");
    let compose = |arguments: &[&str]| {
        machine
            .docker(["compose", "--project-name", &project])
            .args(arguments)
            .in_dir(&dir)
    };

    compose(&["run", "--rm", "one"]).ok()?;
    compose(&["down"]).ok()?;

    same(
        "what the service wrote",
        &read(&dir.join("made-by-compose/copy"))?,
        &"in\n".to_owned(),
    )?;
    is_ours(&dir.join("made-by-compose"))?;
    Ok(Verdict::Passed)
}

fn a_plain_user_of_a_container_owns_what_it_makes(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let dir = directory(context, &machine, "plain")?;
    write(&dir.join("from-host"), "host\n")?;

    let seen = run_script(
        &machine,
        &["-u", "1000:1000", "-v", &bind(&dir, "/x")],
        "cd /x; cat from-host; echo more >> from-host; mkdir d; echo mine > d/f; stat -c '%u %g' d d/f from-host; \
         chmod 600 d/f; rm from-host",
    )
    .ok()?;

    same(
        "what the user sees",
        &seen.as_str(),
        &"host\n1000 1000\n1000 1000\n1000 1000",
    )?;
    same("what it wrote", &read(&dir.join("d/f"))?, &"mine\n".to_owned())?;
    ensure!(!dir.join("from-host").exists(), "the removed file is still there");
    is_ours(&dir.join("d/f"))?;
    Ok(Verdict::Passed)
}

fn owners_and_modes_that_containers_set_are_shown_back(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    let dir = directory(context, &machine, "owners")?;
    let mount = bind(&dir, "/x");

    run_script(
        &machine,
        &["-v", &mount],
        "cd /x; echo data > f; chown 1234:4321 f; chmod 4711 f; mkdir d; chown 999 d; chmod 700 d",
    )
    .ok()?;
    let other = run_script(
        &machine,
        &["-v", &mount],
        "cd /x; stat -c '%u %g %a' f; stat -c '%u %a' d",
    )
    .ok()?;
    let owner = run_script(
        &machine,
        &["-u", "999", "-v", &mount],
        "echo in > /x/d/in; cat /x/d/in",
    )
    .ok()?;
    let stranger = run_script(&machine, &["-u", "1000", "-v", &mount], "cat /x/d/in").run()?;

    same(
        "in another container",
        &other.as_str(),
        &"1234 4321 4711\n999 700",
    )?;
    same("the directory's owner", &owner.as_str(), &"in")?;
    ensure!(
        stranger.code() == Some(1),
        "a stranger got into a directory of mode 700: {}",
        stranger.describe()
    );
    for name in ["f", "d", "d/in"] {
        is_ours(&dir.join(name))?;
    }
    let mode = fs::metadata(dir.join("f"))
        .context("the file")?
        .permissions()
        .mode();
    same("no setuid bit on the host", &(mode & 0o6000), &0)?;
    Ok(Verdict::Passed)
}

fn writers_on_both_sides_do_not_tear_each_others_files(context: &Context) -> Result<Verdict> {
    const LINES: usize = 150;
    let machine = context.machine()?;
    let dir = directory(context, &machine, "both")?;
    let log = dir.join("log");
    write(&log, "")?;
    write(&dir.join("page"), &"0".repeat(8192))?;
    let mount = bind(&dir, "/x");

    // One file that both append to, and one that the host replaces while the container reads it.
    let script = format!(
        "touch /x/started /x/torn; i=0; while [ $i -lt {LINES} ]; do echo container-$i-end >> /x/log; i=$((i+1)); \
         cp /x/page /p || exit 1; wc -c < /p | grep -vx 8192 >> /x/torn; tr -d \"$(head -c 1 /p)\" < /p >> /x/torn; done"
    );
    let container = run_script(&machine, &["-v", &mount], &script).spawn()?;
    wait_until("the container to run", STATE_LIMIT, || {
        Ok(dir.join("started").exists())
    })?;
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(&log)
        .context("the log")?;
    for line in 0..LINES {
        // In one piece: what is formatted into a file is written in several, with room for others between them.
        let text = format!("host-{line}-end\n");
        file.write_all(text.as_bytes()).context("cannot append")?;
        write(&dir.join("page.new"), &(line % 10).to_string().repeat(8192))?;
        fs::rename(dir.join("page.new"), dir.join("page")).context("cannot replace the file")?;
    }
    let finished = container.finish()?;
    ensure!(finished.code() == Some(0), "{}", finished.describe());

    let text = read(&log)?;
    for side in ["container", "host"] {
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(side)).collect();
        let expected: Vec<String> = (0..LINES).map(|line| format!("{side}-{line}-end")).collect();
        ensure!(
            lines == expected,
            "lines of the {side} are torn, lost or out of order:\n{text}"
        );
    }
    same(
        "of the replaced file, other than whole versions",
        &read(&dir.join("torn"))?,
        &String::new(),
    )?;
    same("lines of both", &text.lines().count(), &(2 * LINES))?;
    Ok(Verdict::Passed)
}
