//! A running process and its streams.
//!
//! The process leads a session and a process group of its own, and with a terminal has that as its controlling one. It
//! ends the session: what it left in the background keeps running without a listener, and what it had written itself is
//! in the pipe or the terminal by then and is sent before the exit code.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::Arc;

use protocol::exec::{ExecReply, ExecRequest, Packet, TerminalSize};
use protocol::frame;
use rustix::process::{Pid, Signal, ioctl_tiocsctty, kill_process_group, setsid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetpgrp, tcsetwinsize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, split};

use super::fd::{Fd, Read};
use super::program::{Program, StartError};
use crate::console::warning;
use crate::reaper::{Child, Handle, Reaper, exit_code};
use crate::services::Stream;
use crate::services::hang_up::HangUp;

/// Bytes read from the process at once.
const BUFFER: usize = 32 * 1024;

/// End of transmission: what a terminal's line discipline takes for the end of input.
const EOT: u8 = 4;

/// Most bytes looked for after the process has ended, per stream. What it wrote itself is in the pipe (at most 1 MiB,
/// `fs.pipe-max-size`) or the terminal; a child it left behind may write without end.
const LAST_WORDS: usize = 2 << 20;

/// A process and our ends of its streams. With a terminal `stdin` and `stdout` are the terminal.
#[derive(Debug)]
pub(super) struct Session {
    child: Child,
    terminal: Option<Arc<Fd>>,
    stdin: Arc<Fd>,
    stdout: Arc<Fd>,
    stderr: Option<Fd>,
}

/// Starts what a request asks for.
pub(super) fn start(reaper: &Arc<Reaper>, request: &ExecRequest) -> Result<Session, StartError> {
    let program = Program::find(request)?;
    let name = program.path.to_string_lossy().into_owned();
    let other = |reason: io::Error| StartError::Other {
        program: name.clone(),
        reason,
    };
    let mut command = Command::new(&program.path);
    command
        .env_clear()
        .envs(program.env.iter().map(|(key, value)| (key, value)))
        .current_dir(&program.directory);
    if let [zeroth, arguments @ ..] = program.argv.as_slice() {
        command.arg0(zeroth).args(arguments);
    }
    let terminal = match request.tty {
        Some(size) => {
            let (ours, theirs) = open_terminal(size).map_err(other)?;
            let copy = || theirs.try_clone().map(Stdio::from);
            command
                .stdin(copy().map_err(other)?)
                .stdout(copy().map_err(other)?)
                .stderr(copy().map_err(other)?);
            Some(ours)
        }
        None => {
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            None
        }
    };
    let with_terminal = terminal.is_some();
    // SAFETY: the closure runs between fork and exec and makes two system calls; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            if with_terminal {
                ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            Ok(())
        });
    }
    let child = reaper
        .spawn(&mut command)
        .map_err(|e| StartError::of_spawn(&name, e))?;
    // The process's side, of which we must not keep a copy: the terminal would never end.
    drop(command);
    our_ends(child, terminal).map_err(other)
}

fn our_ends(mut child: Child, terminal: Option<OwnedFd>) -> io::Result<Session> {
    if let Some(terminal) = terminal {
        let terminal = Arc::new(Fd::new(terminal, Interest::READABLE | Interest::WRITABLE)?);
        return Ok(Session {
            child,
            stdin: terminal.clone(),
            stdout: terminal.clone(),
            stderr: None,
            terminal: Some(terminal),
        });
    }
    let missing = || io::Error::other("a standard stream is not a pipe");
    let stdin = child.stdin.take().ok_or_else(missing)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    Ok(Session {
        child,
        terminal: None,
        stdin: Arc::new(Fd::new(stdin, Interest::WRITABLE)?),
        stdout: Arc::new(Fd::new(stdout, Interest::READABLE)?),
        stderr: Some(Fd::new(stderr, Interest::READABLE)?),
    })
}

/// Opens a pseudo-terminal: our side, and the process's.
fn open_terminal(size: TerminalSize) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    resize(&ours, size)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    Ok((ours, theirs))
}

fn resize(terminal: impl AsFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

/// Tells a process that nobody listens any more: SIGHUP to its group and to the one in the terminal's foreground, and
/// SIGCONT so that stopped ones notice.
fn hang_up(process: &Handle, terminal: Option<&Fd>) {
    let foreground = terminal.and_then(|terminal| foreground_group(process, terminal));
    for signal in [Signal::HUP, Signal::CONT] {
        report(process, signal, process.signal_group(signal));
        if let Some(group) = foreground {
            report(
                process,
                signal,
                kill_process_group(group, signal).map_err(Into::into),
            );
        }
    }
}

/// Signals the group in the terminal's foreground, which is what a person means, else the group of the process.
fn send_signal(process: &Handle, terminal: Option<&Fd>, signal: Signal) {
    let foreground = terminal.and_then(|terminal| foreground_group(process, terminal));
    let sent = match foreground {
        Some(group) => kill_process_group(group, signal).map_err(Into::into),
        None => process.signal_group(signal),
    };
    report(process, signal, sent);
}

/// The group in the foreground of the terminal, when it is not that of the process itself. The terminal is ours and
/// open, so the group it names is one of its session's.
fn foreground_group(process: &Handle, terminal: &Fd) -> Option<Pid> {
    let own = Pid::from_raw(process.pid().cast_signed());
    tcgetpgrp(terminal).ok().filter(|group| Some(*group) != own)
}

fn report(process: &Handle, signal: Signal, sent: io::Result<()>) {
    // A group may end at any time.
    if let Err(e) = sent
        && e.raw_os_error() != Some(libc::ESRCH)
    {
        warning!(
            "cannot send signal {} to process {}: {e}",
            signal.as_raw(),
            process.pid()
        );
    }
}

impl Session {
    /// The process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Sends `reply`, then exchanges packets until the process has ended or the host has gone. Whenever it returns before
    /// the process has ended, the process has been hung up.
    pub(super) async fn run(self, mut stream: impl Stream, reply: &ExecReply) -> io::Result<()> {
        let process = self.child.handle().clone();
        let terminal = self.terminal.as_deref();
        let gone = HangUp::watch(&stream)?;
        if let Err(e) = frame::write_async(&mut stream, reply).await {
            hang_up(&process, terminal);
            return Err(io::Error::other(e));
        }
        let (mut from_host, mut to_host) = split(stream);
        let mut input = pin!(take_input(&process, self.stdin, terminal, &mut from_host));
        let mut output = pin!(send_output(
            self.child,
            &self.stdout,
            self.stderr.as_ref(),
            &mut to_host
        ));
        let taken = tokio::select! {
            // A host that is gone has also ended its half; it is the former that counts.
            biased;
            sent = &mut output => {
                if sent.is_err() {
                    hang_up(&process, terminal);
                }
                return sent;
            }
            () = gone.wait() => {
                // A terminal hangs up by itself when our side of it is closed, which is next.
                if terminal.is_none() {
                    hang_up(&process, None);
                }
                return Ok(());
            }
            taken = &mut input => taken,
        };
        hang_up(&process, terminal);
        taken?;
        // A host that only ended its half gets to see how the process takes it.
        tokio::select! {
            sent = &mut output => sent,
            () = gone.wait() => Ok(()),
        }
    }
}

/// Takes packets until the host ends its half.
async fn take_input(
    process: &Handle,
    stdin: Arc<Fd>,
    terminal: Option<&Fd>,
    host: &mut (impl AsyncRead + Unpin),
) -> io::Result<()> {
    let mut stdin = Some(stdin);
    let mut at_line_start = true;
    while let Some(packet) = Packet::read(host).await? {
        match packet {
            Packet::Stdin(bytes) => {
                if let Some(last) = bytes.last() {
                    at_line_start = *last == b'\n' || *last == b'\r';
                }
                if let Some(sink) = &stdin
                    && sink.write_all(&bytes).await.is_err()
                {
                    // The process reads no more; that is its right, and no end of the session.
                    stdin = None;
                }
            }
            Packet::StdinEof => match (stdin.take(), terminal) {
                (Some(sink), Some(_)) => {
                    // The first one within a line only hands the line over.
                    let end: &[u8] = if at_line_start { &[EOT] } else { &[EOT, EOT] };
                    // As above.
                    let _ = sink.write_all(end).await;
                }
                // Dropped, and so closed.
                (sink, _) => drop(sink),
            },
            Packet::Resize(size) => {
                if let Some(terminal) = terminal
                    && let Err(e) = resize(terminal, size)
                {
                    warning!("cannot resize the terminal of process {}: {e}", process.pid());
                }
            }
            Packet::Signal(number) => match Signal::from_named_raw(number) {
                Some(signal) => send_signal(process, terminal, signal),
                None => warning!("there is no signal {number} to send to process {}", process.pid()),
            },
            Packet::Stdout(_) | Packet::Stderr(_) | Packet::Exit(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the host sent a packet that only guests send",
                ));
            }
        }
    }
    Ok(())
}

/// Sends output until the process has ended, then the rest of it, then how it ended.
async fn send_output(
    mut child: Child,
    stdout: &Fd,
    stderr: Option<&Fd>,
    host: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut buffers = (
        vec![0; BUFFER],
        vec![0; if stderr.is_some() { BUFFER } else { 0 }],
    );
    let (mut stdout, mut stderr) = (Some(stdout), stderr);
    let status = loop {
        tokio::select! {
            read = read_some(stdout, &mut buffers.0) => match read? {
                Some(length) => Packet::Stdout(buffers.0[..length].to_vec()).write(host).await?,
                None => stdout = None,
            },
            read = read_some(stderr, &mut buffers.1) => match read? {
                Some(length) => Packet::Stderr(buffers.1[..length].to_vec()).write(host).await?,
                None => stderr = None,
            },
            status = child.wait() => break status,
        }
    };
    send_last_words(stdout, Packet::Stdout, host).await?;
    send_last_words(stderr, Packet::Stderr, host).await?;
    Packet::Exit(exit_code(status)).write(host).await?;
    host.shutdown().await
}

/// Sends what is there now, and no more than [`LAST_WORDS`].
async fn send_last_words(
    fd: Option<&Fd>,
    packet: fn(Vec<u8>) -> Packet,
    host: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let Some(fd) = fd else {
        return Ok(());
    };
    let mut buffer = vec![0; BUFFER];
    let mut sent = 0;
    while sent < LAST_WORDS
        && let Read::Bytes(length) = fd.read_now(&mut buffer)?
    {
        packet(buffer[..length].to_vec()).write(host).await?;
        sent += length;
    }
    Ok(())
}

/// Reads from a stream that may have ended; one that has never gives anything again.
async fn read_some(fd: Option<&Fd>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match fd {
        Some(fd) => fd.read(buffer).await,
        None => std::future::pending().await,
    }
}
