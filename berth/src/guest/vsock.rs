//! Dialling the guest over the host's end of its vsock device.

use std::time::Duration;

use futures_util::FutureExt;
use vmm::virtio::vsock::VsockHost;

use super::{DialError, GuestDial};

/// How long a guest may take to answer a connection request. Its kernel does that without any process's help.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// A dialler over `host`.
pub fn dial(host: VsockHost) -> GuestDial {
    GuestDial::new(move |port| {
        let answer = host.connect(port);
        async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, answer).await {
                Ok(Ok(Ok(stream))) => Ok(stream),
                Ok(Ok(Err(error))) => {
                    tracing::debug!(port, %error, "the guest refused a connection");
                    Err(DialError::Refused(port))
                }
                Ok(Err(_)) | Err(_) => Err(DialError::NoGuest(port)),
            }
        }
        .boxed()
    })
}
