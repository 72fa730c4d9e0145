//! The `berth` program, for what has no daemon to ask: a machine that is stopped, and its start.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::desktop::programs;

/// How long it may take to read files.
const READ_TIME: Duration = Duration::from_secs(20);
/// Its exit code for a machine that does not run, which `status` has although all went well.
const NOT_RUNNING: i32 = 3;

/// The program.
#[derive(Debug, Clone)]
pub(crate) struct Berth(PathBuf);

impl Berth {
    /// The one beside this program, else the one on the path.
    pub(crate) fn find() -> Option<Berth> {
        let beside = std::env::current_exe()
            .ok()
            .map(|path| path.with_file_name("berth"));
        beside
            .filter(|path| programs::is_program(path))
            .or_else(|| programs::on_path("berth"))
            .map(Berth)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Asks for something about a machine: what it prints as JSON, or what went wrong in its words.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        machine: &str,
        arguments: &[&str],
    ) -> Result<T, String> {
        let asked = self.run(machine, arguments);
        let output = tokio::time::timeout(READ_TIME, asked)
            .await
            .map_err(|_| format!("`berth {}` does not end", arguments.join(" ")))??;
        serde_json::from_slice(&output).map_err(|error| {
            format!(
                "`berth {}` printed something else than expected: {error}",
                arguments.join(" ")
            )
        })
    }

    /// Has something done with a machine, however long that takes: what went wrong in its words.
    pub(crate) async fn tell(&self, machine: &str, arguments: &[&str]) -> Result<(), String> {
        self.run(machine, arguments).await.map(drop)
    }

    async fn run(&self, machine: &str, arguments: &[&str]) -> Result<Vec<u8>, String> {
        let mut command = programs::apart(&self.0);
        command.args(["--json", "--machine", machine]).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = programs::start(&mut command).map_err(|error| error.to_string())?;
        let output = child.wait_with_output().await;
        let output = output.map_err(|error| format!("cannot wait for berth: {error}"))?;
        if output.status.success() || (output.status.code() == Some(NOT_RUNNING) && !output.stdout.is_empty())
        {
            return Ok(output.stdout);
        }
        Err(complaint(&output.stderr)
            .unwrap_or_else(|| format!("`berth {}` failed ({})", arguments.join(" "), output.status)))
    }
}

/// What it said went wrong.
fn complaint(stderr: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Complaint {
        error: String,
    }
    let text = String::from_utf8_lossy(stderr);
    let said = text
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok().map(|Complaint { error }| error));
    // The command line itself complains of wrong options in its own form.
    said.or_else(|| {
        text.lines()
            .map(str::trim)
            .rfind(|line| !line.is_empty())
            .map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_complains_of_is_found() {
        let said = b"berth: warning: x\n{\"code\":2,\"error\":\"no such profile\"}\n";
        assert_eq!(complaint(said).as_deref(), Some("no such profile"));
        assert_eq!(complaint(b"error: what?\n\n").as_deref(), Some("error: what?"));
        assert_eq!(complaint(b""), None);
    }

    #[tokio::test]
    async fn what_it_prints_is_read_and_its_exit_code_too() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("berth");
        let script = "#!/bin/sh\ncase \"$4\" in\nstatus) echo '{\"a\": 1}'; exit 3;;\n*) echo '{\"error\":\"no\"}' >&2; exit 3;;\nesac\n";
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let berth = Berth(path);
        let value: serde_json::Value = berth.ask("default", &["status"]).await.unwrap();
        assert_eq!(value["a"], 1);
        assert_eq!(
            berth.tell("default", &["profile", "use", "x"]).await,
            Err("no".into())
        );
    }
}
