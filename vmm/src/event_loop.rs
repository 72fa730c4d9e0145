//! A thread that runs an [`EventManager`] and lends it to devices on other threads.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId};

/// A device's worker, as the loop sees it.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// Why a loop could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum EventLoopError {
    /// The loop's epoll or event descriptors could not be made.
    #[error("an event loop could not be made")]
    Create(#[source] event_manager::Error),
    /// The thread could not be started.
    #[error("the thread of an event loop could not be started")]
    Thread(#[source] io::Error),
    /// The loop has ended.
    #[error("the event loop does not answer; its thread has ended")]
    Gone(#[source] event_manager::Error),
}

impl From<event_manager::Error> for EventLoopError {
    fn from(source: event_manager::Error) -> Self {
        EventLoopError::Gone(source)
    }
}

/// The owner of a loop's thread. Dropping it stops the loop and waits for its thread; workers still on it are dropped on
/// that thread.
pub struct EventLoop {
    handle: EventLoopHandle,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A way to reach a loop from any thread but its own.
#[derive(Clone)]
pub struct EventLoopHandle {
    endpoint: RemoteEndpoint<Subscriber>,
}

impl EventLoop {
    /// Starts a loop on a thread of its own, called `name` (15 bytes are visible in process listings).
    pub fn spawn(name: &str) -> Result<EventLoop, EventLoopError> {
        // The manager holds trait objects that are Send, but is not Send itself: it is made on its own thread.
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let stop_seen = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(256 * 1024)
            .spawn(move || {
                let mut manager = match EventManager::<Subscriber>::new() {
                    Ok(manager) => manager,
                    Err(error) => {
                        // The other end waits for exactly this message.
                        let _ = sender.send(Err(error));
                        return;
                    }
                };
                let _ = sender.send(Ok(manager.remote_endpoint()));
                while !stop_seen.load(Ordering::Acquire) {
                    if let Err(error) = manager.run() {
                        tracing::error!(%error, "an event loop failed; its devices stop");
                        return;
                    }
                }
            })
            .map_err(EventLoopError::Thread)?;
        let endpoint = receiver
            .recv()
            .map_err(|_| EventLoopError::Thread(io::Error::other("the thread ended at once")))?
            .map_err(EventLoopError::Create)?;
        Ok(EventLoop {
            handle: EventLoopHandle { endpoint },
            stop,
            thread: Some(thread),
        })
    }

    /// A handle for devices.
    pub fn handle(&self) -> EventLoopHandle {
        self.handle.clone()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = self.handle.endpoint.kick() {
            tracing::error!(%error, "an event loop could not be woken to stop; its thread is left behind");
            return;
        }
        if let Some(thread) = self.thread.take() {
            // A panic on that thread was reported when it happened; a test must not pass with one.
            let panicked = thread.join().is_err();
            if cfg!(any(test, feature = "test-driver")) && !std::thread::panicking() {
                assert!(!panicked, "a worker panicked");
            }
        }
    }
}

impl EventLoopHandle {
    /// Puts a worker on the loop; its `init` has run when this returns. Must not be called from the loop's own thread.
    pub fn add(&self, worker: Subscriber) -> Result<SubscriberId, EventLoopError> {
        self.endpoint
            .call_blocking(move |ops| Ok(ops.add_subscriber(worker)))
    }

    /// Takes a worker off the loop and gives it back; none of its code runs any more when this returns. Must not be
    /// called from the loop's own thread.
    pub fn remove(&self, id: SubscriberId) -> Result<Subscriber, EventLoopError> {
        self.endpoint
            .call_blocking(move |ops| ops.remove_subscriber(id).map_err(EventLoopError::from))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use event_manager::{EventOps, EventSet, Events};
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    struct Counter {
        event: EventFd,
        seen: mpsc::Sender<u64>,
    }

    impl MutEventSubscriber for Counter {
        fn process(&mut self, _: Events, _: &mut EventOps) {
            self.seen.send(self.event.read().unwrap()).unwrap();
        }
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.event, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn a_worker_runs_until_it_is_removed() {
        let event_loop = EventLoop::spawn("test").unwrap();
        let event = EventFd::new(0).unwrap();
        let (seen, seen_rx) = mpsc::channel();
        let id = event_loop
            .handle()
            .add(Box::new(Counter {
                event: event.try_clone().unwrap(),
                seen,
            }))
            .unwrap();

        event.write(3).unwrap();
        assert_eq!(seen_rx.recv().unwrap(), 3);

        drop(event_loop.handle().remove(id).unwrap());
        event.write(1).unwrap();
        assert!(seen_rx.recv().is_err(), "the worker and its sender are gone");
    }

    #[test]
    fn removing_a_worker_twice_is_an_error() {
        let event_loop = EventLoop::spawn("test").unwrap();
        let (seen, _seen_rx) = mpsc::channel();
        let id = event_loop
            .handle()
            .add(Box::new(Counter {
                event: EventFd::new(0).unwrap(),
                seen,
            }))
            .unwrap();
        event_loop.handle().remove(id).unwrap();
        assert!(event_loop.handle().remove(id).is_err());
    }
}
