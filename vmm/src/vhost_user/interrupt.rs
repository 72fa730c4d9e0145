//! Interrupts through the front end's eventfds.

use std::{
    io,
    sync::{Mutex, PoisonError},
};

use vmm_sys_util::eventfd::EventFd;

use crate::virtio::{Interrupt, InterruptCause};

/// The front end's eventfds, replaced whenever it sends others: QEMU does so while the device runs.
pub(super) struct CallInterrupt {
    queues: Vec<Mutex<QueueEvents>>,
}

#[derive(Default)]
struct QueueEvents {
    call: Option<EventFd>,
    error: Option<EventFd>,
}

impl CallInterrupt {
    /// For this many queues, none of which has eventfds yet.
    pub(super) fn new(queues: usize) -> CallInterrupt {
        CallInterrupt {
            queues: (0..queues).map(|_| Mutex::default()).collect(),
        }
    }

    /// Sets what is written to when buffers of a queue were used; none when the front end polls.
    pub(super) fn set_call(&self, queue: usize, event: Option<EventFd>) {
        self.with(queue, |events| events.call = event);
    }

    /// Sets what is written to when the device cannot go on.
    pub(super) fn set_error(&self, queue: usize, event: Option<EventFd>) {
        self.with(queue, |events| events.error = event);
    }

    fn with<R>(&self, queue: usize, f: impl FnOnce(&mut QueueEvents) -> R) -> Option<R> {
        let events = self.queues.get(queue)?;
        Some(f(&mut events.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Interrupt for CallInterrupt {
    fn signal(&self, cause: InterruptCause) -> io::Result<()> {
        match cause {
            InterruptCause::Queue(index) => self
                .with(usize::from(index), |events| signal(events.call.as_ref()))
                .unwrap_or(Ok(())),
            InterruptCause::NeedsReset => (0..self.queues.len()).try_for_each(|queue| {
                self.with(queue, |events| signal(events.error.as_ref()))
                    .unwrap_or(Ok(()))
            }),
            InterruptCause::Config => {
                // Going this way takes a message of the back-end channel that the vhost crate has not got.
                Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "a vhost-user device cannot announce a configuration change",
                ))
            }
        }
    }
}

fn signal(event: Option<&EventFd>) -> io::Result<()> {
    match event.map(|event| event.write(1)) {
        // The counter is full: the event is readable, which is what a signal is.
        Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}
