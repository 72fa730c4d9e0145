//! virtio-vsock (virtio 1.2, 5.10): stream sockets between host programs and the guest, in user space.
//!
//! The host's end of each connection is a socketpair: [`VsockHost::connect`] and [`VsockHost::listen`] hand out one end, the
//! worker moves bytes between the other end and guest memory, without copies of its own where nobody has to wait. See
//! `docs/vsock.md` for the state machine, the limits and what is guaranteed.

mod buffers;
mod connection;
mod credit;
mod host;
mod host_socket;
mod muxer;
mod packet;
mod socket;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{Arc, mpsc},
};

pub use self::host::{ConnectError, ListenError, VsockHost, VsockStats};
use self::{
    host::{Runtime, Shared},
    muxer::Limits,
    worker::{Command, Queues, Worker},
};
use super::{ActivateError, Activation, VirtioDevice, device::read_config_bytes};
use crate::event_loop::{EventLoop, EventLoopError};

const DEVICE_ID: u32 = 19;
/// VIRTIO_VSOCK_F_STREAM.
const FEATURE_STREAM: u64 = 1;
/// rx, tx, event. Linux fills the rx queue with 4 KiB buffers.
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];

/// Why the device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Its thread could not be started.
    #[error("the vsock device's thread could not be started")]
    EventLoop(#[from] EventLoopError),
    /// A descriptor it needs could not be had.
    #[error("a descriptor for the vsock device could not be made")]
    Io(#[from] io::Error),
}

/// Makes the device and the host's end of it. `guest_cid` is the guest's context id (3 or more).
pub fn vsock(guest_cid: u64) -> Result<(Vsock, VsockHost), VsockError> {
    with_limits(guest_cid, Limits::default())
}

fn with_limits(guest_cid: u64, limits: Limits) -> Result<(Vsock, VsockHost), VsockError> {
    let shared = Arc::new(Shared::new()?);
    let worker = Worker::new(guest_cid, limits, Arc::clone(&shared))?;
    let event_loop = EventLoop::spawn("vsock")?;
    event_loop.handle().add(Box::new(worker))?;
    let runtime = Arc::new(Runtime::new(shared, event_loop));
    let device = Vsock {
        config: guest_cid.to_le_bytes(),
        runtime: Arc::clone(&runtime),
        active: false,
    };
    Ok((device, VsockHost::new(runtime)))
}

/// The device.
pub struct Vsock {
    config: [u8; 8],
    runtime: Arc<Runtime>,
    active: bool,
}

impl Vsock {
    /// Ends all connections on both sides while the guest keeps running, and tells it so
    /// (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET): for when the host cannot know what the guest's connections were, as after a
    /// snapshot was restored. A driver that is reset or starts forgets its connections by itself.
    pub fn reset_transport(&self) {
        let (done, receiver) = mpsc::sync_channel(1);
        self.runtime.shared.command(Command::ResetTransport { done });
        // The worker is gone only when the process is coming down.
        let _ = receiver.recv();
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queues = Box::new(Queues {
            rx: activation.require_queue(0)?,
            tx: activation.require_queue(1)?,
            event: activation.queues.get_mut(2).and_then(Option::take),
        });
        let (done, receiver) = mpsc::sync_channel(1);
        self.runtime.shared.command(Command::Activate { queues, done });
        receiver
            .recv()
            .map_err(|_| io::Error::other("the vsock worker has ended"))??;
        self.active = true;
        Ok(())
    }

    fn deactivate(&mut self) {
        if !std::mem::take(&mut self.active) {
            return;
        }
        let (done, receiver) = mpsc::sync_channel(1);
        self.runtime.shared.command(Command::Deactivate { done });
        // Without a worker there is nothing that could touch the queues.
        let _ = receiver.recv();
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.deactivate();
    }
}
