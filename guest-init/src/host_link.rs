//! The BOOT stream: guest-init calls the host, says hello, learns who it is, and reports events from then on.
//!
//! The stream may be lost when the host's daemon ends. The machine runs on, and calls again and again, slowly; a daemon
//! that takes over gets the present state told as the events that led to it ([`Facts`]).

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use anyhow::Context;
use protocol::PROTOCOL_VERSION;
use protocol::boot::{GuestEvent, GuestHello, HostHello};
use protocol::frame;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::console::{error, notice, warning};
use crate::services::Stream;
use crate::{clock, status};

/// Waits between two calls: from the first to the longest, doubling.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How often a host that cannot be reached is worth a line on the console.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// How long the host may take for its part of the hello.
const HELLO: Duration = Duration::from_secs(30);
/// How long the last events may take to be read by the host before the machine ends without that.
const FLUSH: Duration = Duration::from_secs(1);
/// Warnings kept for a daemon that takes over.
const MAX_WARNINGS: usize = 16;

/// Where events are reported; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Events(mpsc::UnboundedSender<Message>);

#[derive(Debug)]
enum Message {
    Event(GuestEvent),
    Flush(oneshot::Sender<()>),
}

impl Events {
    /// Reports an event.
    pub(crate) fn send(&self, event: GuestEvent) {
        // The link ends only with the machine.
        let _ = self.0.send(Message::Event(event));
    }

    /// Waits until the host has read everything reported so far, for a second at most and not at all without a host.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.0.send(Message::Flush(done)).is_ok() {
            let _ = timeout(FLUSH, flushed).await;
        }
    }
}

/// The link, to be run.
#[derive(Debug)]
pub(crate) struct HostLink {
    events: mpsc::UnboundedReceiver<Message>,
    facts: Facts,
}

/// What the host says in the hello, or why guest and host cannot work together.
pub(crate) type Hello = Result<HostHello, String>;

/// How a conversation with a host ended.
#[derive(Debug)]
enum Ended {
    /// The host closed the stream.
    Closed,
    /// Guest and host are not of one version.
    Refused,
}

impl HostLink {
    /// A link, and where to report events.
    pub(crate) fn new() -> (Events, HostLink) {
        let (sender, events) = mpsc::unbounded_channel();
        let link = HostLink {
            events,
            facts: Facts::default(),
        };
        (Events(sender), link)
    }

    /// Calls the host by `connect` for ever, and hands every hello to `on_hello`.
    pub(crate) async fn run<S, F>(mut self, connect: impl Fn() -> F, on_hello: impl Fn(Hello))
    where
        S: Stream,
        F: Future<Output = io::Result<S>>,
    {
        let (mut delay, longest) = RETRY;
        let mut complained: Option<Instant> = None;
        loop {
            let ended = match connect().await {
                Ok(stream) => self.converse(stream, &on_hello).await,
                Err(e) => Err(anyhow::Error::new(e).context("cannot call the host")),
            };
            match ended {
                Ok(Ended::Closed) => {
                    notice!("the host has closed its connection; the machine runs on");
                    (delay, complained) = (RETRY.0, Some(Instant::now()));
                }
                // The reason has been said, and will be the same again.
                Ok(Ended::Refused) => delay = longest,
                Err(e) if complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) => {
                    warning!("{e:#}; trying again");
                    complained = Some(Instant::now());
                }
                Err(_) => {}
            }
            self.wait(delay).await;
            delay = (delay * 2).min(longest);
        }
    }

    /// Waits, while events are kept for the next host.
    async fn wait(&mut self, delay: Duration) {
        let over = sleep(delay);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                Some(message) = self.events.recv() => match message {
                    Message::Event(event) => self.facts.add(&event),
                    // There is nobody to wait for.
                    Message::Flush(done) => drop(done.send(())),
                },
            }
        }
    }

    /// Says hello and reports events until the host closes.
    async fn converse(
        &mut self,
        mut stream: impl Stream,
        on_hello: &impl Fn(Hello),
    ) -> anyhow::Result<Ended> {
        let hello = GuestHello {
            protocol: PROTOCOL_VERSION,
            init_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: status::kernel_release(),
            boot_ms: u64::try_from(clock::uptime().as_millis()).unwrap_or(u64::MAX),
        };
        let exchanged = timeout(HELLO, async {
            frame::write_async(&mut stream, &hello).await?;
            frame::read_async::<serde_json::Value>(&mut stream).await
        });
        let answer = exchanged
            .await
            .context("the host took the call and did not say hello")?
            .context("the host's hello did not come")?;
        match understand(answer) {
            Ok(hello) => on_hello(Ok(hello)),
            Err(message) => {
                error!("{message}");
                let event = GuestEvent::Fatal {
                    message: message.clone(),
                };
                frame::write_async(&mut stream, &event).await?;
                drain(&stream).await;
                on_hello(Err(message));
                return Ok(Ended::Refused);
            }
        }
        for fact in &self.facts.0 {
            frame::write_async(&mut stream, fact).await?;
        }
        let mut byte = [0];
        loop {
            tokio::select! {
                // The host says nothing after its hello; an end is the only news.
                read = stream.read(&mut byte) => match read.context("the connection to the host failed")? {
                    0 => return Ok(Ended::Closed),
                    _ => continue,
                },
                Some(message) = self.events.recv() => match message {
                    Message::Event(event) => {
                        self.facts.add(&event);
                        frame::write_async(&mut stream, &event).await?;
                    }
                    Message::Flush(done) => {
                        drain(&stream).await;
                        // Whoever waited may have given up.
                        let _ = done.send(());
                    }
                },
            }
        }
    }
}

/// Reads the host's hello. The version comes first: a host of another version may say all the rest differently.
fn understand(answer: serde_json::Value) -> Hello {
    let version = answer.get("protocol").and_then(serde_json::Value::as_u64);
    if version != Some(PROTOCOL_VERSION.into()) {
        let theirs = version.map_or_else(
            || "an unknown version".to_owned(),
            |version| format!("version {version}"),
        );
        return Err(format!(
            "host and guest are not of one version: the host speaks {theirs} of the protocol, the guest image version \
             {PROTOCOL_VERSION}; install the guest image that belongs to this berth"
        ));
    }
    serde_json::from_value(answer).map_err(|e| {
        format!(
            "the host's hello cannot be understood ({e}); install the guest image that belongs to this berth"
        )
    })
}

/// Waits until everything written has been taken by the other side, for a while at most.
async fn drain(stream: &impl AsFd) {
    let deadline = Instant::now() + FLUSH;
    while Instant::now() < deadline {
        match unsent(stream) {
            Ok(0) => return,
            // No event tells when a socket has been emptied.
            Ok(_) => sleep(Duration::from_millis(1)).await,
            // A kernel that cannot tell for this kind of socket (vsock: before 6.12): time enough for a quick host.
            Err(_) => return sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Bytes written to a stream socket that the other side has not taken yet (`SIOCOUTQ`).
fn unsent(stream: &impl AsFd) -> io::Result<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the request (SIOCOUTQ, the same number as TIOCOUTQ) writes one int, which
    // lives until the call returns.
    let done = unsafe { libc::ioctl(stream.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if done == 0 {
        Ok(bytes)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The events that still hold, in order: what a daemon that comes later must be told.
#[derive(Debug, Default)]
struct Facts(Vec<GuestEvent>);

impl Facts {
    fn add(&mut self, event: &GuestEvent) {
        if let GuestEvent::Warning { .. } = event {
            let warnings = self.0.iter().filter(|e| is_warning(e)).count();
            if warnings >= MAX_WARNINGS
                && let Some(oldest) = self.0.iter().position(is_warning)
            {
                self.0.remove(oldest);
            }
        } else {
            self.0.retain(|known| !replaces(event, known));
        }
        self.0.push(event.clone());
    }
}

fn is_warning(event: &GuestEvent) -> bool {
    matches!(event, GuestEvent::Warning { .. })
}

/// Whether `new` makes `old` past. dockerd's events follow each other; of the others each stands for itself.
fn replaces(new: &GuestEvent, old: &GuestEvent) -> bool {
    let of_docker = |event: &GuestEvent| {
        matches!(
            event,
            GuestEvent::DockerStarting | GuestEvent::DockerReady { .. } | GuestEvent::DockerExited { .. }
        )
    };
    match (new, old) {
        (GuestEvent::ShareFailed { id: new, .. }, GuestEvent::ShareFailed { id: old, .. }) => new == old,
        _ => std::mem::discriminant(new) == std::mem::discriminant(old) || of_docker(new) && of_docker(old),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use protocol::boot::MachineConfig;
    use tokio::net::UnixStream;
    use tokio::sync::Mutex;

    use super::*;

    fn hello(protocol: u32) -> HostHello {
        HostHello {
            protocol,
            unix_time_ns: 1,
            config: MachineConfig {
                hostname: "berth".into(),
                network: None,
                docker: serde_json::Map::new(),
                shares: Vec::new(),
                host_files: std::collections::BTreeMap::new(),
                ca_certificates: Vec::new(),
            },
        }
    }

    /// A host that can be called again and again, and the events to send.
    struct Host {
        calls: mpsc::UnboundedReceiver<UnixStream>,
        hellos: mpsc::UnboundedReceiver<Hello>,
        events: Events,
    }

    fn linked() -> Host {
        let (events, link) = HostLink::new();
        let (call, calls) = mpsc::unbounded_channel();
        let (said, hellos) = mpsc::unbounded_channel();
        tokio::spawn(link.run(
            move || {
                let call = call.clone();
                async move {
                    let (near, far) = UnixStream::pair()?;
                    call.send(far).map_err(io::Error::other)?;
                    Ok(near)
                }
            },
            move |hello| said.send(hello).unwrap(),
        ));
        Host {
            calls,
            hellos,
            events,
        }
    }

    impl Host {
        async fn greet(&mut self) -> UnixStream {
            let mut stream = self.calls.recv().await.unwrap();
            let guest: GuestHello = frame::read_async(&mut stream).await.unwrap();
            assert_eq!(guest.protocol, PROTOCOL_VERSION);
            assert!(guest.boot_ms > 0 && !guest.kernel.is_empty());
            frame::write_async(&mut stream, &hello(PROTOCOL_VERSION))
                .await
                .unwrap();
            assert_eq!(self.hellos.recv().await.unwrap(), Ok(hello(PROTOCOL_VERSION)));
            stream
        }
    }

    async fn event(stream: &mut UnixStream) -> GuestEvent {
        frame::read_async(stream).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_takes_over_is_told_what_holds() {
        let mut host = linked();
        let mut first = host.greet().await;
        host.events.send(GuestEvent::DataDiskReady { formatted: true });
        host.events.send(GuestEvent::DockerStarting);
        assert_eq!(
            event(&mut first).await,
            GuestEvent::DataDiskReady { formatted: true }
        );
        assert_eq!(event(&mut first).await, GuestEvent::DockerStarting);
        drop(first);
        let ready = GuestEvent::DockerReady { version: "1".into() };
        host.events.send(ready.clone());
        let mut second = host.greet().await;
        assert_eq!(
            event(&mut second).await,
            GuestEvent::DataDiskReady { formatted: true }
        );
        assert_eq!(event(&mut second).await, ready);
        host.events.send(GuestEvent::ShuttingDown);
        assert_eq!(event(&mut second).await, GuestEvent::ShuttingDown);
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_of_another_version_gets_a_fatal_event() {
        let mut host = linked();
        let mut stream = host.calls.recv().await.unwrap();
        let _: GuestHello = frame::read_async(&mut stream).await.unwrap();
        let other = serde_json::json!({"protocol": 999, "config": "quite different"});
        frame::write_async(&mut stream, &other).await.unwrap();
        let GuestEvent::Fatal { message } = event(&mut stream).await else {
            panic!("not fatal")
        };
        assert!(message.contains("999"), "{message}");
        assert_eq!(host.hellos.recv().await.unwrap(), Err(message));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_ends_with_and_without_a_host() {
        let mut host = linked();
        let stream = host.greet().await;
        let stream = Arc::new(Mutex::new(stream));
        host.events.send(GuestEvent::PoweringOff);
        let reader = tokio::spawn({
            let stream = stream.clone();
            async move { event(&mut *stream.lock().await).await }
        });
        host.events.flush().await;
        assert_eq!(reader.await.unwrap(), GuestEvent::PoweringOff);
        drop(stream);
        host.events.flush().await;
    }

    #[test]
    fn a_malformed_hello_is_refused_in_words() {
        let refused = understand(serde_json::json!({"protocol": PROTOCOL_VERSION, "config": 3})).unwrap_err();
        assert!(refused.contains("cannot be understood"), "{refused}");
        assert!(
            understand(serde_json::json!(null))
                .unwrap_err()
                .contains("unknown version")
        );
    }

    #[test]
    fn every_share_that_failed_is_a_fact() {
        let mut facts = Facts::default();
        for id in ["s0", "s1", "s0"] {
            facts.add(&GuestEvent::ShareFailed {
                id: id.into(),
                message: String::new(),
            });
        }
        assert_eq!(facts.0.len(), 2);
    }

    #[test]
    fn facts_stay_few() {
        let mut facts = Facts::default();
        for number in 0..100 {
            facts.add(&GuestEvent::DockerStarting);
            facts.add(&GuestEvent::Warning {
                message: number.to_string(),
            });
        }
        assert_eq!(facts.0.len(), 1 + MAX_WARNINGS);
        assert_eq!(
            facts.0.last(),
            Some(&GuestEvent::Warning { message: "99".into() })
        );
    }
}
