//! Entropy device (virtio 1.2, 5.4): random bytes from the host's getrandom(2).

mod worker;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use self::worker::Worker;
use super::{ActivateError, Activation, VirtioDevice, serve::RunningWorker};

const QUEUE_SIZE: u16 = 64;
const REQUEST_QUEUE: u16 = 0;

/// The entropy device.
#[derive(Default)]
pub struct Rng {
    running: Option<RunningWorker>,
}

impl Rng {
    /// Makes the device.
    pub fn new() -> Rng {
        Rng::default()
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queue = activation.require_queue(REQUEST_QUEUE)?;
        let worker = Box::new(Worker::new(queue));
        self.running = Some(RunningWorker::start(activation.event_loop, worker)?);
        Ok(())
    }

    fn deactivate(&mut self) {
        self.running = None;
    }
}

#[cfg(test)]
mod tests;
