//! `berth exec` and `berth shell`.

use std::io::{self, IsTerminal, Read, Write};

use anyhow::{Context, Result};
use clap::Args;
use protocol::exec::{ExecErrorKind, ExecReply, ExecRequest, MAX_PAYLOAD, Packet};
use protocol::frame;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::context::{CommandContext, block_on};
use super::terminal::{self, RawTerminal};
use crate::api::client::ClientError;
use crate::exit::{Code, Failure, code_of};

/// Pieces of standard input that wait to be sent.
const STDIN_BACKLOG: usize = 4;

/// The signals that are passed on to a process without a terminal.
const PASSED_ON: [i32; 5] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
];

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "The exit code is the command's own: 128+N when signal N ended it, 125 when berth itself failed, 126 when \
                        the command\ncannot be executed, 127 when there is none."
)]
pub(super) struct ExecArgs {
    /// Set a variable in the command's environment
    #[arg(long, short = 'e', value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,

    /// The command's working directory
    #[arg(long, short = 'w', value_name = "DIR")]
    workdir: Option<String>,

    /// Give the command a terminal (as it gets when standard input and output are one)
    #[arg(long, short = 't', overrides_with = "no_tty")]
    tty: bool,

    /// Give the command no terminal
    #[arg(long, short = 'T', overrides_with = "tty")]
    no_tty: bool,

    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub(super) struct ShellArgs {
    /// The shell's working directory
    #[arg(long, short = 'w', value_name = "DIR")]
    workdir: Option<String>,
}

/// Runs a command in the machine.
pub(super) fn run(context: &CommandContext, args: &ExecArgs) -> Result<()> {
    let terminals = io::stdin().is_terminal() && io::stdout().is_terminal();
    let tty = args.tty || (terminals && !args.no_tty);
    finish(execute(
        context,
        args.command.clone(),
        args.env.clone(),
        args.workdir.clone(),
        tty,
    ))
}

/// Opens a shell in the machine.
pub(super) fn shell(context: &CommandContext, args: &ShellArgs) -> Result<()> {
    // Without a terminal it reads commands from standard input, as shells do.
    let tty = io::stdin().is_terminal() && io::stdout().is_terminal();
    finish(execute(
        context,
        Vec::new(),
        Vec::new(),
        args.workdir.clone(),
        tty,
    ))
}

fn variable(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "expected NAME=VALUE".to_owned())
}

/// The exit code of a command that ran, or 125 where berth failed in a way that has no code of its own.
fn finish(result: Result<i32>) -> Result<()> {
    match result {
        Ok(0) => Ok(()),
        Ok(code) => Err(Failure::silent(Code::of_command(code))),
        Err(error) if matches!(code_of(&error), Code::NotFound | Code::NotExecutable) => Err(error),
        // Any other code could be the command's own.
        Err(error) => Err(Failure::wrap(Code::Exec, error)),
    }
}

fn execute(
    context: &CommandContext,
    argv: Vec<String>,
    mut env: Vec<(String, String)>,
    cwd: Option<String>,
    tty: bool,
) -> Result<i32> {
    let size = tty.then(|| {
        terminal::size(rustix::stdio::stdin()).unwrap_or(protocol::exec::TerminalSize { rows: 24, cols: 80 })
    });
    if tty
        && !env.iter().any(|(name, _)| name == "TERM")
        && let Ok(term) = std::env::var("TERM")
    {
        env.push(("TERM".into(), term));
    }
    let request = ExecRequest {
        argv,
        env,
        cwd,
        tty: size,
    };
    block_on(async {
        let mut stream = context.client().exec().await.map_err(|error| match error {
            // The guest's side could not be reached: not the machine's state, but berth's failure.
            ClientError::Refused { status, .. } if status == hyper::StatusCode::BAD_GATEWAY => error.into(),
            error => context.client_error(error),
        })?;
        frame::write_async(&mut stream, &request)
            .await
            .context("cannot ask the guest to run the command")?;
        match frame::read_async(&mut stream)
            .await
            .context("the guest did not say whether the command runs")?
        {
            ExecReply::Started { pid } => tracing::debug!(pid, "started"),
            ExecReply::Error { kind, message } => {
                let code = match kind {
                    ExecErrorKind::NotFound => Code::NotFound,
                    ExecErrorKind::NotExecutable => Code::NotExecutable,
                    ExecErrorKind::Other => Code::Exec,
                };
                return Err(Failure::because(code, message));
            }
        }
        let raw = match tty && io::stdin().is_terminal() {
            true => Some(RawTerminal::enter().context("cannot set up the terminal")?),
            false => None,
        };
        let code = converse(stream, tty).await;
        drop(raw);
        code
    })
}

/// Passes standard streams, signals and sizes until the command has ended; its exit code.
async fn converse(stream: impl AsyncRead + AsyncWrite, tty: bool) -> Result<i32> {
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    // Read by a task of its own: reading a packet must not be given up half-way when something else happens.
    let output = async {
        loop {
            match Packet::read(&mut from_guest).await {
                Ok(Some(Packet::Stdout(bytes))) => write(&mut io::stdout(), &bytes)?,
                Ok(Some(Packet::Stderr(bytes))) => write(&mut io::stderr(), &bytes)?,
                Ok(Some(Packet::Exit(code))) => return Ok(code),
                Ok(Some(packet)) => {
                    anyhow::bail!("the guest sent something that only a host sends: {packet:?}")
                }
                Ok(None) => anyhow::bail!("the connection to the guest ended before the command did"),
                Err(error) => {
                    return Err(error)
                        .context("the connection to the guest broke off before the command ended");
                }
            }
        }
    };
    let input = async {
        let mut stdin = read_stdin();
        let mut resized = signal(SignalKind::window_change()).context("cannot listen to signals")?;
        let mut signals = passed_on(tty)?;
        let mut stdin_open = true;
        loop {
            let packet = tokio::select! {
                bytes = stdin.recv(), if stdin_open => match bytes {
                    Some(bytes) => Packet::Stdin(bytes),
                    None => {
                        stdin_open = false;
                        Packet::StdinEof
                    }
                },
                _ = resized.recv(), if tty => match terminal::size(rustix::stdio::stdin()) {
                    Some(size) => Packet::Resize(size),
                    None => continue,
                },
                number = next_signal(&mut signals) => Packet::Signal(number),
            };
            if packet.write(&mut to_guest).await.is_err() {
                // The command may have ended; what it said last is still to be read.
                return std::future::pending::<Result<i32>>().await;
            }
        }
    };
    tokio::select! {
        code = output => code,
        code = input => code,
    }
}

fn write(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes)
        .and_then(|()| to.flush())
        .context("cannot write the command's output")
}

/// Standard input, piece by piece, until its end. A thread, because standard input may be anything and cannot always be
/// waited for; it ends with the process.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(STDIN_BACKLOG);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; MAX_PAYLOAD];
        loop {
            match stdin.read(&mut buffer) {
                // An input that cannot be read any more has ended.
                Ok(0) => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
                Ok(n) => {
                    if sender.blocking_send(buffer[..n].to_vec()).is_err() {
                        return;
                    }
                }
            }
        }
    });
    receiver
}

/// The signals to pass on. With a terminal the keys that make signals go to the guest as they are; only what others send to
/// this process is left.
fn passed_on(tty: bool) -> Result<Vec<(i32, Signal)>> {
    PASSED_ON
        .into_iter()
        .filter(|number| !tty || matches!(*number, libc::SIGTERM | libc::SIGHUP))
        .map(|number| {
            let listener = signal(SignalKind::from_raw(number)).context("cannot listen to signals")?;
            Ok((number, listener))
        })
        .collect()
}

async fn next_signal(signals: &mut [(i32, Signal)]) -> i32 {
    std::future::poll_fn(|context| {
        for (number, signal) in signals.iter_mut() {
            if signal.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(*number);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_commands_own_and_berths_failures_are_125() {
        let number = |result| finish(result).map_or_else(|error| code_of(&error).number(), |()| 0);
        assert_eq!(number(Ok(0)), 0);
        assert_eq!(number(Ok(7)), 7);
        assert_eq!(number(Ok(128 + 9)), 137);
        assert_eq!(number(Err(anyhow::anyhow!("broken"))), 125);
        assert_eq!(
            number(Err(Failure::because(Code::NotFound, "no such command"))),
            127
        );
        assert_eq!(number(Err(Failure::because(Code::NotRunning, "stopped"))), 125);
    }

    #[test]
    fn variables_have_a_name_and_a_value() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(variable("A="), Ok(("A".into(), String::new())));
        assert!(variable("A").is_err() && variable("=b").is_err());
    }

    #[tokio::test]
    async fn a_commands_end_is_its_exit_code_and_a_broken_stream_is_an_error() {
        let (host, mut guest) = tokio::io::duplex(1024);
        Packet::Exit(42).write(&mut guest).await.unwrap();
        assert_eq!(converse(host, false).await.unwrap(), 42);
        let (host, guest) = tokio::io::duplex(1024);
        drop(guest);
        let error = converse(host, false).await.unwrap_err();
        assert!(error.to_string().contains("before the command did"), "{error}");
    }
}
