//! The CONTROL service: framed requests, each answered in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use protocol::control::{Reply, Request};
use protocol::frame::{self, FrameError};

use super::Stream;
use crate::docker::Docker;
use crate::resolv_conf::ResolvConf;
use crate::shares::Shares;
use crate::shutdown::Shutdown;
use crate::{clock, cpus, status};

/// What requests act on.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// dockerd.
    pub(crate) docker: Arc<Docker>,
    /// Whether the data disk is mounted.
    pub(crate) data_disk_mounted: Arc<AtomicBool>,
    /// The host's shares.
    pub(crate) shares: Arc<Shares>,
    /// What containers resolve names with.
    pub(crate) resolv_conf: Arc<ResolvConf>,
    /// The way to end the machine.
    pub(crate) shutdown: Shutdown,
}

/// Serves one connection until the host closes it.
pub(crate) async fn serve(mut stream: impl Stream, context: Context) -> Result<(), FrameError> {
    loop {
        let request = match frame::read_async::<Request>(&mut stream).await {
            Ok(request) => request,
            Err(FrameError::Closed) => return Ok(()),
            // The frame was read whole, so the next one is in its place.
            Err(e @ FrameError::Malformed(_)) => {
                let message =
                    "the guest does not understand the request; are host and guest of one version?".into();
                frame::write_async(&mut stream, &Reply::Error { message }).await?;
                crate::console::warning!("{e}");
                continue;
            }
            Err(e) => return Err(e),
        };
        let shutdown = match request {
            Request::Shutdown { grace_seconds } => Some(Duration::from_secs(grace_seconds.into())),
            _ => None,
        };
        frame::write_async(&mut stream, &answer(request, &context).await).await?;
        // After the answer, which must get out before the machine ends.
        if let Some(grace) = shutdown {
            context.shutdown.request("the host asked for it", grace);
        }
    }
}

async fn answer(request: Request, context: &Context) -> Reply {
    match request {
        Request::Ping | Request::Shutdown { .. } => Reply::Done,
        Request::Status => {
            let mounted = context.data_disk_mounted.load(Ordering::Relaxed);
            match status::collect(context.docker.status(), mounted) {
                Ok(status) => Reply::Status(Box::new(status)),
                Err(e) => Reply::Error {
                    message: format!("{e:#}"),
                },
            }
        }
        Request::SetClock { unix_time_ns } => match clock::set(unix_time_ns) {
            Ok(offset_ns) => Reply::Clock { offset_ns },
            Err(e) => Reply::Error {
                message: format!("cannot set the guest's clock: {e}"),
            },
        },
        Request::MountShare(share) => done(context.shares.mount(share).await),
        Request::SetSearch { domains } => done(context.resolv_conf.set_search(domains)),
        Request::UnmountShare { id } => done(context.shares.unmount(id).await),
        Request::SetCpus { online } => done(cpus::set_online(online).await),
    }
}

fn done(result: anyhow::Result<()>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(e) => Reply::Error {
            message: format!("{e:#}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use protocol::control::DockerState;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::root::Root;
    use crate::shutdown::{Cause, ShutdownRequests};

    fn served() -> (UnixStream, ShutdownRequests) {
        let (host, guest) = UnixStream::pair().unwrap();
        let (shutdown, requests) = Shutdown::new();
        let context = Context {
            docker: Docker::new(),
            data_disk_mounted: Arc::default(),
            shares: Shares::new(Root::default()),
            resolv_conf: ResolvConf::new(std::path::Path::new("/nowhere")),
            shutdown,
        };
        tokio::spawn(serve(guest, context));
        (host, requests)
    }

    async fn ask(host: &mut UnixStream, request: &Request) -> Reply {
        frame::write_async(host, request).await.unwrap();
        frame::read_async(host).await.unwrap()
    }

    #[tokio::test]
    async fn requests_on_one_connection_are_answered_in_order() {
        let (mut host, _requests) = served();
        assert_eq!(ask(&mut host, &Request::Ping).await, Reply::Done);
        let Reply::Status(status) = ask(&mut host, &Request::Status).await else {
            panic!("no status")
        };
        assert_eq!(status.docker.state, DockerState::Waiting);
        assert_eq!(status.data_disk, None);
        // Right to the nanosecond where it stands: within the noise nothing is set.
        let unix_time_ns = clock::unix_time_ns();
        let Reply::Clock { .. } = ask(&mut host, &Request::SetClock { unix_time_ns }).await else {
            panic!("no clock")
        };
    }

    #[tokio::test]
    async fn a_request_nobody_knows_gets_an_error_and_the_next_one_its_answer() {
        let (mut host, _requests) = served();
        let unknown = frame::encode(&serde_json::json!({"request": "dance"})).unwrap();
        host.write_all(&unknown).await.unwrap();
        let reply: Reply = frame::read_async(&mut host).await.unwrap();
        assert!(matches!(reply, Reply::Error { .. }));
        assert_eq!(ask(&mut host, &Request::Ping).await, Reply::Done);
    }

    #[tokio::test]
    async fn a_share_that_cannot_be_mounted_is_an_answer_and_one_that_is_not_there_is_gone() {
        let (mut host, _requests) = served();
        let share = protocol::shares::ShareMount {
            id: "../x".into(),
            target: "/x".into(),
            read_only: false,
        };
        let Reply::Error { message } = ask(&mut host, &Request::MountShare(share)).await else {
            panic!("no error")
        };
        assert!(message.contains("../x"), "{message}");
        let request = Request::UnmountShare { id: "s1".into() };
        assert_eq!(ask(&mut host, &request).await, Reply::Done);
        // Before the machine is set up, it is kept and written later.
        let request = Request::SetSearch { domains: vec![] };
        assert_eq!(ask(&mut host, &request).await, Reply::Done);
    }

    #[tokio::test]
    async fn a_number_of_cpus_that_cannot_be_is_an_answer() {
        let (mut host, _requests) = served();
        let Reply::Error { message } = ask(&mut host, &Request::SetCpus { online: 0 }).await else {
            panic!("no error")
        };
        assert!(message.contains("0 CPUs"), "{message}");
    }

    #[tokio::test]
    async fn a_shutdown_is_answered_and_handed_on() {
        let (mut host, mut requests) = served();
        let request = Request::Shutdown { grace_seconds: 7 };
        assert_eq!(ask(&mut host, &request).await, Reply::Done);
        let Cause { grace, .. } = requests.next().await;
        assert_eq!(grace, Duration::from_secs(7));
    }
}
