//! Frames into the guest's receive buffers (virtio 1.2, 5.1.6.4).

use std::collections::VecDeque;

use super::HEADER_SIZE;
use crate::virtio::{
    QueueError, VirtQueue,
    buffers::{ChainBuffers, Writable},
};

/// What became of a frame for the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// It is in the guest's buffers.
    Done,
    /// The guest's buffers are too small for it; it is dropped.
    TooLong,
    /// The guest has not offered enough buffers; the next comes with a kick.
    NoRoom,
}

/// The receive queue.
pub(super) struct Receiver {
    queue: VirtQueue,
    /// Whether a frame may take several chains (MRG_RXBUF).
    mergeable: bool,
    /// Chains taken from the queue for a frame that needs more of them, and their room. They are kept, not given back:
    /// a kick only comes for chains beyond those the device has seen.
    pending: VecDeque<(u16, Writable)>,
    pending_room: usize,
}

impl Receiver {
    pub(super) fn new(queue: VirtQueue, mergeable: bool) -> Receiver {
        Receiver {
            queue,
            mergeable,
            pending: VecDeque::new(),
            pending_room: 0,
        }
    }

    pub(super) fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    /// Interrupts the driver for what was delivered since the last call.
    pub(super) fn notify(&mut self) -> Result<(), QueueError> {
        self.queue.notify()
    }

    /// Puts a frame into the guest's buffers.
    pub(super) fn deliver(&mut self, frame: &[u8]) -> Result<Delivered, QueueError> {
        let needed = HEADER_SIZE + frame.len();
        if !self.collect(needed)? {
            return Ok(Delivered::NoRoom);
        }
        // Without MRG_RXBUF a frame gets one chain; with it, all that the queue can hold.
        let room = if self.mergeable {
            self.pending_room
        } else {
            self.pending.front().map_or(0, |(_, room)| room.len())
        };
        if room < needed {
            return Ok(Delivered::TooLong);
        }

        let mut chains = Vec::new();
        let mut covered = 0;
        while covered < needed {
            let Some((head, room)) = self.pending.pop_front() else {
                break;
            };
            covered += room.len();
            self.pending_room -= room.len();
            chains.push((head, room));
        }
        let mut header = [0; HEADER_SIZE];
        // At most the size of the queue.
        let count = chains.len() as u16;
        header[HEADER_SIZE - 2..].copy_from_slice(&count.to_le_bytes());
        let mut rest = frame;
        let mut used = Vec::with_capacity(chains.len());
        for (position, (head, mut room)) in chains.into_iter().enumerate() {
            let mut written = 0;
            if position == 0 {
                written = room.write(&header);
                if written < HEADER_SIZE {
                    return Err(self.queue.chain_error("it has no room for the packet header"));
                }
            }
            let copied = room.write(rest);
            rest = &rest[copied..];
            // Both are bounded by the largest frame.
            used.push((head, (written + copied) as u32));
        }
        self.queue.add_used_together(&used)?;
        Ok(Delivered::Done)
    }

    /// Takes chains until there is room for `needed` bytes or the device has all that the queue can hold; without MRG_RXBUF
    /// until there is one. False when the queue ran out of them; then a kick announces more.
    fn collect(&mut self, needed: usize) -> Result<bool, QueueError> {
        loop {
            let enough = if self.mergeable {
                self.pending_room >= needed || self.pending.len() >= usize::from(self.queue.size())
            } else {
                !self.pending.is_empty()
            };
            if enough {
                return Ok(true);
            }
            if let Some(chain) = self.take()? {
                self.hold(chain)?;
                continue;
            }
            if !self.queue.enable_kicks()? {
                return Ok(false);
            }
            // Chains came in before the driver knew that it should kick.
            let Some(chain) = self.take()? else {
                return Err(self.queue.chain_error("the available ring cannot be read"));
            };
            self.hold(chain)?;
        }
    }

    /// Takes the next chain off the queue.
    fn take(&mut self) -> Result<Option<(u16, Writable)>, QueueError> {
        let Some(chain) = self.queue.pop()? else {
            return Ok(None);
        };
        let head = chain.head_index();
        let buffers = ChainBuffers::new(&self.queue, chain)?;
        Ok(Some((head, buffers.writable)))
    }

    fn hold(&mut self, (head, room): (u16, Writable)) -> Result<(), QueueError> {
        self.pending_room += room.len();
        self.pending.push_back((head, room));
        self.queue.disable_kicks()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // A transport that stops the queue without a reset goes on from the first chain not used.
        for _ in self.pending.drain(..) {
            self.queue.undo_pop();
        }
    }
}
