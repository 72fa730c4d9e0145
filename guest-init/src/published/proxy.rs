//! The program that dockerd starts for a published port, in place of its own `docker-proxy`: guest-init under that name.
//!
//! dockerd gives it the port as options and the write end of a pipe as descriptor 3. It says `0\n` there when the port is
//! there, or `1\n` and why not; dockerd then fails the container's start with these words. SIGINT or SIGTERM ends it, and
//! dockerd waits for that, so by then the port is free.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use protocol::forward::{Published, PublishedBy, Transport};
use protocol::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::requests::{Answer, CLOSE, SOCKET};

/// The name that guest-init is this program by, and where the image has it.
pub(crate) const PATH: &str = "/usr/libexec/berth/docker-proxy";
/// Where dockerd listens for how it went.
const STATUS: &str = "/proc/self/fd/3";
/// How long guest-init may take to give the port up.
const GIVING_UP: Duration = Duration::from_secs(6);

/// Whether a process with this first argument is to be the proxy.
pub(crate) fn is_meant(program: Option<&std::ffi::OsStr>) -> bool {
    program.is_some_and(|program| Path::new(program).file_name() == Path::new(PATH).file_name())
}

/// Runs it with the process's arguments.
pub(crate) fn run() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = parse(&arguments).and_then(|port| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the event loop")?
            .block_on(hold(port))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("{error:#}");
            if report(&format!("1\n{message}")).is_err() {
                eprintln!("docker-proxy: {message}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Holds the port until a signal comes or guest-init is gone.
async fn hold(port: Published) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut stream = UnixStream::connect(SOCKET)
        .await
        .with_context(|| format!("cannot reach guest-init at {SOCKET}"))?;
    frame::write_async(&mut stream, &port)
        .await
        .context("cannot ask guest-init for the port")?;
    let answer: Answer = frame::read_async(&mut stream)
        .await
        .context("guest-init did not answer")?;
    if let Some(refused) = answer.refused {
        bail!(refused);
    }
    report("0\n").context("cannot tell dockerd that the port is there")?;
    let mut end = [0];
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        // guest-init never closes first.
        _ = stream.read(&mut end) => return Ok(()),
    }
    let give_up = async {
        stream.write_all(&[CLOSE]).await?;
        stream.read_exact(&mut end).await
    };
    // dockerd must not wait for a host that does not answer.
    let _ = timeout(GIVING_UP, give_up).await;
    Ok(())
}

/// Tells dockerd, and closes the pipe.
fn report(text: &str) -> io::Result<()> {
    // Opening the pipe by its name rather than taking the descriptor, which may be anything when somebody else runs us.
    File::options()
        .write(true)
        .open(STATUS)?
        .write_all(text.as_bytes())
}

fn parse(arguments: &[String]) -> anyhow::Result<Published> {
    let mut transport = None;
    let (mut host, mut target) = ((None, None), (None, None));
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let name = argument.trim_start_matches('-');
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, value),
            None => (
                name,
                arguments
                    .next()
                    .with_context(|| format!("the option {argument} has no value"))?
                    .as_str(),
            ),
        };
        let address = || {
            value
                .parse::<IpAddr>()
                .with_context(|| format!("{value:?} is no IP address"))
        };
        let port = || {
            value
                .parse::<u16>()
                .with_context(|| format!("{value:?} is no port"))
        };
        match name {
            "proto" => {
                transport = Some(match value {
                    "tcp" => Transport::Tcp,
                    "udp" => Transport::Udp,
                    _ => bail!("berth cannot publish {value} ports, only tcp and udp"),
                });
            }
            "host-ip" => host.0 = Some(address()?),
            "host-port" => host.1 = Some(port()?),
            "container-ip" => target.0 = Some(address()?),
            "container-port" => target.1 = Some(port()?),
            // Of a dockerd newer than the image's, which would mean something by it.
            _ => bail!("berth's docker-proxy does not know the option {argument}"),
        }
    }
    let both = |(ip, port): (Option<IpAddr>, Option<u16>), what: &str| {
        let ip = ip.with_context(|| format!("the option -{what}-ip is missing"))?;
        let port = port.with_context(|| format!("the option -{what}-port is missing"))?;
        anyhow::Ok(SocketAddr::new(ip, port))
    };
    Ok(Published {
        transport: transport.context("the option -proto is missing")?,
        host: both(host, "host")?,
        target: both(target, "container")?,
        by: PublishedBy::Docker,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> anyhow::Result<Published> {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        parse(&arguments)
    }

    #[test]
    fn dockerds_options_are_understood() {
        let line = "-proto tcp -host-ip :: -host-port 8080 -container-ip 172.17.0.2 -container-port 80";
        let expected = Published {
            transport: Transport::Tcp,
            host: "[::]:8080".parse().unwrap(),
            target: "172.17.0.2:80".parse().unwrap(),
            by: PublishedBy::Docker,
        };
        assert_eq!(parsed(line).unwrap(), expected);
        assert_eq!(
            parsed(&line.replace("-proto tcp", "--proto=tcp")).unwrap(),
            expected
        );
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for (line, message) in [
            ("-proto sctp", "berth cannot publish sctp ports, only tcp and udp"),
            ("-proto tcp -host-ip 1.2.3", "\"1.2.3\" is no IP address"),
            ("-proto tcp -host-port 70000", "\"70000\" is no port"),
            ("-proto tcp", "the option -host-ip is missing"),
            (
                "-use-listen-fd true",
                "berth's docker-proxy does not know the option -use-listen-fd",
            ),
            ("-proto", "the option -proto has no value"),
        ] {
            assert_eq!(parsed(line).unwrap_err().to_string(), message, "{line}");
        }
    }

    #[test]
    fn it_is_meant_by_its_name_only() {
        let meant = |name: &str| is_meant(Some(std::ffi::OsStr::new(name)));
        assert!(meant(PATH) && meant("docker-proxy"));
        assert!(!meant("/sbin/init") && !is_meant(None));
    }
}
