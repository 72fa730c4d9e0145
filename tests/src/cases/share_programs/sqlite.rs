//! sqlite in WAL mode: its writers agree through a shared map of a file beside the database, and through POSIX locks.

use anyhow::{Context as _, Result, ensure};

use super::{Shared, TARGET, all_ours, no_image};
use crate::docker::same;
use crate::suite::{Context, Verdict};

/// What each container commits.
const TRANSACTIONS: usize = 60;

pub(super) fn two_containers_write_one_sqlite_database(context: &Context) -> Result<Verdict> {
    let Some(shared) = Shared::new(context, "sqlite")? else {
        return Ok(no_image());
    };
    let database = format!("{TARGET}/database");
    let run = |name: &str, count: usize| {
        shared.python(&["-i"], "sqlite.py", &[&database, name, &count.to_string()])
    };

    let mut writers = Vec::new();
    for name in ["one", "two"] {
        let writer = run(name, TRANSACTIONS).piped().spawn()?;
        writer.prints("ready")?;
        writers.push(writer);
    }
    for writer in &mut writers {
        writer.write(b"go\n")?;
    }
    for writer in writers {
        writer.finish()?.ok()?;
    }
    let after = run("three", 1)
        .input("go\n")
        .ok()
        .context("a third container, afterwards")?;

    same(
        "rows",
        &after,
        &format!("ready\n{{'one': {TRANSACTIONS}, 'three': 1, 'two': {TRANSACTIONS}}}"),
    )?;
    let left = all_ours(&shared.dir)?;
    ensure!(
        left == 1,
        "{left} files are left where only the database should be"
    );
    Ok(Verdict::Passed)
}
