//! The device: configuration space, queues, start and stop.
//!
//! Queue 0 is the high-priority one (FORGET, INTERRUPT), which nothing else holds up; the request queues follow. Linux
//! gives each of them to a share of its CPUs. Each has its own threads ([`crate::pool`]).

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use vmm::virtio::{ActivateError, Activation, VirtioDevice, device::read_config_bytes};

use crate::{RequestHandler, confine::Fence, pool::Pool};

/// The most request queues a device may have.
pub const MAX_REQUEST_QUEUES: u16 = 64;
/// The most threads that may be kept for a queue.
pub const MAX_THREADS_PER_QUEUE: u16 = 64;

/// The length of the tag in the configuration space (virtio 1.2, 5.11.4).
const TAG_SIZE: usize = 36;
const CONFIG_SIZE: usize = TAG_SIZE + 4;
/// Requests here are short and quickly done.
const HIGH_PRIORITY_QUEUE_SIZE: u16 = 128;
/// A page takes a descriptor and Linux asks for no more pages in a request than the queue has entries, less a few: room for
/// its largest requests, 256 pages.
const REQUEST_QUEUE_SIZE: u16 = 1024;

/// What a device is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtioFsConfig {
    /// What the guest mounts; at most 36 bytes. Empty where the front end has the tag.
    pub tag: String,
    /// How many request queues, 1 to [`MAX_REQUEST_QUEUES`]: best one for each virtual CPU. A driver may use fewer.
    pub request_queues: u16,
    /// How many requests of a queue can be in the hands of the host at once, 1 to [`MAX_THREADS_PER_QUEUE`]. Requests that
    /// wait for a lock do not count.
    pub threads_per_queue: u16,
}

/// Why a device could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VirtioFsError {
    /// The tag does not fit the configuration space.
    #[error("the tag {0:?} is longer than {TAG_SIZE} bytes")]
    Tag(String),
    /// The number of queues is out of range.
    #[error("a virtio-fs device has 1 to {MAX_REQUEST_QUEUES} request queues, not {0}")]
    Queues(u16),
    /// The number of threads is out of range.
    #[error("a virtio-fs queue has 1 to {MAX_THREADS_PER_QUEUE} threads, not {0}")]
    Threads(u16),
}

/// The threads of a device, which its owner can still reach when the device is somewhere in a machine.
#[derive(Default)]
struct Running {
    /// What they are confined to.
    fence: Option<Arc<Fence>>,
    /// One for each queue; empty while the device is not active.
    pools: Vec<Pool>,
}

/// Confines the threads that handle a device's requests.
#[derive(Clone)]
pub struct Confiner(Arc<Mutex<Running>>);

impl Confiner {
    /// From now on, whenever the device is active, only threads inside `fence` take requests; those that another thread is
    /// handling at this moment are still finished by it. May be called again with more directories or fewer: new threads
    /// are started each time. The calling thread must not be confined itself, since new threads inherit that. On an error
    /// some queues may still have the threads from before.
    pub fn confine(&self, fence: Fence) -> io::Result<()> {
        let mut running = lock(&self.0);
        let fence = Arc::new(fence);
        for pool in &running.pools {
            pool.renew(Some(&fence))?;
        }
        running.fence = Some(fence);
        Ok(())
    }
}

fn lock(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A virtio-fs device. Dropping it stops it and ends the session.
pub struct VirtioFs {
    handler: Arc<dyn RequestHandler>,
    config_space: [u8; CONFIG_SIZE],
    queue_sizes: Vec<u16>,
    threads_per_queue: usize,
    running: Arc<Mutex<Running>>,
    /// Requests have been let through since the last reset.
    in_session: bool,
}

impl VirtioFs {
    /// A device that hands its requests to `handler`.
    pub fn new<H: RequestHandler + 'static>(
        config: VirtioFsConfig,
        handler: Arc<H>,
    ) -> Result<VirtioFs, VirtioFsError> {
        let VirtioFsConfig {
            tag,
            request_queues,
            threads_per_queue,
        } = config;
        if tag.len() > TAG_SIZE {
            return Err(VirtioFsError::Tag(tag));
        }
        if !(1..=MAX_REQUEST_QUEUES).contains(&request_queues) {
            return Err(VirtioFsError::Queues(request_queues));
        }
        if !(1..=MAX_THREADS_PER_QUEUE).contains(&threads_per_queue) {
            return Err(VirtioFsError::Threads(threads_per_queue));
        }
        let mut config_space = [0; CONFIG_SIZE];
        config_space[..tag.len()].copy_from_slice(tag.as_bytes());
        config_space[TAG_SIZE..].copy_from_slice(&u32::from(request_queues).to_le_bytes());
        let mut queue_sizes = vec![HIGH_PRIORITY_QUEUE_SIZE];
        queue_sizes.resize(1 + usize::from(request_queues), REQUEST_QUEUE_SIZE);
        Ok(VirtioFs {
            handler,
            config_space,
            queue_sizes,
            threads_per_queue: threads_per_queue.into(),
            running: Arc::default(),
            in_session: false,
        })
    }

    /// What confines this device's threads. Until it is used, they may do what the thread that activates the device may.
    pub fn confiner(&self) -> Confiner {
        Confiner(Arc::clone(&self.running))
    }

    fn start(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let high_priority = activation.require_queue(0)?;
        // A driver with fewer CPUs than there are queues leaves the last ones out.
        let first = activation.require_queue(1)?;
        let others = activation.queues.into_iter().flatten();
        let sized = std::iter::once((high_priority, 1, true)).chain(
            std::iter::once(first)
                .chain(others)
                .map(|queue| (queue, self.threads_per_queue, false)),
        );
        let mut running = lock(&self.running);
        for (queue, threads, unhurried) in sized {
            let handler = Arc::clone(&self.handler);
            let pool = Pool::start(queue, threads, unhurried, handler, running.fence.as_ref())?;
            running.pools.push(pool);
        }
        Ok(())
    }

    /// Waits for the requests that are being handled, which may be for ever where a file system of the host does not answer:
    /// until they are done they may write to guest memory, so for a driver that goes on nothing less will do. Who ends a machine
    /// does not wait for this without a limit (`docs/lifecycle.md`).
    fn stop(&mut self) {
        let pools = std::mem::take(&mut lock(&self.running).pools);
        for pool in &pools {
            pool.begin_stop();
        }
        // What waits for another process's lock would wait on.
        self.handler.interrupt_all(true);
        drop(pools);
        self.handler.interrupt_all(false);
    }
}

impl VirtioDevice for VirtioFs {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config_space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.stop();
        let started = self.start(activation);
        if started.is_ok() {
            self.in_session = true;
        } else {
            self.stop();
        }
        started
    }

    fn deactivate(&mut self) {
        self.stop();
        if std::mem::take(&mut self.in_session) {
            self.handler.reset();
        }
    }

    /// The session stays. If this was a reset after all, the next driver begins with INIT, which ends it.
    fn suspend(&mut self) {
        self.stop();
    }
}

impl Drop for VirtioFs {
    fn drop(&mut self) {
        self.deactivate();
    }
}

#[cfg(test)]
mod tests;
