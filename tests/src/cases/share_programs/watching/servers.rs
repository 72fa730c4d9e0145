//! What developers leave running while they edit: nodemon and watchexec restart a program, vite and webpack serve a page anew and tell the
//! browser so.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Watching, directory, save, write};
use crate::api::sync;
use crate::cases::share_programs::{Shared, no_image};
use crate::cases::shares::told_of_changes;
use crate::suite::{Context, Verdict};

/// The module that is edited.
const TEXT: &str = "src/text.js";

fn remove(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

pub(in super::super) fn nodemon_restarts_on_edits_on_the_host(context: &Context) -> Result<Verdict> {
    // It goes on running, as servers do, and nodemon has to end it.
    let program = "const { readdirSync } = require('node:fs');\n\
                   console.log('runs', require('./src/text.js'), ...readdirSync('src'));\n\
                   setInterval(() => {}, 1000);\n";
    let files = [("program.js", program), (TEXT, "module.exports = 'one';\n")];
    let Some(shared) = directory(context, "nodemon", &files)? else {
        return Ok(no_image());
    };
    if let Some(verdict) = told_of_changes(&shared.machine)? {
        return Ok(verdict);
    }
    let command = [
        "node",
        "/node_modules/nodemon/bin/nodemon.js",
        // Also when it watches, and what.
        "--verbose",
        "--no-colors",
        "--no-stdin",
        "program.js",
    ];
    let ready = "[nodemon] watching 2 files";
    let mut nodemon = Watching::start(&shared, context.name("nodemon"), &command, ready)?;
    nodemon.says(&["runs one text.js"])?;

    let text = shared.dir.join(TEXT);
    write(&text, "module.exports = 'two';\n")?;
    nodemon.says(&["runs two text.js"]).context("writing in place")?;
    save(&text, "module.exports = 'three';\n")?;
    nodemon.says(&["runs three text.js"]).context("saving")?;
    write(&shared.dir.join("src/more.js"), "")?;
    nodemon
        .says(&["runs three more.js text.js"])
        .context("a new file")?;
    fs::create_dir(shared.dir.join("src/new")).context("cannot make a directory")?;
    write(&shared.dir.join("src/new/in.js"), "")?;
    nodemon
        .says(&["runs three more.js new text.js"])
        .context("a new directory with a file")?;
    remove(&shared.dir.join("src/new"))?;
    nodemon
        .says(&["runs three more.js text.js"])
        .context("removal of the directory")?;
    Ok(Verdict::Passed)
}

pub(in super::super) fn watchexec_restarts_a_command_on_edits_on_the_host(
    context: &Context,
) -> Result<Verdict> {
    // What it is, what does it to the directory, and what the command prints then: all contents, and all names.
    type Edit = (&'static str, fn(&Path) -> Result<()>, &'static str);
    const EDITS: [Edit; 7] = [
        (
            "writing in place",
            |src| write(&src.join("text"), "two\n"),
            "runs old two in src src/old src/old/in src/text",
        ),
        (
            "saving by a file that takes the place",
            |src| save(&src.join("text"), "three\n"),
            "runs old three in src src/old src/old/in src/text",
        ),
        (
            "a new file",
            |src| write(&src.join("more"), "more\n"),
            "runs more old three in src src/more src/old src/old/in src/text",
        ),
        (
            "a new directory with a file",
            |src| {
                fs::create_dir(src.join("new")).context("cannot make a directory")?;
                write(&src.join("new/in"), "new\n")
            },
            "runs more new old three in src src/more src/new src/new/in src/old src/old/in src/text",
        ),
        (
            "saving in that",
            |src| save(&src.join("new/in"), "newer\n"),
            "runs more newer old three in src src/more src/new src/new/in src/old src/old/in src/text",
        ),
        (
            "a removal",
            |src| fs::remove_file(src.join("more")).context("cannot remove"),
            "runs newer old three in src src/new src/new/in src/old src/old/in src/text",
        ),
        (
            "removal of a directory",
            |src| remove(&src.join("old")),
            "runs newer three in src src/new src/new/in src/text",
        ),
    ];
    /// How many directories there are after each.
    const DIRECTORIES: [usize; EDITS.len()] = [2, 2, 2, 3, 3, 3, 2];

    let files = [("src/text", "one\n"), ("src/old/in", "old\n")];
    let Some(shared) = directory(context, "watchexec", &files)? else {
        return Ok(no_image());
    };
    if let Some(verdict) = told_of_changes(&shared.machine)? {
        return Ok(verdict);
    }
    // It goes on running, as servers do, and watchexec has to end it.
    let script = "echo runs $(cat $(find src -type f | sort)) in $(find src | sort); exec sleep 1000";
    let command = [
        "watchexec",
        "--watch=src",
        "--restart",
        "--shell=none",
        "--",
        "sh",
        "-c",
        script,
    ];
    let mut watchexec = Watching::run(&shared, context.name("watchexec"), &command)?;
    watchexec.says(&["runs old one in src src/old src/old/in src/text"])?;
    // The command may run before it watches, and a new directory is there before that is watched.
    watchexec.comes_to_watch(2)?;
    for ((what, edit, expected), directories) in EDITS.into_iter().zip(DIRECTORIES) {
        // It is to run because of this edit and not of what it is told late of the one before.
        sync(&shared.machine)?;
        edit(&shared.dir.join("src"))
            .and_then(|()| watchexec.says(&[expected]))
            .context(what)?;
        watchexec.comes_to_watch(directories)?;
    }
    Ok(Verdict::Passed)
}

/// Edits the page's modules, and expects `told` after each edit, and the new text in what is served.
///
/// `module` and `new_module` are the paths under which [`TEXT`] and another, in a new directory, are served.
fn pages_are_served_anew(
    server: &mut Watching,
    shared: &Shared,
    told: &str,
    (module, new_module): (&str, &str),
) -> Result<()> {
    let text = shared.dir.join(TEXT);
    write(&text, "export const text = 'mark-written';\n")?;
    server
        .serves(told, module, "got 200 mark-written")
        .context("writing in place")?;
    save(&text, "export const text = 'mark-saved';\n")?;
    server
        .serves(told, module, "got 200 mark-saved")
        .context("saving")?;

    let dir = shared.dir.join("src/new");
    fs::create_dir(&dir).context("cannot make a directory")?;
    write(&dir.join("in.js"), "export const text = 'mark-new';\n")?;
    save(&text, "export { text } from './new/in.js';\n")?;
    server
        .serves(told, new_module, "got 200 mark-new")
        .context("a new module in a new directory")?;
    save(&dir.join("in.js"), "export const text = 'mark-newer';\n")?;
    server
        .serves(told, new_module, "got 200 mark-newer")
        .context("saving that")?;

    remove(&dir)?;
    server.says(&[told]).context("removal of a module")?;
    write(&text, "export const text = 'mark-end';\n")?;
    server.serves(told, module, "got 200 mark-end").context("repair")
}

pub(in super::super) fn vite_replaces_modules_edited_on_the_host(context: &Context) -> Result<Verdict> {
    let main = "import { text } from './text.js';\n\
                import.meta.hot.accept('./text.js', () => {});\n\
                console.log(text);\n";
    let files = [
        ("index.html", "<script type=module src=/src/main.js></script>\n"),
        ("src/main.js", main),
        (TEXT, "export const text = 'mark-first';\n"),
    ];
    let Some(shared) = directory(context, "vite", &files)? else {
        return Ok(no_image());
    };
    if let Some(verdict) = told_of_changes(&shared.machine)? {
        return Ok(verdict);
    }
    let command = ["node", "/programs/watch_vite.mjs"];
    let mut vite = Watching::start(&shared, context.name("vite"), &command, "ready")?;
    // As a browser gets them, so that vite knows who imports what.
    for (path, expected) in [
        ("/src/main.js", "got 200"),
        ("/src/text.js", "got 200 mark-first"),
    ] {
        vite.container.tell(path)?;
        vite.says(&[expected])?;
    }
    let paths = ("/src/text.js", "/src/new/in.js");
    pages_are_served_anew(&mut vite, &shared, "update /src/main.js", paths)?;
    Ok(Verdict::Passed)
}

pub(in super::super) fn webpack_bundles_anew_on_edits_on_the_host(context: &Context) -> Result<Verdict> {
    let files = [
        (
            "src/main.js",
            "import { text } from './text.js';\nconsole.log(text);\n",
        ),
        (TEXT, "export const text = 'mark-first';\n"),
    ];
    let Some(shared) = directory(context, "webpack", &files)? else {
        return Ok(no_image());
    };
    if let Some(verdict) = told_of_changes(&shared.machine)? {
        return Ok(verdict);
    }
    let command = ["node", "/programs/watch_webpack.mjs"];
    let mut webpack = Watching::start(&shared, context.name("webpack"), &command, "ready")?;
    webpack.container.tell("/main.js")?;
    webpack.says(&["got 200 mark-first"])?;
    pages_are_served_anew(&mut webpack, &shared, "bundle", ("/main.js", "/main.js"))?;
    Ok(Verdict::Passed)
}
