//! Running the few programs of the image that guest-init needs (mkfs, fsck) to their end.

use std::io::{self, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use crate::reaper::Reaper;

/// Where programs of the image are looked for.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program that was run.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// What it printed, on both streams, without white space at the ends.
    pub(crate) output: String,
}

/// Runs `program` with `args` to its end and returns what it printed.
pub(crate) async fn run(reaper: &Arc<Reaper>, program: &str, args: &[&str]) -> io::Result<Finished> {
    let (mut output, input) = io::pipe()?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input);
    let mut child = reaper.spawn(&mut command)?;
    // Our own copies of the pipe's write end, without which the read below never ends.
    drop(command);
    let output = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        output.read_to_end(&mut text).map(|_| text)
    })
    .await
    .map_err(io::Error::other)??;
    Ok(Finished {
        status: child.wait().await,
        output: String::from_utf8_lossy(&output).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reaper::tests::running_reaper;

    #[tokio::test]
    async fn output_of_both_streams_and_the_status_come_back() {
        let done = run(&running_reaper(), "sh", &["-c", "echo out; echo err >&2; exit 4"])
            .await
            .unwrap();
        assert_eq!((done.status.code(), done.output.as_str()), (Some(4), "out\nerr"));
    }
}
