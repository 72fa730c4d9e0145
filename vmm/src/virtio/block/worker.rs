//! Serves one request queue, on a thread of its own.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{Arc, atomic::Ordering},
};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

use super::{Disk, request::Request};
use crate::virtio::{
    QueueError, VirtQueue,
    buffers::{ChainBuffers, Writable},
    serve::{Handled, Notify, unwatch, watch},
};

const NAME: &str = "block";
/// Requests in one turn. Small: between turns the thread can be stopped.
const BUDGET: usize = 16;

pub(super) struct Worker {
    queue: VirtQueue,
    disk: Arc<Disk>,
}

impl Worker {
    pub(super) fn new(queue: VirtQueue, disk: Arc<Disk>) -> Worker {
        Worker { queue, disk }
    }

    pub(super) fn run(&mut self) -> Result<(), QueueError> {
        self.queue.consume_kick()?;
        let index = self.queue.index();
        self.queue.serve(BUDGET, Notify::Each, |buffers| {
            let ChainBuffers {
                readable,
                mut writable,
            } = buffers;
            let Some(mut status) = writable.split_end(1) else {
                return Err(QueueError::Chain {
                    index,
                    what: "it has no room for the status byte",
                });
            };
            let room = writable.len();
            let code = self.disk.execute(ChainBuffers { readable, writable });
            // The three codes fit a byte.
            status.write(&[code as u8]);
            // What counts as written is what was filled from the front on.
            let filled = if code == VIRTIO_BLK_S_OK || room == 0 {
                room + 1
            } else {
                0
            };
            Ok(Handled::Used(u32::try_from(filled).unwrap_or(u32::MAX)))
        })?;
        Ok(())
    }
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, _: Events, ops: &mut EventOps) {
        if let Err(error) = self.run() {
            unwatch(ops, self.queue.kick_fd().as_raw_fd());
            self.queue.fail(NAME, &error);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, NAME, self.queue.kick_fd(), 0, EventSet::IN);
        // Requests from before this moment had nobody to hear their kick.
        if let Err(error) = self.queue.reschedule() {
            self.queue.fail(NAME, &error);
        }
    }
}

impl Disk {
    /// Executes a request; returns the status code for the driver.
    fn execute(&self, mut buffers: ChainBuffers) -> u32 {
        let capacity = self.image.sectors();
        let request = match Request::parse(&mut buffers.readable, buffers.writable.len(), capacity) {
            Ok(request) => request,
            Err(refusal) => return refusal.status(),
        };
        if self.image.read_only()
            && matches!(
                request,
                Request::Write(_) | Request::Discard(_) | Request::WriteZeroes(_)
            )
        {
            return VIRTIO_BLK_S_IOERR;
        }
        let result = match request {
            Request::Read(extent) => self.image.read(extent.offset, &mut buffers.writable),
            Request::Write(extent) => self
                .image
                .write(extent.offset, &mut buffers.readable)
                .and_then(|()| self.settle()),
            Request::Flush if self.image.read_only() => Ok(()),
            Request::Flush => self.image.flush(),
            Request::GetId => return self.get_id(&mut buffers.writable),
            Request::Discard(_) if !self.image.can_discard() => return VIRTIO_BLK_S_UNSUPP,
            Request::Discard(extents) => extents
                .into_iter()
                .filter(|extent| extent.length > 0)
                .try_for_each(|extent| self.image.discard(extent))
                .and_then(|()| self.settle()),
            Request::WriteZeroes(ranges) => ranges
                .into_iter()
                .filter(|range| range.extent.length > 0)
                .try_for_each(|range| self.image.write_zeroes(range.extent, range.unmap))
                .and_then(|()| self.settle()),
        };
        // The image has taken note of the cause.
        result.map_or(VIRTIO_BLK_S_IOERR, |()| VIRTIO_BLK_S_OK)
    }

    /// What a change of the disk needs before it is done: in write-through mode, to be durable.
    fn settle(&self) -> io::Result<()> {
        if self.write_through.load(Ordering::Acquire) {
            self.image.flush()
        } else {
            Ok(())
        }
    }

    fn get_id(&self, room: &mut Writable) -> u32 {
        // 5.2.6: the buffer has exactly this length.
        if room.len() != self.id.len() {
            return VIRTIO_BLK_S_IOERR;
        }
        room.write(&self.id);
        VIRTIO_BLK_S_OK
    }
}
