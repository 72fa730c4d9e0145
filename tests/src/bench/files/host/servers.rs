//! The servers, each with a directory and a socket of its own.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::tools::Tools;
use crate::bench::files::plan::Contender;
use crate::processes::processor_time;
use crate::program::{Program, Running, end};

/// How long a server may take until it listens.
const PATIENCE: Duration = Duration::from_secs(30);

/// How to start one.
pub(in crate::bench) struct ServerOptions<'a> {
    pub(in crate::bench) contender: Contender,
    pub(in crate::bench) share: &'a Path,
    pub(in crate::bench) socket: PathBuf,
    /// Of each queue.
    pub(in crate::bench) threads: u16,
    /// Request queues.
    pub(in crate::bench) queues: u16,
    /// Further options.
    pub(in crate::bench) more: &'a [String],
}

/// One that runs. It is killed when this is dropped.
pub(in crate::bench) struct Server {
    pub(in crate::bench) contender: Contender,
    pub(in crate::bench) socket: PathBuf,
    pub(in crate::bench) queues: u16,
    /// What it was started with, without paths.
    pub(in crate::bench) line: String,
    running: Running,
}

impl Server {
    /// Starts one and waits until it listens.
    pub(in crate::bench) fn start(
        options: &ServerOptions<'_>,
        fileshare: &Path,
        tools: &Tools,
    ) -> Result<Server> {
        let contender = options.contender;
        let threads = options.threads.to_string();
        let queues = options.queues.to_string();
        let (program, mut words) = match contender {
            Contender::Berth => (
                Program::new(fileshare),
                // As a machine of berth's has it: a queue for each virtual CPU, and files belong to whoever asks.
                vec!["--cache=auto", "--owner=asker", "--num-request-queues", &queues],
            ),
            // Its sandbox would need root or a user namespace; a thread of a pool handles a request in any of them.
            Contender::VirtiofsdAuto => (virtiofsd(tools), vec!["--cache=auto", "--sandbox=none"]),
            Contender::VirtiofsdAlways => (virtiofsd(tools), vec!["--cache=always", "--sandbox=none"]),
            Contender::Ext4 => bail!("the guest's own disk has no server"),
        };
        words.extend(["--thread-pool-size", &threads]);
        words.extend(options.more.iter().map(String::as_str));
        let running = program
            .arg("--socket-path")
            .arg(&options.socket)
            .arg("--shared-dir")
            .arg(options.share)
            .args(&words)
            .bound_to_caller()
            .spawn()?;
        let server = Server {
            contender,
            socket: options.socket.clone(),
            queues: options.queues,
            line: format!("{} {}", contender.name(), words.join(" ")),
            running,
        };
        let begin = Instant::now();
        while !server.socket.exists() {
            if begin.elapsed() > PATIENCE || server.running.stderr.wait_for_end(Duration::ZERO) {
                bail!(
                    "{} does not listen; it said: {}",
                    server.line,
                    end(&server.said())
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// The processor time it has taken so far.
    pub(in crate::bench) fn processor_time(&self) -> Result<Duration> {
        processor_time(self.running.pid())
    }

    /// What it has printed to stderr so far.
    pub(in crate::bench) fn said(&self) -> String {
        String::from_utf8_lossy(&self.running.stderr.bytes()).into_owned()
    }
}

fn virtiofsd(tools: &Tools) -> Program {
    tools.program("usr/libexec/virtiofsd")
}
