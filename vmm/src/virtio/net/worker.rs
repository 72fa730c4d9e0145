//! Moves frames between the queues and the socket.

use std::{os::fd::AsRawFd, sync::atomic::Ordering};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::{
    HEADER_SIZE, MAX_FRAME, MIN_FRAME,
    connection::{Connection, ConnectionError, Sent},
    link::NetLink,
    receive::{Delivered, Receiver},
};
use crate::virtio::{
    QueueError, VirtQueue,
    serve::{Handled, Notify, Served, unwatch, watch},
};

const NAME: &str = "net";
/// Frames of one direction in one turn.
const BUDGET: usize = 256;

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const SOCKET: u32 = 2;
const LINK: u32 = 3;

pub(super) struct Worker {
    receiver: Receiver,
    transmit: VirtQueue,
    link: NetLink,
    connection: Option<Connection>,
    /// What the socket is watched for; none: it is not watched.
    watched: Option<EventSet>,
    /// The guest has no buffers for the next frame.
    receive_stuck: bool,
    /// The socket is full.
    transmit_stuck: bool,
    /// A queue is malformed: nothing more is to be done.
    failed: bool,
}

/// Why a direction stopped.
enum Stop {
    Connection(ConnectionError),
    Queue(QueueError),
}

impl From<ConnectionError> for Stop {
    fn from(error: ConnectionError) -> Stop {
        Stop::Connection(error)
    }
}

impl From<QueueError> for Stop {
    fn from(error: QueueError) -> Stop {
        Stop::Queue(error)
    }
}

impl Worker {
    pub(super) fn new(receiver: Receiver, transmit: VirtQueue, link: NetLink) -> Worker {
        Worker {
            receiver,
            transmit,
            link,
            connection: None,
            watched: None,
            receive_stuck: false,
            transmit_stuck: false,
            failed: false,
        }
    }

    /// Host to guest.
    fn receive(&mut self) -> Result<(), Stop> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        let counters = self.link.counters();
        self.receive_stuck = false;
        let mut budget = BUDGET;
        let ended = loop {
            if budget == 0 {
                // What is left may already be in our buffer, where no socket event tells of it.
                self.receiver.queue().reschedule()?;
                break Ok(());
            }
            budget -= 1;
            let frame = match connection.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            match self.receiver.deliver(frame)? {
                Delivered::Done => {
                    counters.frames_to_guest.fetch_add(1, Ordering::Relaxed);
                    counters
                        .bytes_to_guest
                        .fetch_add(frame.len() as u64, Ordering::Relaxed);
                }
                Delivered::TooLong => {
                    counters.dropped.fetch_add(1, Ordering::Relaxed);
                }
                Delivered::NoRoom => {
                    self.receive_stuck = true;
                    break Ok(());
                }
            }
            connection.frame_done();
        };
        self.receiver.notify()?;
        Ok(ended?)
    }

    /// Guest to host.
    fn transmit(&mut self) -> Result<(), Stop> {
        self.transmit_stuck = false;
        let counters = self.link.counters();
        let mut connection = self.connection.as_mut();
        let mut broken = None;
        let served = self.transmit.serve(BUDGET, Notify::Batch, |buffers| {
            let mut frame = buffers.readable;
            // No offload was agreed on, so the header says nothing.
            frame.skip(HEADER_SIZE);
            let length = frame.len();
            let whole = (MIN_FRAME..=MAX_FRAME).contains(&length);
            let Some(open) = connection.as_mut().filter(|_| whole) else {
                counters.dropped.fetch_add(1, Ordering::Relaxed);
                return Ok(Handled::Used(0));
            };
            match open.send(&mut frame) {
                Ok(Sent::Done) => {
                    counters.frames_from_guest.fetch_add(1, Ordering::Relaxed);
                    counters
                        .bytes_from_guest
                        .fetch_add(length as u64, Ordering::Relaxed);
                    Ok(Handled::Used(0))
                }
                Ok(Sent::Full) => Ok(Handled::Later),
                Err(error) => {
                    connection = None;
                    broken = Some(error);
                    counters.dropped.fetch_add(1, Ordering::Relaxed);
                    Ok(Handled::Used(0))
                }
            }
        })?;
        self.transmit_stuck = served == Served::PutOff;
        broken.map_or(Ok(()), |error| Err(error.into()))
    }

    fn handle(&mut self, events: Events) -> Result<(), Stop> {
        match events.data() {
            RECEIVE => {
                self.receiver.queue().consume_kick()?;
                self.receive()
            }
            TRANSMIT => {
                self.transmit.consume_kick()?;
                // While the socket is full, its event goes on.
                if self.transmit_stuck {
                    Ok(())
                } else {
                    self.transmit()
                }
            }
            SOCKET => self.socket(events.event_set()),
            _ => {
                // Nothing to read means that it was read before, which is fine.
                let _ = self.link.changed().read();
                Ok(())
            }
        }
    }

    fn socket(&mut self, events: EventSet) -> Result<(), Stop> {
        if events.contains(EventSet::OUT) {
            if let Some(connection) = &mut self.connection {
                connection.flush()?;
            }
            if self.transmit_stuck {
                self.transmit()?;
            }
        }
        if events.contains(EventSet::IN) {
            return self.receive();
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            // Frames that the guest has no buffers for are lost with the connection.
            return Err(ConnectionError::Closed.into());
        }
        Ok(())
    }

    /// Takes over what [`NetLink::attach`] left, if anything.
    fn relink(&mut self, ops: &mut EventOps) -> Result<(), QueueError> {
        let Some(next) = self.link.take_next() else {
            return Ok(());
        };
        self.close(ops);
        self.connection = next;
        self.receive_stuck = false;
        self.transmit_stuck = false;
        // Frames that waited for the old connection go to the new one, or are dropped.
        self.transmit.reschedule()
    }

    fn close(&mut self, ops: &mut EventOps) {
        if let Some(connection) = self.connection.take()
            && self.watched.take().is_some()
        {
            unwatch(ops, connection.stream().as_raw_fd());
        }
    }

    /// Watches the socket for what can be made use of now. That it is closed is always noticed.
    fn watch_socket(&mut self, ops: &mut EventOps) {
        let Some(connection) = &self.connection else {
            return;
        };
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, !self.receive_stuck);
        wanted.set(EventSet::OUT, self.transmit_stuck || connection.has_unsent());
        if self.watched == Some(wanted) {
            return;
        }
        let events = Events::with_data(connection.stream(), SOCKET, wanted);
        let result = match self.watched {
            None => ops.add(events),
            Some(_) => ops.modify(events),
        };
        match result {
            Ok(()) => self.watched = Some(wanted),
            Err(error) => tracing::error!(device = NAME, %error, "the socket could not be watched"),
        }
    }

    fn stop(&mut self, ops: &mut EventOps, error: &QueueError) {
        self.failed = true;
        self.close(ops);
        unwatch(ops, self.receiver.queue().kick_fd().as_raw_fd());
        unwatch(ops, self.transmit.kick_fd().as_raw_fd());
        unwatch(ops, self.link.changed().as_raw_fd());
        self.transmit.fail(NAME, error);
    }
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.failed {
            return;
        }
        let result = match self.handle(events) {
            Err(Stop::Connection(error)) => {
                tracing::warn!(
                    error = &error as &(dyn std::error::Error + 'static),
                    "the network's other end has gone"
                );
                self.close(ops);
                self.receive_stuck = false;
                // Frames that waited for it are dropped now.
                self.transmit_stuck = false;
                let result = self.transmit.reschedule();
                self.link.detached();
                result
            }
            Err(Stop::Queue(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        match result.and_then(|()| self.relink(ops)) {
            Ok(()) => self.watch_socket(ops),
            Err(error) => self.stop(ops, &error),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, NAME, self.receiver.queue().kick_fd(), RECEIVE, EventSet::IN);
        watch(ops, NAME, self.transmit.kick_fd(), TRANSMIT, EventSet::IN);
        watch(ops, NAME, self.link.changed(), LINK, EventSet::IN);
        // What came before this moment had nobody to hear its kick.
        if let Err(error) = self.transmit.reschedule().and_then(|()| self.relink(ops)) {
            self.stop(ops, &error);
        } else {
            self.watch_socket(ops);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.link.give_back(connection);
        }
    }
}
