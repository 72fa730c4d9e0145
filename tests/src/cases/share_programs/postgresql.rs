//! PostgreSQL with its data in a directory of the host, as its official image runs it: it insists on owning its
//! directory, on its mode, and on what it has synced.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use super::{Shared, TARGET, all_ours, no_image};
use crate::docker::{Container, has, same};
use crate::machine::Machine;
use crate::processes::wait_until;
use crate::program::Program;
use crate::suite::{Context, Verdict};

/// How long the server may take until it answers, making its data directory included.
const READY_LIMIT: Duration = Duration::from_secs(420);
/// The user in the image.
const POSTGRES: &str = "999:999";

/// What runs as root, and what runs as the database's user.
const ENTRYPOINT: &str = "/programs/entrypoint.sh";
const SERVE: &str = "/programs/serve.sh";

/// A server in a container.
struct Server {
    machine: Arc<Machine>,
    container: Container,
}

impl Server {
    /// Starts it and waits until it answers.
    fn start(shared: &Shared, name: String, options: &[&str], script: &str) -> Result<Server> {
        let data = format!("PGDATA={TARGET}/data");
        let mut all = vec!["-e", &data, "--stop-signal", "SIGINT"];
        all.extend(options);
        let container = shared.container(name, &all, &["sh", script])?;
        let server = Server {
            machine: Arc::clone(&shared.machine),
            container,
        };
        wait_until("PostgreSQL to answer", READY_LIMIT, || {
            if server.container.at("/State/Running")? != json!(true) {
                bail!("the server has ended:\n{}", server.log()?);
            }
            let ready = server.program(&["pg_isready", "-q", "-h", "/tmp"]).run()?;
            Ok(ready.code() == Some(0))
        })
        .with_context(|| server.log().unwrap_or_default())?;
        Ok(server)
    }

    fn program(&self, command: &[&str]) -> Program {
        self.machine
            .docker(["exec", "-i", self.container.name()])
            .args(command)
    }

    fn psql(&self, arguments: &[&str]) -> Program {
        self.program(&[
            "psql",
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "/tmp",
            "-U",
            "postgres",
        ])
        .args(arguments)
    }

    fn sql(&self, statements: &str) -> Result<String> {
        self.psql(&["-c", statements]).ok()
    }

    /// What it has said; all of it goes to stderr.
    fn log(&self) -> Result<String> {
        Ok(self
            .machine
            .docker(["logs", self.container.name()])
            .run()?
            .errors())
    }

    fn stop(self) -> Result<()> {
        self.machine
            .docker(["stop", "-t", "120", self.container.name()])
            .ok()?;
        let code = self.container.at("/State/ExitCode")?;
        ensure!(
            code == json!(0),
            "the server did not stop in order ({code}):\n{}",
            self.log()?
        );
        Ok(())
    }
}

pub(super) fn postgresql_keeps_its_data_when_stopped_and_when_killed(context: &Context) -> Result<Verdict> {
    let Some(shared) = Shared::new(context, "postgresql")? else {
        return Ok(no_image());
    };

    let server = Server::start(&shared, context.name("postgresql"), &[], ENTRYPOINT)?;
    let owners = server
        .program(&["stat", "-c", "%u:%g %a", "/proc/1", "/x/data", "/x/data/base"])
        .ok()?;
    server.sql(
        "CREATE TABLE items (id int PRIMARY KEY, note text); \
         INSERT INTO items SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 5000) n",
    )?;
    server.stop()?;
    same(
        "the server's user, and its directories",
        &owners.as_str(),
        &format!("{POSTGRES} 555\n{POSTGRES} 700\n{POSTGRES} 700").as_str(),
    )?;

    // A new container, which is root again at first.
    let server = Server::start(&shared, context.name("postgresql"), &[], ENTRYPOINT)?;
    let kept = server.sql("SELECT count(*), sum(id), min(length(note)) FROM items")?;
    let log = server.log()?;
    same("rows after a stop", &kept.as_str(), &"5000|12502500|640")?;
    has("the log after a stop", &log, "database system was shut down at")?;

    server.sql("UPDATE items SET note = 'changed' WHERE id % 2 = 0")?;
    server.sql("CREATE INDEX notes ON items (note, id)")?;
    server.sql("INSERT INTO items SELECT n, 'late' FROM generate_series(5001, 6000) n")?;
    let mut open = server.psql(&[]).piped().spawn()?;
    open.write(b"BEGIN; INSERT INTO items VALUES (-1, 'never'); SELECT 'not ' || 'committed';\n")?;
    open.prints("not committed")?;
    shared
        .machine
        .docker(["kill", "--signal", "KILL", server.container.name()])
        .ok()?;
    server.container.wait_for("/State/ExitCode", &json!(137))?;
    drop((open, server));

    // As its own user from the start, who could not chown anything.
    let server = Server::start(&shared, context.name("postgresql"), &["--user", POSTGRES], SERVE)?;
    let kept = server.sql(
        "SELECT count(*), sum(id), count(*) FILTER (WHERE note = 'changed'), count(*) FILTER (WHERE note = 'late') FROM items",
    )?;
    let log = server.log()?;
    server
        .sql(
            "CREATE EXTENSION amcheck; \
             SELECT bt_index_check(index, true) FROM unnest(ARRAY['items_pkey'::regclass, 'notes']) index",
        )
        .context("the indexes after a kill")?;
    server.stop()?;
    same("rows after a kill", &kept.as_str(), &"6000|18003000|2500|1000")?;
    has("the log after a kill", &log, "automatic recovery in progress")?;
    let checked = shared
        .run(&["--user", POSTGRES])
        .args(["pg_checksums", "--check", "/x/data"])
        .ok()
        .context("the checksums of all pages")?;
    has("pg_checksums", &checked, "Bad checksums:  0")?;

    let version = fs::read_to_string(shared.dir.join("data/PG_VERSION")).context("PG_VERSION on the host")?;
    same("PG_VERSION on the host", &version.as_str(), &"17\n")?;
    let files = all_ours(&shared.dir)?;
    ensure!(files > 500, "the host has only {files} files of the database");
    Ok(Verdict::Passed)
}
