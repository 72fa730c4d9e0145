//! Waiting until Docker answers in a machine that is up: dockerd may just have been killed, and be starting again.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::context::CommandContext;
use crate::api::client::ClientError;
use crate::docker::client;
use crate::exit::{Code, Failure, chain};
use crate::machine::events::Event;
use crate::machine::state::State;

/// Docker is asked again after this also when the daemon has no news of it: what kept it from answering need not have been
/// its end.
const AGAIN: Duration = Duration::from_secs(2);

/// How the wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// Docker answers.
    Answers,
    /// The machine is in this state instead.
    Gone(State),
}

/// Returns when Docker answers on the machine's socket, or fails after `timeout`.
pub(super) async fn wait(context: &CommandContext, timeout: Duration) -> Result<()> {
    let mut events = context
        .client()
        .events()
        .await
        .map_err(|error| context.client_error(error))?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let socket = context.machine.docker_socket();
    let tell = |error: client::ClientError| {
        context.output.remark(format_args!(
            "waiting for Docker, which does not answer yet: {}",
            chain(&error.into())
        ));
    };
    let outcome = tokio::select! {
        outcome = answers(&socket, async || events.next().await, tell) => outcome?,
        () = tokio::time::sleep(timeout) => {
            return Err(Failure::because(Code::Failed, format!(
                "the machine runs, but Docker did not answer within {} seconds; see `{}`, and start it afresh with `{}`",
                timeout.as_secs(), context.command("logs --source dockerd"), context.command("restart"),
            )));
        }
        _ = interrupt.recv() => return Err(Failure::because(
            Code::Command(130),
            "the machine runs; its Docker may answer soon",
        )),
    };
    match outcome {
        Outcome::Answers => Ok(()),
        Outcome::Gone(state) => Err(Failure::because(
            Code::Failed,
            format!("the machine is {state}, before its Docker answered"),
        )),
    }
}

/// Asks Docker, and again whenever `news` makes it worth while. `tell` is told the first failure.
async fn answers(
    socket: &Path,
    mut news: impl AsyncFnMut() -> Result<Option<Event>, ClientError>,
    tell: impl FnOnce(client::ClientError),
) -> Result<Outcome> {
    let mut tell = Some(tell);
    loop {
        match client::ping(socket).await {
            Ok(()) => return Ok(Outcome::Answers),
            Err(error) => {
                if let Some(tell) = tell.take() {
                    tell(error);
                }
            }
        }
        // An event that is taken as the time runs out only makes the next question come a little later.
        if let Ok(gone) = tokio::time::timeout(AGAIN, worth_asking(&mut news)).await
            && let Some(state) = gone?
        {
            return Ok(Outcome::Gone(state));
        }
    }
}

/// Returns when Docker answers again as far as the daemon knows, or with the state of a machine that is no more.
async fn worth_asking(
    news: &mut impl AsyncFnMut() -> Result<Option<Event>, ClientError>,
) -> Result<Option<State>> {
    loop {
        match news().await {
            Ok(Some(Event::Docker { ready: true })) => return Ok(None),
            Ok(Some(Event::State { state, .. })) if state.is_final() || state == State::Stopping => {
                return Ok(Some(state));
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(ClientError::Broken(_)) => return Ok(Some(State::Stopped)),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;

    use super::*;

    const RESTARTING: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}";
    const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK";

    async fn serve(listener: &UnixListener, answer: &str) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn a_docker_that_restarts_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, mut events) = mpsc::unbounded_channel();
        let mut told = 0;
        let waiting = answers(&socket, async || Ok(events.recv().await), |_| told += 1);
        let docker = async {
            serve(&listener, RESTARTING).await;
            serve(&listener, "").await;
            // History, and what does not concern Docker.
            sender.send(Event::Docker { ready: false }).unwrap();
            sender.send(Event::Docker { ready: true }).unwrap();
            serve(&listener, FINE).await;
        };
        sender.send(Event::Docker { ready: true }).unwrap();
        let (outcome, ()) = tokio::join!(waiting, docker);
        assert_eq!(outcome.unwrap(), Outcome::Answers);
        assert_eq!(told, 1);
    }

    #[tokio::test]
    async fn a_machine_that_ends_meanwhile_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let state = Event::State {
            state: State::Stopping,
            at_ms: 1,
        };
        let mut events = vec![Ok(Some(state))];
        let news = async || events.pop().unwrap_or(Ok(None));
        assert_eq!(
            answers(&socket, news, |_| {}).await.unwrap(),
            Outcome::Gone(State::Stopping)
        );
        let closed = async || Ok(None);
        assert_eq!(
            answers(&socket, closed, |_| {}).await.unwrap(),
            Outcome::Gone(State::Stopped)
        );
    }
}
