//! The guest's call: guest-init connects as soon as it runs, both sides say hello, and the guest reports from then on
//! ([`protocol::boot`]).

use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use protocol::PROTOCOL_VERSION;
use protocol::boot::{GuestEvent, GuestHello, HostHello, MachineConfig};
use protocol::frame::{self, FrameError};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::control::unix_time_ns;

/// How long a guest that has called may take for its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(60);
/// Events waiting to be dealt with. A guest that sends faster waits.
const BACKLOG: usize = 64;

/// Why there is no understanding with the guest.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The conversation broke off.
    #[error("the guest's first call broke off")]
    Frame(#[from] FrameError),
    /// It took too long.
    #[error("the guest called and then said nothing for {HELLO_TIMEOUT:?}")]
    Timeout,
    /// It is from another version.
    #[error(
        "the guest image speaks version {guest} of berth's protocol and this berth version {PROTOCOL_VERSION}; install the guest that belongs to this berth with `cargo xtask install`"
    )]
    Version {
        /// The guest's version.
        guest: u32,
    },
    /// The host's end of the connection cannot be used.
    #[error("the guest's call could not be taken")]
    Io(#[from] std::io::Error),
}

/// A guest that has said hello.
#[derive(Debug)]
pub struct Link {
    /// What it said.
    pub hello: GuestHello,
    /// What it reports. Ends when the guest is gone.
    pub events: mpsc::Receiver<GuestEvent>,
}

/// Says hello to a guest that has called on `stream`, with its configuration, and starts to read its reports.
pub async fn greet(stream: StdUnixStream, config: MachineConfig) -> Result<Link, LinkError> {
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let hellos = async {
        let hello: GuestHello = frame::read_async(&mut stream).await?;
        // The guest of another version gets our hello too, so that it can say on its console what is wrong.
        let answer = HostHello {
            protocol: PROTOCOL_VERSION,
            unix_time_ns: unix_time_ns(),
            config,
        };
        frame::write_async(&mut stream, &answer).await?;
        Ok::<_, FrameError>(hello)
    };
    let hello = tokio::time::timeout(HELLO_TIMEOUT, hellos)
        .await
        .map_err(|_| LinkError::Timeout)??;
    if hello.protocol != PROTOCOL_VERSION {
        return Err(LinkError::Version {
            guest: hello.protocol,
        });
    }
    let (sender, events) = mpsc::channel(BACKLOG);
    tokio::spawn(read_events(stream, sender));
    Ok(Link { hello, events })
}

async fn read_events(mut stream: UnixStream, sender: mpsc::Sender<GuestEvent>) {
    loop {
        let event = tokio::select! {
            event = frame::read_async::<GuestEvent>(&mut stream) => event,
            () = sender.closed() => return,
        };
        match event {
            Ok(event) => {
                if sender.send(event).await.is_err() {
                    return;
                }
            }
            Err(FrameError::Closed) => return,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the guest's reports ended"
                );
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MachineConfig {
        MachineConfig {
            hostname: "berth".into(),
            network: None,
            docker: serde_json::Map::new(),
            shares: Vec::new(),
            host_files: Default::default(),
            ca_certificates: Vec::new(),
        }
    }

    fn hello(protocol: u32) -> GuestHello {
        GuestHello {
            protocol,
            init_version: "0".into(),
            kernel: "6".into(),
            boot_ms: 1,
        }
    }

    fn pair() -> (StdUnixStream, UnixStream) {
        let (host, guest) = StdUnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        (host, UnixStream::from_std(guest).unwrap())
    }

    #[tokio::test]
    async fn hellos_are_exchanged_and_reports_arrive_in_order() {
        let (host, mut guest) = pair();
        let link = tokio::spawn(greet(host, config()));
        frame::write_async(&mut guest, &hello(PROTOCOL_VERSION))
            .await
            .unwrap();
        let answer: HostHello = frame::read_async(&mut guest).await.unwrap();
        assert_eq!(answer.config, config());
        assert!(answer.unix_time_ns > 1_600_000_000_000_000_000);
        let mut link = link.await.unwrap().unwrap();
        frame::write_async(&mut guest, &GuestEvent::NetworkReady)
            .await
            .unwrap();
        frame::write_async(&mut guest, &GuestEvent::PoweringOff)
            .await
            .unwrap();
        drop(guest);
        assert_eq!(link.events.recv().await, Some(GuestEvent::NetworkReady));
        assert_eq!(link.events.recv().await, Some(GuestEvent::PoweringOff));
        assert_eq!(link.events.recv().await, None);
    }

    #[tokio::test]
    async fn a_guest_of_another_version_is_refused_and_still_told_ours() {
        let (host, mut guest) = pair();
        let link = tokio::spawn(greet(host, config()));
        frame::write_async(&mut guest, &hello(99)).await.unwrap();
        let answer: HostHello = frame::read_async(&mut guest).await.unwrap();
        assert_eq!(answer.protocol, PROTOCOL_VERSION);
        let error = link.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("version 99"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_calls_and_says_nothing_is_given_up_on() {
        let (host, _guest) = pair();
        assert!(matches!(greet(host, config()).await, Err(LinkError::Timeout)));
    }
}
