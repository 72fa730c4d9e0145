//! Block device (virtio 1.2, 5.2): a raw image file as a disk.
//!
//! Every queue has a thread of its own, so a slow host disk delays the requests of that queue and nothing else. Data
//! moves between the file and guest memory without a copy of ours.
//!
//! What the guest may rely on: a write is acknowledged when the host's kernel has it, which survives the end of this
//! process; a FLUSH is acknowledged when fdatasync(2) has, which survives the end of the host. Once fdatasync has failed,
//! the host may have dropped data it had taken, so no later FLUSH succeeds until the image is opened again.

mod config;
mod health;
mod image;
mod request;
mod worker;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
    },
    virtio_ids::VIRTIO_ID_BLOCK,
};

pub use self::{
    health::{BlockFault, BlockHealth, BlockHealthReport},
    image::ImageError,
};
use self::{image::Image, worker::Worker};
use super::{ActivateError, Activation, VirtioDevice, device::read_config_bytes};
use crate::event_loop::EventLoop;

/// The unit of `sector` in requests and in the configuration space, in bytes (virtio 1.2, 5.2.4).
pub(crate) const SECTOR_SIZE: u64 = 512;
const QUEUE_SIZE: u16 = 128;
/// More queues than this help no guest.
const MAX_QUEUES: u16 = 16;

/// What a block device is made of.
#[derive(Debug, Clone)]
pub struct BlockConfig {
    /// The image: a regular file; its size is the disk's, less an incomplete sector at its end.
    pub path: PathBuf,
    /// Offers the disk read-only and opens the image so.
    pub read_only: bool,
    /// What the guest sees as the disk's serial number; at most 20 bytes count.
    pub serial: String,
    /// How many request queues, 1 to 16; each costs a thread.
    pub queues: u16,
}

/// Why a block device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The image file cannot serve as a disk.
    #[error("disk image {path} cannot be used")]
    Image {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// The number of queues is out of range.
    #[error("a disk has 1 to {MAX_QUEUES} queues, not {0}")]
    Queues(u16),
}

/// What all queues of a disk share.
struct Disk {
    image: Image,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    /// Whether a write is only done when it is durable: the driver does not flush, or asked for it.
    write_through: AtomicBool,
}

/// A disk.
pub struct Block {
    disk: Arc<Disk>,
    queue_sizes: Vec<u16>,
    thread_name: String,
    /// Whether the driver knows FLUSH; only then may writes be cached.
    flush_agreed: bool,
    running: Vec<EventLoop>,
}

impl Block {
    /// Opens the image and takes its lock: exclusive, or shared when read-only. The lock is held while the device lives.
    pub fn open(config: BlockConfig) -> Result<Block, BlockError> {
        if !(1..=MAX_QUEUES).contains(&config.queues) {
            return Err(BlockError::Queues(config.queues));
        }
        let image = Image::open(&config.path, config.read_only).map_err(|source| BlockError::Image {
            path: config.path.clone(),
            source,
        })?;
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        let length = config.serial.len().min(id.len());
        id[..length].copy_from_slice(&config.serial.as_bytes()[..length]);
        Ok(Block {
            disk: Arc::new(Disk {
                image,
                id,
                write_through: AtomicBool::new(false),
            }),
            queue_sizes: vec![QUEUE_SIZE; usize::from(config.queues)],
            thread_name: config.serial,
            flush_agreed: true,
            running: Vec::new(),
        })
    }

    /// A handle that tells how the host's side of the disk is doing.
    pub fn health(&self) -> BlockHealth {
        self.disk.image.health().clone()
    }

    /// The size of the disk in bytes.
    pub fn capacity(&self) -> u64 {
        self.disk.image.sectors() * SECTOR_SIZE
    }

    fn config_space(&self) -> [u8; config::SIZE] {
        config::ConfigSpace {
            sectors: self.disk.image.sectors(),
            // One descriptor each for header and status.
            seg_max: u32::from(QUEUE_SIZE) - 2,
            write_back: !self.disk.write_through.load(Ordering::Acquire),
            queues: self.queue_sizes.len() as u16,
        }
        .to_bytes()
    }
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
        ];
        if self.queue_sizes.len() > 1 {
            bits.push(VIRTIO_BLK_F_MQ);
        }
        if self.disk.image.read_only() {
            bits.push(VIRTIO_BLK_F_RO);
        } else {
            bits.extend([
                VIRTIO_BLK_F_FLUSH,
                VIRTIO_BLK_F_CONFIG_WCE,
                VIRTIO_BLK_F_WRITE_ZEROES,
            ]);
            if self.disk.image.can_discard() {
                bits.push(VIRTIO_BLK_F_DISCARD);
            }
        }
        bits.into_iter().fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config_space(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // The one writable field (5.2.5.2): the cache mode.
        if offset != config::WRITE_BACK_OFFSET || data.len() != 1 || self.disk.image.read_only() {
            return;
        }
        let write_through = data[0] == 0 || !self.flush_agreed;
        let was = self.disk.write_through.swap(write_through, Ordering::AcqRel);
        if write_through && !was {
            // What was acknowledged in the old mode becomes durable with the change of mode. A failure is on record in
            // the image and fails what the driver relies on next.
            let _ = self.disk.image.flush();
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.deactivate();
        self.flush_agreed = activation.features & (1 << VIRTIO_BLK_F_FLUSH) != 0;
        // Without FLUSH the driver has no way to make writes durable (5.2.6.2).
        self.disk
            .write_through
            .fetch_or(!self.flush_agreed, Ordering::AcqRel);

        // Without MQ a driver sets up the first queue only.
        let first = activation.require_queue(0)?;
        let queues = std::iter::once(first).chain(activation.queues.into_iter().flatten());
        for queue in queues {
            let name = format!("blk{}:{}", queue.index(), self.thread_name);
            let event_loop = EventLoop::spawn(&name)?;
            let worker = Worker::new(queue, Arc::clone(&self.disk));
            event_loop.handle().add(Box::new(worker))?;
            self.running.push(event_loop);
        }
        Ok(())
    }

    fn deactivate(&mut self) {
        // Waits for the threads, hence for the requests they are in.
        self.running.clear();
        self.flush_agreed = true;
        self.disk.write_through.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
