//! The conversation with the guest about its published ports, kept up while the machine runs.

use std::sync::Arc;
use std::time::Duration;

use protocol::forward::{ToGuest, ToHost};
use protocol::frame::{self, FrameError};
use protocol::ports;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::PublishedPorts;
use crate::exit::chain;
use crate::guest::{DialError, GuestDial};
use crate::machine::state::State;

/// How long to wait before the guest is called again, and how long at most when that fails again and again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Messages of the guest that wait. A guest that sends faster waits.
const BACKLOG: usize = 64;

/// Keeps the ports of a guest published. Dropping it frees them.
#[derive(Debug)]
pub struct PortsKeeper(JoinHandle<()>);

impl Drop for PortsKeeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug, thiserror::Error)]
enum TalkError {
    #[error("the guest could not be reached")]
    Dial(#[from] DialError),
    #[error("the conversation broke off")]
    Frame(#[from] FrameError),
}

/// Talks to the guest on `dial` about its ports, from now on and again whenever that breaks off, until the keeper is dropped.
pub fn keep(ports: Arc<PublishedPorts>, dial: GuestDial, mut states: watch::Receiver<State>) -> PortsKeeper {
    PortsKeeper(tokio::spawn(async move {
        // Also when this task is aborted.
        let all = CloseOnDrop(ports);
        let mut pause = FIRST_PAUSE;
        loop {
            // A guest that stands still takes no connection. That the sender is gone is not for this to deal with.
            let _ = states.wait_for(|state| *state != State::Paused).await;
            let mut talked = false;
            let result = talk(&all.0, &dial, &mut talked).await;
            all.0.close_all().await;
            match result {
                Ok(()) => tracing::warn!("the guest ended the conversation about published ports"),
                Err(error) => tracing::warn!("published ports: {}", chain(&error.into())),
            }
            if talked {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }))
}

struct CloseOnDrop(Arc<PublishedPorts>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        // Dropping the listeners' senders stops them.
        self.0.ports().clear();
        self.0.changes.send_modify(|count| *count += 1);
    }
}

/// One conversation, to its end.
async fn talk(ports: &PublishedPorts, dial: &GuestDial, talked: &mut bool) -> Result<(), TalkError> {
    let stream = dial.connect(ports::PUBLISH).await?;
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let (heard, mut messages) = mpsc::channel(BACKLOG);
    // Reading a frame must not be given up half-way.
    let reading = read(&mut from_guest, heard);
    let answering = async {
        let mut host_network = ports.host_network.subscribe();
        host_network.mark_changed();
        loop {
            let message = tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => {
                        *talked = true;
                        answer(ports, dial, message).await
                    }
                    None => return Ok(()),
                },
                // The sender is in `ports`.
                _ = host_network.changed() => ToGuest::HostNetwork { used: *host_network.borrow_and_update() },
            };
            frame::write_async(&mut to_guest, &message).await?;
        }
    };
    tokio::select! {
        result = reading => match result {
            Err(FrameError::Closed) => Ok(()),
            result => Ok(result?),
        },
        result = answering => result,
    }
}

async fn read(
    from_guest: &mut tokio::io::ReadHalf<UnixStream>,
    heard: mpsc::Sender<ToHost>,
) -> Result<(), FrameError> {
    loop {
        let message = frame::read_async(from_guest).await?;
        if heard.send(message).await.is_err() {
            return Ok(());
        }
    }
}

async fn answer(ports: &PublishedPorts, dial: &GuestDial, message: ToHost) -> ToGuest {
    let (id, refused) = match message {
        ToHost::Listen { id, port } => (id, ports.listen(id, port, dial).err()),
        ToHost::Close { id } => {
            ports.close(id).await;
            (id, None)
        }
    };
    if let Some(refused) = &refused {
        tracing::info!("a port was not published: {refused}");
    }
    ToGuest::Answer { id, refused }
}
