//! Running other programs so that a failure says which, how, and the end of what it printed.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

use crate::progress::note;

/// How many lines of a failed program's output its error carries.
const TAIL: usize = 25;

/// Runs a program with its output going to ours.
///
/// # Errors
/// When it cannot be started or does not succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", show(command)))?;
    check(command, status)
}

/// Starts a program whose stdout and stderr are read here, as they come.
fn spawn_piped(command: &mut Command) -> Result<(Child, BufReader<PipeReader>)> {
    let (reader, writer) = std::io::pipe().context("cannot create a pipe")?;
    let errors = writer.try_clone().context("cannot duplicate a pipe")?;
    let child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot run {}", show(command)))?;
    // The command holds our copies of the pipe's writing end; reading would never end with them open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok((child, BufReader::new(reader)))
}

/// Runs a program beside others: every line it prints goes to stderr with `mark` in front.
///
/// # Errors
/// When it cannot be started or does not succeed.
pub(crate) fn run_beside(command: &mut Command, mark: &str) -> Result<()> {
    let (mut child, reader) = spawn_piped(command)?;
    for line in reader.split(b'\n') {
        let line = line.context("cannot read a program's output")?;
        note(&format!("{mark}{}", String::from_utf8_lossy(&line).trim_end()));
    }
    let status = child.wait().context("cannot wait for a program")?;
    check(command, status)
}

/// Runs a program and returns what it printed on stdout, without the last newline.
///
/// # Errors
/// When it cannot be started, does not succeed (the error then has its stderr), or prints something that is not UTF-8.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", show(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}):\n{}", show(command), output.status, tail(&stderr));
    }
    let mut text = String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed something that is not text", show(command)))?;
    text.truncate(text.trim_end_matches('\n').len());
    Ok(text)
}

/// Runs a program that reads the given pipe and prints nothing of interest.
///
/// # Errors
/// When it cannot be started or does not succeed; the error then has its stderr.
pub(crate) fn filter(command: &mut Command, input: impl Into<Stdio>) -> Result<()> {
    let output = command
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(Child::wait_with_output)
        .with_context(|| format!("cannot run {}", show(command)))?;
    // The command holds our copy of the pipe; the program that writes to it would wait for a reader that is gone.
    command.stdin(Stdio::null());
    if !output.status.success() {
        bail!(
            "{} failed ({}):\n{}",
            show(command),
            output.status,
            tail(&String::from_utf8_lossy(&output.stderr))
        );
    }
    Ok(())
}

/// Runs a program with stdout and stderr appended to a log file, calling `line` for each line.
///
/// # Errors
/// When it cannot be started or does not succeed; the error has the end of the output and names the log.
pub(crate) fn logged(command: &mut Command, log: &Path, mut line: impl FnMut(&str)) -> Result<()> {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write the log {}", log.display()))?;
    let (mut child, mut reader) = spawn_piped(command)?;
    let mut last = std::collections::VecDeque::with_capacity(TAIL);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let read = reader
            .read_until(b'\n', &mut bytes)
            .context("cannot read a program's output")?;
        if read == 0 {
            break;
        }
        file.write_all(&bytes)
            .with_context(|| format!("cannot write the log {}", log.display()))?;
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        line(&text);
        if last.len() == TAIL {
            last.pop_front();
        }
        last.push_back(text);
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {}", show(command)))?;
    if !status.success() {
        let end = last.into_iter().collect::<Vec<_>>().join("\n");
        bail!(
            "{} failed ({status}); the end of {}:\n{end}",
            show(command),
            log.display()
        );
    }
    Ok(())
}

/// Whether a program of this name is on the path (or in the places where only root's path leads).
pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

/// The command as a person would type it.
fn show(command: &Command) -> String {
    let mut text = format!("`{}", command.get_program().to_string_lossy());
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    if text.chars().count() > 160 {
        text = text.chars().take(160).collect();
        text.push('…');
    }
    text.push('`');
    text
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{} failed ({status})", show(command));
    }
    Ok(())
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_end_of_both_streams_and_names_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut seen = 0;

        let error = logged(
            Command::new("sh").args([
                "-c",
                "for i in $(seq 40); do echo line $i; done; echo broken >&2; exit 3",
            ]),
            &log,
            |_| seen += 1,
        )
        .unwrap_err()
        .to_string();

        assert_eq!(seen, 41);
        assert!(error.ends_with("line 40\nbroken"), "{error}");
        assert!(!error.contains("line 1\n"), "{error}");
        assert!(error.contains(log.to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_filter_that_stops_reading_does_not_hang_the_writer() {
        let mut writer = Command::new("yes").stdout(Stdio::piped()).spawn().unwrap();
        let pipe = writer.stdout.take().unwrap();

        let result = filter(Command::new("sh").args(["-c", "echo full >&2; exit 1"]), pipe);

        assert!(result.unwrap_err().to_string().ends_with("full"));
        assert!(!writer.wait().unwrap().success());
    }

    #[test]
    fn output_is_trimmed_and_its_failure_has_stderr() {
        assert_eq!(output(Command::new("printf").arg("a\\nb\\n")).unwrap(), "a\nb");

        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 1"]))
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("why"), "{error}");
    }
}
