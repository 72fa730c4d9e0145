//! Answers requests for random bytes.

use std::io;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::virtio::{
    QueueError, VirtQueue,
    buffers::Writable,
    serve::{Handled, Notify, unwatch, watch},
};

/// The most bytes one request gets. A driver asks for some dozens and asks again when it wants more; a chain of
/// gigabytes must not keep the thread.
const MAX_REQUEST: usize = 4096;
const BUDGET: usize = 64;
const NAME: &str = "rng";

pub(super) struct Worker {
    queue: VirtQueue,
}

impl Worker {
    pub(super) fn new(queue: VirtQueue) -> Worker {
        Worker { queue }
    }

    fn run(&mut self) -> Result<(), QueueError> {
        self.queue.consume_kick()?;
        self.queue.serve(BUDGET, Notify::Batch, |buffers| {
            Ok(Handled::Used(fill(buffers.writable)))
        })?;
        Ok(())
    }
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, _: Events, ops: &mut EventOps) {
        if let Err(error) = self.run() {
            unwatch(ops, std::os::fd::AsRawFd::as_raw_fd(self.queue.kick_fd()));
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

/// Fills the buffer, up to [`MAX_REQUEST`] bytes, with random bytes. Returns how many; fewer only when the host has none.
fn fill(mut buffer: Writable) -> u32 {
    buffer.truncate(MAX_REQUEST);
    let mut total = 0;
    for slice in buffer.slices() {
        let guard = slice.ptr_guard_mut();
        let mut done = 0;
        while done < slice.len() {
            // SAFETY: the slice is `slice.len()` bytes of mapped, writable guest memory; `done` is less than that.
            let result = unsafe {
                libc::getrandom(
                    guard.as_ptr().add(done).cast(),
                    slice.len() - done,
                    libc::GRND_NONBLOCK,
                )
            };
            match usize::try_from(result) {
                Ok(count) => done += count,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        tracing::warn!(%error, "the host has no random bytes for the guest");
                        return total + done as u32;
                    }
                }
            }
        }
        total += done as u32;
    }
    total
}
