//! Requests to guest-init on its control port, each with a bound on how long the guest may take.

use std::time::Duration;

use protocol::control::{GuestStatus, Reply, Request};
use protocol::frame::{self, FrameError};
use protocol::ports;
use protocol::shares::ShareMount;

use crate::guest::{DialError, GuestDial};

/// Why a request was not answered as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// guest-init could not be reached.
    #[error("guest-init could not be asked to {0}")]
    Dial(&'static str, #[source] DialError),
    /// The conversation broke off.
    #[error("guest-init did not answer the request to {0}")]
    Frame(&'static str, #[source] FrameError),
    /// It took too long.
    #[error("guest-init did not answer the request to {0} within {1:?}; the guest hangs or is overloaded")]
    Timeout(&'static str, Duration),
    /// It said no.
    #[error("guest-init could not {0}: {1}")]
    Refused(&'static str, String),
    /// It said something else.
    #[error("guest-init gave a wrong answer to the request to {0}")]
    Unexpected(&'static str),
}

/// Asks guest-init. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    dial: GuestDial,
}

impl Control {
    /// Asks over `dial`.
    pub fn new(dial: GuestDial) -> Control {
        Control { dial }
    }

    /// How is the guest?
    pub async fn status(&self, timeout: Duration) -> Result<GuestStatus, ControlError> {
        match self.ask("tell its status", Request::Status, timeout).await? {
            Reply::Status(status) => Ok(*status),
            _ => Err(ControlError::Unexpected("tell its status")),
        }
    }

    /// Sets the guest's clock to the host's; how far it was off, host minus guest, in nanoseconds.
    pub async fn set_clock(&self, timeout: Duration) -> Result<i64, ControlError> {
        let request = Request::SetClock {
            unix_time_ns: unix_time_ns(),
        };
        match self.ask("set its clock", request, timeout).await? {
            Reply::Clock { offset_ns } => Ok(offset_ns),
            _ => Err(ControlError::Unexpected("set its clock")),
        }
    }

    /// Begins an orderly power-off.
    pub async fn shutdown(&self, grace: Duration, timeout: Duration) -> Result<(), ControlError> {
        let request = Request::Shutdown {
            grace_seconds: u32::try_from(grace.as_secs()).unwrap_or(u32::MAX),
        };
        self.do_it("shut down", request, timeout).await
    }

    /// Has this many CPUs online.
    pub async fn set_cpus(&self, online: u32, timeout: Duration) -> Result<(), ControlError> {
        self.do_it("change its CPUs", Request::SetCpus { online }, timeout)
            .await
    }

    /// Mounts a share that is in the shared file system by now.
    pub async fn mount_share(&self, share: ShareMount, timeout: Duration) -> Result<(), ControlError> {
        self.do_it("mount a share", Request::MountShare(share), timeout)
            .await
    }

    /// Unmounts a share; one that is not mounted is no error.
    pub async fn unmount_share(&self, id: &str, timeout: Duration) -> Result<(), ControlError> {
        let request = Request::UnmountShare { id: id.to_owned() };
        self.do_it("unmount a share", request, timeout).await
    }

    /// Gives containers that are started from now on these search domains.
    pub async fn set_search(&self, domains: Vec<String>, timeout: Duration) -> Result<(), ControlError> {
        let request = Request::SetSearch { domains };
        self.do_it("set its search domains", request, timeout).await
    }

    async fn do_it(
        &self,
        what: &'static str,
        request: Request,
        timeout: Duration,
    ) -> Result<(), ControlError> {
        match self.ask(what, request, timeout).await? {
            Reply::Done => Ok(()),
            _ => Err(ControlError::Unexpected(what)),
        }
    }

    async fn ask(
        &self,
        what: &'static str,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, ControlError> {
        let conversation = async {
            let mut stream = self
                .dial
                .connect(ports::CONTROL)
                .await
                .map_err(|error| ControlError::Dial(what, error))?;
            frame::write_async(&mut stream, &request)
                .await
                .map_err(|error| ControlError::Frame(what, error))?;
            frame::read_async(&mut stream)
                .await
                .map_err(|error| ControlError::Frame(what, error))
        };
        match tokio::time::timeout(timeout, conversation).await {
            Err(_) => Err(ControlError::Timeout(what, timeout)),
            Ok(Ok(Reply::Error { message })) => Err(ControlError::Refused(what, message)),
            Ok(answer) => answer,
        }
    }
}

/// The host's time in nanoseconds since the Unix epoch; 0 for a host whose clock stands before it.
pub fn unix_time_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// A guest that answers the first request with `answer`, or never when none.
    fn guest(answer: Option<Reply>) -> GuestDial {
        GuestDial::new(move |port| {
            let answer = answer.clone();
            async move {
                assert_eq!(port, ports::CONTROL);
                let (host, guest) = std::os::unix::net::UnixStream::pair()?;
                guest.set_nonblocking(true)?;
                let mut guest = tokio::net::UnixStream::from_std(guest)?;
                tokio::spawn(async move {
                    let _: Request = frame::read_async(&mut guest).await.unwrap();
                    match answer {
                        Some(answer) => frame::write_async(&mut guest, &answer).await.unwrap(),
                        None => std::future::pending().await,
                    }
                });
                Ok(host)
            }
            .boxed()
        })
    }

    #[tokio::test]
    async fn answers_and_refusals_are_told_apart() {
        let long = Duration::from_secs(60);
        let control = Control::new(guest(Some(Reply::Clock { offset_ns: -3 })));
        assert_eq!(control.set_clock(long).await.unwrap(), -3);
        assert!(matches!(
            control.status(long).await,
            Err(ControlError::Unexpected("tell its status"))
        ));
        let control = Control::new(guest(Some(Reply::Error {
            message: "no clock".into(),
        })));
        assert_eq!(
            control.set_clock(long).await.unwrap_err().to_string(),
            "guest-init could not set its clock: no clock"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_hangs_is_given_up_on() {
        let control = Control::new(guest(None));
        assert!(matches!(
            control.shutdown(Duration::ZERO, Duration::from_secs(5)).await,
            Err(ControlError::Timeout("shut down", _))
        ));
    }
}
