//! Serves the balloon's queues.

use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::GuestMemoryBackend;

use super::{
    BALLOON_PAGE,
    control::BalloonControl,
    release::{release_pages, release_slice, runs},
    stats::BalloonStats,
};
use crate::{
    memory::GuestRegions,
    virtio::{
        QueueError, VirtQueue,
        buffers::{ChainBuffers, Readable},
        serve::{Handled, Notify, unwatch, watch},
    },
};

const NAME: &str = "balloon";
/// Chains of one queue in one turn.
const BUDGET: usize = 16;
/// Page numbers handled at once: what Linux sends in one chain is a quarter of it.
const BATCH: usize = 1024;
/// The most page numbers of one chain that are looked at; those after them stay with the host unused, which does no harm.
const MAX_PAGES: usize = 64 * BATCH;

const INFLATE: u32 = 0;
const DEFLATE: u32 = 1;
const STATS: u32 = 2;
const REPORTING: u32 = 3;
const WANTED: u32 = 4;

pub(super) struct Queues {
    pub(super) inflate: VirtQueue,
    pub(super) deflate: VirtQueue,
    pub(super) stats: Option<VirtQueue>,
    pub(super) reporting: Option<VirtQueue>,
}

pub(super) struct Worker {
    queues: Queues,
    control: BalloonControl,
    /// The statistics buffer: the driver gives it away filled, and fills it again when it gets it back.
    stats_buffer: Option<u16>,
    failed: bool,
}

impl Worker {
    pub(super) fn new(queues: Queues, control: BalloonControl) -> Worker {
        Worker {
            queues,
            control,
            stats_buffer: None,
            failed: false,
        }
    }

    fn inflate(&mut self) -> Result<(), QueueError> {
        let queue = &mut self.queues.inflate;
        queue.consume_kick()?;
        let memory = queue.memory();
        let control = &self.control;
        queue.serve(BUDGET, Notify::Batch, |buffers| {
            control.released(inflate(&memory, buffers.readable));
            Ok(Handled::Used(0))
        })?;
        Ok(())
    }

    fn deflate(&mut self) -> Result<(), QueueError> {
        let queue = &mut self.queues.deflate;
        queue.consume_kick()?;
        // The pages come back as the guest touches them; there is nothing to do but say that it may.
        queue.serve(BUDGET, Notify::Batch, |_| Ok(Handled::Used(0)))?;
        Ok(())
    }

    fn report(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.queues.reporting else {
            return Ok(());
        };
        queue.consume_kick()?;
        let memory = queue.memory();
        let control = &self.control;
        queue.serve(BUDGET, Notify::Batch, |buffers| {
            let released = buffers
                .writable
                .slices()
                .map(|slice| release_slice(&memory, &slice))
                .sum();
            control.released(released);
            // Nothing is written: the pages read as zero or as before, and the driver does not care which.
            Ok(Handled::Used(0))
        })?;
        Ok(())
    }

    fn stats(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.queues.stats else {
            return Ok(());
        };
        queue.consume_kick()?;
        let mut budget = BUDGET;
        loop {
            while let Some(chain) = queue.pop()? {
                let head = chain.head_index();
                let buffers = ChainBuffers::new(queue, chain)?;
                // One buffer is all a driver should have; any other goes back.
                if let Some(previous) = self.stats_buffer.replace(head) {
                    queue.add_used(previous, 0)?;
                }
                self.control.answered(BalloonStats::parse(buffers.readable));
                budget -= 1;
                if budget == 0 {
                    queue.reschedule()?;
                    return queue.notify();
                }
            }
            if !queue.enable_kicks()? {
                return queue.notify();
            }
            budget -= 1;
            if budget == 0 {
                return queue.reschedule();
            }
        }
    }

    /// Gives the statistics buffer back, which makes the driver fill it anew.
    fn ask(&mut self) -> Result<(), QueueError> {
        // Nothing to read means that it was read before, which is fine.
        let _ = self.control.wanted().read();
        if let Some(queue) = &mut self.queues.stats
            && let Some(head) = self.stats_buffer.take()
        {
            queue.add_used(head, 0)?;
            queue.notify()?;
        }
        Ok(())
    }

    fn all_queues(&self) -> impl Iterator<Item = (u32, &VirtQueue)> {
        [
            Some((INFLATE, &self.queues.inflate)),
            Some((DEFLATE, &self.queues.deflate)),
            self.queues.stats.as_ref().map(|queue| (STATS, queue)),
            self.queues.reporting.as_ref().map(|queue| (REPORTING, queue)),
        ]
        .into_iter()
        .flatten()
    }

    fn stop(&mut self, ops: &mut EventOps, error: &QueueError) {
        self.failed = true;
        for (_, queue) in self.all_queues() {
            unwatch(ops, queue.kick_fd().as_raw_fd());
        }
        unwatch(ops, self.control.wanted().as_raw_fd());
        self.queues.inflate.fail(NAME, error);
    }
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.failed {
            return;
        }
        let result = match events.data() {
            INFLATE => self.inflate(),
            DEFLATE => self.deflate(),
            STATS => self.stats(),
            REPORTING => self.report(),
            _ => self.ask(),
        };
        if let Err(error) = result {
            self.stop(ops, &error);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (data, queue) in self.all_queues() {
            watch(ops, NAME, queue.kick_fd(), data, EventSet::IN);
            // What came before this moment had nobody to hear its kick.
            if let Err(error) = queue.reschedule() {
                queue.fail(NAME, &error);
            }
        }
        watch(ops, NAME, self.control.wanted(), WANTED, EventSet::IN);
    }
}

/// Drops the contents of the pages whose numbers (le32) the buffer holds. Returns the bytes.
fn inflate(memory: &GuestRegions, mut numbers: Readable) -> u64 {
    let mut released = 0;
    let mut pages = Vec::with_capacity(BATCH.min(numbers.len() / 4));
    let last = memory.last_addr().0 / BALLOON_PAGE;
    for _ in 0..MAX_PAGES / BATCH {
        pages.clear();
        while pages.len() < BATCH
            && let Some(number) = numbers.read_array()
        {
            let number = u32::from_le_bytes(number);
            if u64::from(number) <= last {
                pages.push(number);
            }
        }
        for (first, count) in runs(&mut pages) {
            released += release_pages(memory, first, count);
        }
        if numbers.len() < 4 {
            break;
        }
    }
    released
}
