//! What a device is to a transport.

use std::sync::Arc;

use super::{Interrupt, VirtQueue};
use crate::event_loop::{EventLoopError, EventLoopHandle};

/// Everything a device gets when the driver has set DRIVER_OK (virtio 1.2, 3.1.1).
pub struct Activation {
    /// The features both sides agreed on.
    pub features: u64,
    /// The queues that the driver made ready, in order. A queue the driver left out is none.
    pub queues: Vec<Option<VirtQueue>>,
    /// For interrupts that belong to no queue.
    pub interrupt: Arc<dyn Interrupt>,
    /// Where the device's workers run. A device that wants threads of its own may start them.
    pub event_loop: EventLoopHandle,
}

impl Activation {
    /// Takes queue `index`, which this device cannot work without.
    pub fn require_queue(&mut self, index: u16) -> Result<VirtQueue, ActivateError> {
        self.queues
            .get_mut(usize::from(index))
            .and_then(Option::take)
            .ok_or(ActivateError::MissingQueue(index))
    }
}

/// Why a device could not be activated. The transport answers with DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver set DRIVER_OK without a queue the device needs.
    #[error("the driver did not set up queue {0}")]
    MissingQueue(u16),
    /// The event loop is gone.
    #[error("the device's worker could not be started")]
    EventLoop(#[from] EventLoopError),
    /// Something the device needs from the host could not be had.
    #[error("the device could not get what it needs from the host")]
    Io(#[from] std::io::Error),
}

/// A virtio device, whatever the transport.
///
/// Lifecycle: made once; then any number of rounds of `activate` and `deactivate`, with `suspend` and `activate` any number
/// of times in between. `read_config` and `write_config` may come at any time.
pub trait VirtioDevice: Send {
    /// The device id (virtio 1.2, section 5).
    fn device_id(&self) -> u32;

    /// The largest size of each queue, a power of two each; as many as the device has queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// The features the device offers. The transport adds none but VIRTIO_F_VERSION_1, which it requires, and
    /// VIRTIO_RING_F_EVENT_IDX and VIRTIO_RING_F_INDIRECT_DESC, which [`VirtQueue`] takes care of.
    fn features(&self) -> u64;

    /// Reads the device's configuration space from `offset`. Bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the configuration space. Writes to what is read-only or past the end are ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts work on the queues. Called once until `deactivate`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops all work: when this returns, no queue and no guest memory is touched any more, and the device is as new.
    /// Called for a reset by the driver and before the machine ends; a no-op when not active.
    fn deactivate(&mut self);

    /// Stops all work as `deactivate` does, but the driver may go on where it was: what it relies on beyond its queues is
    /// kept for the next `activate`, until `deactivate`. Called where a stop for a pause and a reset look alike (a
    /// vhost-user front end does not say which). Devices whose drivers rely on nothing need not tell the two apart.
    fn suspend(&mut self) {
        self.deactivate();
    }
}

/// Copies the part of `config` from `offset` into `data`, zeroes past its end: the usual [`VirtioDevice::read_config`].
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(rest) = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..))
    else {
        return;
    };
    let length = rest.len().min(data.len());
    data[..length].copy_from_slice(&rest[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_reads_past_the_end_are_zero() {
        let mut data = [9; 4];
        read_config_bytes(&[1, 2, 3], 2, &mut data);
        assert_eq!(data, [3, 0, 0, 0]);
        read_config_bytes(&[1, 2, 3], 3, &mut data);
        assert_eq!(data, [0; 4]);
        read_config_bytes(&[1, 2, 3], u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
