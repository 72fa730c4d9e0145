//! Calls of the daemon's HTTP interface (`docs/api.md`), without the command line in between.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::machine::Machine;

/// How long an answer may take: longer than the daemon takes for any call at most.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// What came with it.
    pub body: String,
}

/// `POST PATH` without a body.
///
/// # Errors
/// When nobody answers, or not in HTTP. An answer that says no is an answer.
pub fn post(machine: &Machine, path: &str) -> Result<Answer> {
    ask(machine, "POST", path, "")
}

/// Waits until the machine has been told of everything that was done on the host before.
///
/// # Errors
/// When that is not so in the end; what [`post`] says.
pub fn sync(machine: &Machine) -> Result<()> {
    let answer = post(machine, "/v1/sync")?;
    ensure!(answer.status == 200, "the barrier was not reached: {answer:?}");
    Ok(())
}

/// `POST PATH` with a body.
///
/// # Errors
/// As [`post`].
pub fn post_json(machine: &Machine, path: &str, body: &serde_json::Value) -> Result<Answer> {
    ask(machine, "POST", path, &body.to_string())
}

/// `GET PATH`.
///
/// # Errors
/// As [`post`].
pub fn get(machine: &Machine, path: &str) -> Result<Answer> {
    ask(machine, "GET", path, "")
}

fn ask(machine: &Machine, method: &str, path: &str, body: &str) -> Result<Answer> {
    let what = || format!("{method} {path}");
    let mut stream = UnixStream::connect(machine.api_socket()).with_context(what)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).with_context(what)?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: berth\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: \
         close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).with_context(what)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(what)?;
    parse(&text).with_context(|| format!("{}: not an answer: {text:?}", what()))
}

/// `GET PATH` of what comes line by line until the machine is gone: reads along in the background, to the end.
///
/// # Errors
/// When nobody answers.
pub fn lines(machine: &Machine, path: &str) -> Result<JoinHandle<std::io::Result<String>>> {
    let what = || format!("GET {path}");
    let mut stream = UnixStream::connect(machine.api_socket()).with_context(what)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: berth\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(what)?;
    Ok(std::thread::spawn(move || {
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?;
    Some(Answer {
        status: status.parse().ok()?,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let text = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno";
        let answer = Answer {
            status: 503,
            body: "no".to_owned(),
        };
        assert_eq!(parse(text), Some(answer));
        assert_eq!(parse("HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(parse("hello\r\n\r\n"), None);
    }
}
