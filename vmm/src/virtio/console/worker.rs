//! Moves bytes between the port's queues and the host.

use std::{os::fd::AsRawFd, sync::Arc};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::{input::ConsoleInput, output::Output};
use crate::virtio::{
    QueueError, VirtQueue,
    buffers::Readable,
    serve::{Handled, Notify, unwatch, watch},
};

const NAME: &str = "console";
const BUDGET: usize = 64;
/// The most bytes of one chain that are printed, so that a chain of gigabytes does not keep the thread. Drivers print
/// pages at most.
const MAX_PRINT: usize = 64 << 10;

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const INPUT: u32 = 2;

pub(super) struct Worker {
    receive: VirtQueue,
    transmit: VirtQueue,
    input: ConsoleInput,
    output: Arc<Output>,
}

impl Worker {
    pub(super) fn new(
        receive: VirtQueue,
        transmit: VirtQueue,
        input: ConsoleInput,
        output: Arc<Output>,
    ) -> Worker {
        Worker {
            receive,
            transmit,
            input,
            output,
        }
    }

    fn transmit(&mut self) -> Result<(), QueueError> {
        self.transmit.consume_kick()?;
        let output = &self.output;
        // The driver spins until it sees its buffer used; an interrupt after each one costs nothing more.
        self.transmit.serve(BUDGET, Notify::Batch, |buffers| {
            print(output, buffers.readable);
            Ok(Handled::Used(0))
        })?;
        Ok(())
    }

    fn receive(&mut self) -> Result<(), QueueError> {
        let input = &self.input;
        if input.is_empty() {
            // The driver's buffers wait on the ring for what comes.
            return Ok(());
        }
        self.receive.serve(BUDGET, Notify::Batch, |mut buffers| {
            if input.is_empty() {
                return Ok(Handled::Later);
            }
            let taken = input.take(|bytes| buffers.writable.write(bytes));
            // At most the input's capacity.
            Ok(Handled::Used(taken as u32))
        })?;
        Ok(())
    }

    fn stop(&self, ops: &mut EventOps, failed: &VirtQueue, error: &QueueError) {
        unwatch(ops, self.receive.kick_fd().as_raw_fd());
        unwatch(ops, self.transmit.kick_fd().as_raw_fd());
        unwatch(ops, self.input.arrived().as_raw_fd());
        failed.fail(NAME, error);
    }
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            TRANSMIT => {
                if let Err(error) = self.transmit() {
                    self.stop(ops, &self.transmit, &error);
                }
            }
            kind => {
                if kind == INPUT {
                    // Nothing to read means that it was read before, which is fine.
                    let _ = self.input.arrived().read();
                }
                let result = if kind == RECEIVE {
                    self.receive.consume_kick()
                } else {
                    Ok(())
                };
                if let Err(error) = result.and_then(|()| self.receive()) {
                    self.stop(ops, &self.receive, &error);
                }
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, NAME, self.receive.kick_fd(), RECEIVE, EventSet::IN);
        watch(ops, NAME, self.transmit.kick_fd(), TRANSMIT, EventSet::IN);
        watch(ops, NAME, self.input.arrived(), INPUT, EventSet::IN);
        // What came before this moment had nobody to hear its kick.
        for queue in [&self.receive, &self.transmit] {
            if let Err(error) = queue.reschedule() {
                queue.fail(NAME, &error);
            }
        }
    }
}

fn print(output: &Output, mut data: Readable) {
    let mut printed = 0;
    let mut piece = [0; 1024];
    while printed < MAX_PRINT {
        let length = data.read(&mut piece);
        if length == 0 {
            return;
        }
        output.push(&piece[..length]);
        printed += length;
    }
    output.lose(data.len() as u64);
}
