//! The loop every device runs on a queue: take chains, handle them, give them back, and neither miss a kick nor keep the
//! thread for ever.

use std::os::fd::{AsRawFd, RawFd};

use event_manager::{EventOps, EventSet, Events, SubscriberId};

use super::{QueueError, VirtQueue, buffers::ChainBuffers};
use crate::event_loop::{EventLoopError, EventLoopHandle, Subscriber};

/// What became of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// It is done; the device wrote this many bytes into it.
    Used(u32),
    /// It cannot be handled now: it stays on the available ring, and so does all that follows it.
    Later,
}

/// When the driver is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notify {
    /// After every chain: for requests that take long.
    Each,
    /// After all chains that were there.
    Batch,
}

/// How [`VirtQueue::serve`] left the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Nothing is left; the next chain comes with a kick.
    All,
    /// There was more than one turn's worth; the kick descriptor is ready again at once.
    InPart,
    /// A chain was put off ([`Handled::Later`]). No kick is asked for; call again when there is reason to.
    PutOff,
}

impl VirtQueue {
    /// Handles available chains, at most `budget` of them, so that others on the same thread get their turn and the
    /// device can be stopped while the driver keeps the queue full.
    pub fn serve(
        &mut self,
        budget: usize,
        notify: Notify,
        mut handle: impl FnMut(ChainBuffers) -> Result<Handled, QueueError>,
    ) -> Result<Served, QueueError> {
        let mut handled = 0;
        let mut promised = false;
        let served = 'turn: loop {
            self.disable_kicks()?;
            while let Some(chain) = self.pop()? {
                promised = false;
                if handled == budget {
                    self.undo_pop();
                    self.reschedule()?;
                    break 'turn Served::InPart;
                }
                handled += 1;
                let head = chain.head_index();
                match handle(ChainBuffers::new(self, chain)?)? {
                    Handled::Used(written) => self.add_used(head, written)?,
                    Handled::Later => {
                        self.undo_pop();
                        break 'turn Served::PutOff;
                    }
                }
                if notify == Notify::Each {
                    self.notify()?;
                }
            }
            if promised {
                return Err(self.chain_error("the available ring cannot be read"));
            }
            promised = self.enable_kicks()?;
            if !promised {
                break Served::All;
            }
        };
        if notify == Notify::Batch && handled > 0 {
            self.notify()?;
        }
        Ok(served)
    }
}

/// Watches `descriptor` for `events`, marked with `data`. Failing here leaves a device deaf, so it is reported and false.
pub fn watch(
    ops: &mut EventOps<'_>,
    device: &str,
    descriptor: &impl AsRawFd,
    data: u32,
    events: EventSet,
) -> bool {
    match ops.add(Events::with_data(descriptor, data, events)) {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(device, %error, "a descriptor could not be watched");
            false
        }
    }
}

/// Ends the watch on `descriptor`, if there is one.
pub fn unwatch(ops: &mut EventOps<'_>, descriptor: RawFd) {
    // The only failure is that it was not watched.
    let _ = ops.remove(Events::empty_raw(descriptor));
}

/// A worker that runs on a loop. Dropping it takes the worker off and waits until none of its code runs.
pub struct RunningWorker {
    event_loop: EventLoopHandle,
    id: Option<SubscriberId>,
}

impl RunningWorker {
    /// Puts `worker` on the loop.
    pub fn start(event_loop: EventLoopHandle, worker: Subscriber) -> Result<RunningWorker, EventLoopError> {
        let id = event_loop.add(worker)?;
        Ok(RunningWorker {
            event_loop,
            id: Some(id),
        })
    }
}

impl Drop for RunningWorker {
    fn drop(&mut self) {
        if let Some(id) = self.id.take()
            && let Err(error) = self.event_loop.remove(id)
        {
            // A loop that has ended has dropped its workers with it.
            tracing::warn!(%error, "a worker was already gone from its loop");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::test_driver::TestQueue, *};

    fn serve(queue: &mut VirtQueue, budget: usize, handled: Handled) -> (Served, usize) {
        let mut count = 0;
        let served = queue
            .serve(budget, Notify::Batch, |_| {
                count += 1;
                Ok(handled)
            })
            .unwrap();
        (served, count)
    }

    #[test]
    fn all_chains_are_served_and_the_driver_hears_once() {
        for event_idx in [false, true] {
            let mut driver = TestQueue::new(8);
            let mut queue = driver.device_queue_with(event_idx);
            let heads: Vec<u16> = (0..3).map(|_| driver.offer(&[b"x"], &[])).collect();
            assert_eq!(serve(&mut queue, 10, Handled::Used(0)), (Served::All, 3));
            for head in heads {
                assert_eq!(driver.take_used(), Some((head, 0)));
            }
            assert_eq!(driver.free_descriptors(), 8);
            assert_eq!(driver.interrupts().len(), 1);
            assert_eq!(serve(&mut queue, 10, Handled::Used(0)), (Served::All, 0));
            assert_eq!(driver.interrupts().len(), 0);
        }
    }

    #[test]
    fn the_budget_ends_a_turn_and_schedules_the_next() {
        let mut driver = TestQueue::new(8);
        let mut queue = driver.device_queue(0);
        for _ in 0..5 {
            driver.offer(&[b"x"], &[]);
        }
        assert_eq!(serve(&mut queue, 2, Handled::Used(0)), (Served::InPart, 2));
        assert_eq!(serve(&mut queue, 3, Handled::Used(0)), (Served::All, 3));
    }

    #[test]
    fn a_chain_put_off_comes_again() {
        let mut driver = TestQueue::new(8);
        let mut queue = driver.device_queue(0);
        let head = driver.offer(&[b"x"], &[]);
        assert_eq!(serve(&mut queue, 9, Handled::Later), (Served::PutOff, 1));
        assert_eq!(driver.take_used(), None);
        assert_eq!(serve(&mut queue, 9, Handled::Used(0)), (Served::All, 1));
        assert_eq!(driver.take_used(), Some((head, 0)));
    }

    #[test]
    fn a_malformed_chain_is_an_error() {
        let mut driver = TestQueue::new(8);
        let mut queue = driver.device_queue(0);
        driver.publish(8);
        let error = queue.serve(9, Notify::Each, |_| panic!("must not be handled"));
        assert!(matches!(error, Err(QueueError::Chain { .. })));
    }
}
