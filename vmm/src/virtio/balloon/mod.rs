//! Memory balloon (virtio 1.2, 5.5): gives memory the guest does not use back to the host.
//!
//! Two ways. Free page reporting: the guest reports what lies idle by itself, and takes it back by just using it; this is
//! what keeps an idle machine small. Inflating: the host sets a target and the guest hands over that many pages, for making
//! a running machine smaller; with deflate-on-OOM the guest takes them back before it kills a process for lack of memory.
//!
//! The device only ever drops the contents of pages (madvise); the mapping of guest memory stays whole, so whatever the
//! guest says, the worst it can do is lose its own data.

mod control;
mod release;
mod stats;
mod worker;

use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use self::worker::{Queues, Worker};
pub use self::{control::BalloonControl, stats::BalloonStats};
use super::{ActivateError, Activation, VirtioDevice, device::read_config_bytes, serve::RunningWorker};

/// The unit of balloon sizes, in bytes, whatever the page sizes of guest and host are (5.5).
pub const BALLOON_PAGE: u64 = 4096;

const QUEUE_SIZE: u16 = 128;
const INFLATE_QUEUE: u16 = 0;
const DEFLATE_QUEUE: u16 = 1;
/// Where the specification has reporting_vq, if nothing before it is left out.
const LAST_QUEUE: u16 = 4;

const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

/// Where `actual` lies in the configuration space (5.5.4).
const ACTUAL_OFFSET: u64 = 4;

/// What a balloon does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonConfig {
    /// The guest reports free pages, and they go back to the host at once.
    pub free_page_reporting: bool,
    /// The guest takes pages out of the balloon rather than run out of memory.
    pub deflate_on_oom: bool,
}

/// The balloon device.
pub struct Balloon {
    config: BalloonConfig,
    control: BalloonControl,
    running: Option<RunningWorker>,
}

/// Makes a balloon and its control.
pub fn balloon(config: BalloonConfig) -> io::Result<(Balloon, BalloonControl)> {
    let control = BalloonControl::new()?;
    let balloon = Balloon {
        config,
        control: control.clone(),
        running: None,
    };
    Ok((balloon, control))
}

impl VirtioDevice for Balloon {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; LAST_QUEUE as usize + 1]
    }

    fn features(&self) -> u64 {
        let mut features = F_STATS_VQ;
        if self.config.deflate_on_oom {
            features |= F_DEFLATE_ON_OOM;
        }
        if self.config.free_page_reporting {
            features |= F_REPORTING;
        }
        features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 8];
        space[..4].copy_from_slice(&self.control.target_pages().to_le_bytes());
        space[4..].copy_from_slice(&self.control.actual_pages().to_le_bytes());
        read_config_bytes(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL_OFFSET, Ok(actual)) = (offset, data.try_into()) {
            self.control.set_actual(u32::from_le_bytes(actual));
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let inflate = activation.require_queue(INFLATE_QUEUE)?;
        let deflate = activation.require_queue(DEFLATE_QUEUE)?;
        // Drivers number the optional queues without gaps for those not agreed on; the specification's table does not.
        // Both are understood: a queue that is not where the driver would have it is looked for where the table has it.
        let mut next = DEFLATE_QUEUE + 1;
        let mut stats = None;
        if activation.features & F_STATS_VQ != 0 {
            stats = activation.require_queue(next).ok();
            next += 1;
        }
        let mut reporting = None;
        if activation.features & F_REPORTING != 0 {
            reporting = activation
                .require_queue(next)
                .or_else(|_| activation.require_queue(LAST_QUEUE))
                .ok();
        }
        self.control
            .activated(activation.interrupt.clone(), stats.is_some());
        let queues = Queues {
            inflate,
            deflate,
            stats,
            reporting,
        };
        let worker = Worker::new(queues, self.control.clone());
        self.running = Some(RunningWorker::start(activation.event_loop, Box::new(worker))?);
        Ok(())
    }

    fn deactivate(&mut self) {
        self.running = None;
        self.control.deactivated();
    }
}

#[cfg(test)]
mod tests;
