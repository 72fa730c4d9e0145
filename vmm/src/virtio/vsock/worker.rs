//! The thread that moves packets: it owns the queues while the device is active, and the connections always.
//!
//! Everything it waits for is on one epoll of its own, which is the only thing on the event loop: one wake-up takes in what
//! hundreds of sockets have to say, and the driver is interrupted once for all of it.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_memory::Bytes;
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    timerfd::TimerFd,
};

use super::{
    buffers::GuestBuffers,
    connection::ConnectReply,
    host::{ConnectError, Shared},
    muxer::{FIRST_CONNECTION_ID, Limits, Muxer},
    packet::HEADER_SIZE,
};
use crate::virtio::{QueueError, VirtQueue};

const WAKE: u64 = 0;
const TIMER: u64 = 1;
const RX_KICK: u64 = 2;
const TX_KICK: u64 = 3;
const EVENT_KICK: u64 = 4;
const _: () = assert!(EVENT_KICK < FIRST_CONNECTION_ID);

/// Events taken from epoll at once.
const EVENT_BATCH: usize = 256;
/// Packets moved in each direction before the worker looks at everything else again.
const PACKET_BATCH: usize = 256;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (virtio 1.2, 5.10.6.7), little-endian.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// What other threads ask of the worker.
pub(super) enum Command {
    /// Connect to a port of the guest.
    Connect {
        /// The guest's port.
        port: u32,
        /// Who asks.
        reply: ConnectReply,
    },
    /// The driver is there.
    Activate {
        /// Its queues.
        queues: Box<Queues>,
        /// Hears that they are in use, or why not.
        done: mpsc::SyncSender<io::Result<()>>,
    },
    /// The driver is gone.
    Deactivate {
        /// Hears that the queues are not touched any more.
        done: mpsc::SyncSender<()>,
    },
    /// Forget all connections, and have the guest do the same.
    ResetTransport {
        /// Hears that it is done.
        done: mpsc::SyncSender<()>,
    },
}

/// The queues of an active device.
pub(super) struct Queues {
    pub(super) rx: VirtQueue,
    pub(super) tx: VirtQueue,
    /// None when the transport keeps it for itself, as QEMU's vhost-user front end does.
    pub(super) event: Option<VirtQueue>,
}

/// The worker.
pub(super) struct Worker {
    shared: Arc<Shared>,
    epoll: Arc<Epoll>,
    timer: TimerFd,
    timer_set: Option<Instant>,
    muxer: Muxer,
    queues: Option<Box<Queues>>,
    rx_kicks: bool,
    transport_reset_pending: bool,
    events: Vec<EpollEvent>,
}

impl Worker {
    /// A worker without queues.
    pub(super) fn new(guest_cid: u64, limits: Limits, shared: Arc<Shared>) -> io::Result<Worker> {
        let epoll = Arc::new(Epoll::new()?);
        let timer = TimerFd::new().map_err(io::Error::from)?;
        let watch = |fd, id| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, id));
        watch(shared.wake_event().as_raw_fd(), WAKE)?;
        watch(timer.as_raw_fd(), TIMER)?;
        Ok(Worker {
            muxer: Muxer::new(guest_cid, limits, Arc::clone(&shared), Arc::clone(&epoll)),
            shared,
            epoll,
            timer,
            timer_set: None,
            queues: None,
            rx_kicks: true,
            transport_reset_pending: false,
            events: vec![EpollEvent::default(); EVENT_BATCH],
        })
    }

    fn activate(&mut self, queues: Box<Queues>) -> io::Result<()> {
        self.deactivate();
        let watch = |queue: &VirtQueue, id| {
            self.epoll.ctl(
                ControlOperation::Add,
                queue.kick_fd().as_raw_fd(),
                EpollEvent::new(EventSet::IN, id),
            )
        };
        watch(&queues.rx, RX_KICK)?;
        watch(&queues.tx, TX_KICK)?;
        if let Some(event) = &queues.event {
            watch(event, EVENT_KICK)?;
        }
        self.queues = Some(queues);
        self.rx_kicks = true;
        Ok(())
    }

    fn deactivate(&mut self) {
        self.release_queues();
        self.transport_reset_pending = false;
        self.muxer.detach_all();
    }

    fn release_queues(&mut self) {
        let Some(queues) = self.queues.take() else {
            return;
        };
        let unwatch = |queue: &VirtQueue| {
            // The transport may keep the descriptor open, so dropping ours does not end the watch.
            if let Err(error) = self.epoll.ctl(
                ControlOperation::Delete,
                queue.kick_fd().as_raw_fd(),
                EpollEvent::default(),
            ) {
                tracing::debug!(%error, "a vsock queue's kick was not watched");
            }
        };
        unwatch(&queues.rx);
        unwatch(&queues.tx);
        if let Some(event) = &queues.event {
            unwatch(event);
        }
    }

    fn take_in_events(&mut self) {
        let count = match self.epoll.wait(0, &mut self.events) {
            Ok(count) => count,
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    tracing::error!(%error, "the vsock worker cannot wait for its sockets");
                }
                return;
            }
        };
        for index in 0..count {
            let event = self.events[index];
            match event.data() {
                WAKE => {
                    // A wake that is already gone is fine.
                    let _ = self.shared.wake_event().read();
                }
                TIMER => {
                    // It is set again after this round.
                    let _ = self.timer.wait();
                    self.timer_set = None;
                }
                RX_KICK => self.consume_kick(|queues| Some(&queues.rx)),
                TX_KICK => self.consume_kick(|queues| Some(&queues.tx)),
                EVENT_KICK => self.consume_kick(|queues| queues.event.as_ref()),
                id => self.muxer.socket_event(id, event.event_set()),
            }
        }
    }

    fn consume_kick(&mut self, which: impl Fn(&Queues) -> Option<&VirtQueue>) {
        if let Some(queue) = self.queues.as_deref().and_then(which)
            && let Err(error) = queue.consume_kick()
        {
            queue.fail("vsock", &error);
            self.give_up();
        }
    }

    fn run_commands(&mut self) {
        while let Some(command) = self.shared.next_command() {
            // Whoever asked and has gone does not need the answer.
            match command {
                Command::Connect { port, reply } => {
                    if self.queues.is_some() {
                        self.muxer.connect(port, reply, Instant::now());
                    } else {
                        let _ = reply.send(Err(ConnectError::NotReady));
                    }
                }
                Command::Activate { queues, done } => {
                    let result = self.activate(queues);
                    if result.is_err() {
                        self.deactivate();
                    }
                    let _ = done.send(result);
                }
                Command::Deactivate { done } => {
                    self.deactivate();
                    let _ = done.send(());
                }
                Command::ResetTransport { done } => {
                    self.muxer.detach_all();
                    self.transport_reset_pending = self.queues.is_some();
                    let _ = done.send(());
                }
            }
        }
    }

    /// Moves packets both ways. True when there is more to do at once.
    fn move_packets(&mut self) -> Result<bool, (u16, QueueError)> {
        let more_tx = self.receive_packets().map_err(|error| (1, error))?;
        let more_rx = self.send_packets().map_err(|error| (0, error))?;
        self.send_transport_reset().map_err(|error| (2, error))?;
        Ok(more_tx || more_rx)
    }

    fn receive_packets(&mut self) -> Result<bool, QueueError> {
        let Some(queues) = self.queues.as_deref_mut() else {
            return Ok(false);
        };
        let queue = &mut queues.tx;
        queue.disable_kicks()?;
        let mut left = PACKET_BATCH;
        let more = loop {
            if left == 0 {
                break true;
            }
            left -= 1;
            let Some(chain) = queue.pop()? else {
                if queue.enable_kicks()? {
                    continue;
                }
                break false;
            };
            let packet = GuestBuffers::readable(&chain).map_err(|what| queue.chain_error(what))?;
            self.muxer.receive(&packet);
            queue.add_used(chain.head_index(), 0)?;
        };
        queue.notify()?;
        Ok(more)
    }

    fn send_packets(&mut self) -> Result<bool, QueueError> {
        let Some(queues) = self.queues.as_deref_mut() else {
            return Ok(false);
        };
        if !self.muxer.has_packets() {
            return Ok(false);
        }
        let queue = &mut queues.rx;
        if self.rx_kicks {
            queue.disable_kicks()?;
            self.rx_kicks = false;
        }
        let now = Instant::now();
        let mut left = PACKET_BATCH;
        while self.muxer.has_packets() {
            if left == 0 {
                break;
            }
            left -= 1;
            let Some(chain) = queue.pop()? else {
                // The driver kicks when it has given us buffers again.
                self.rx_kicks = true;
                if queue.enable_kicks()? {
                    continue;
                }
                break;
            };
            let buffers = GuestBuffers::writable(&chain).map_err(|what| queue.chain_error(what))?;
            if buffers.len() <= HEADER_SIZE {
                return Err(queue.chain_error("a receive buffer has no room for a packet"));
            }
            let Some(length) = self.muxer.next_packet(&buffers, now) else {
                queue.undo_pop();
                break;
            };
            queue.add_used(chain.head_index(), length)?;
        }
        queue.notify()?;
        Ok(left == 0 && self.muxer.has_packets())
    }

    fn send_transport_reset(&mut self) -> Result<(), QueueError> {
        if !self.transport_reset_pending {
            return Ok(());
        }
        let Some(queue) = self
            .queues
            .as_deref_mut()
            .and_then(|queues| queues.event.as_mut())
        else {
            self.transport_reset_pending = false;
            return Ok(());
        };
        let Some(mut chain) = queue.pop()? else {
            return Ok(());
        };
        let head = chain.head_index();
        let memory = queue.memory();
        let written = chain
            .find(|descriptor| {
                descriptor.is_write_only() && descriptor.len() as usize >= TRANSPORT_RESET.len()
            })
            .is_some_and(|descriptor| memory.write_slice(&TRANSPORT_RESET, descriptor.addr()).is_ok());
        if !written {
            return Err(queue.chain_error("an event buffer has no room for an event"));
        }
        queue.add_used(head, TRANSPORT_RESET.len() as u32)?;
        queue.notify()?;
        self.transport_reset_pending = false;
        Ok(())
    }

    /// A queue is beyond use: nothing moves until the driver resets the device.
    fn give_up(&mut self) {
        self.deactivate();
    }

    fn set_timer(&mut self) {
        let next = self.muxer.next_deadline();
        if next == self.timer_set {
            return;
        }
        let set = match next {
            None => self.timer.clear(),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Zero would switch it off.
                self.timer.reset(left.max(Duration::from_micros(1)), None)
            }
        };
        match set {
            Ok(()) => self.timer_set = next,
            Err(error) => tracing::error!(%error, "the vsock worker's timer cannot be set"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Whoever asks from now on hears at once that nobody is there.
        self.shared.close();
    }
}

impl Worker {
    /// Does everything there is to do now, in bounded time; wakes itself when that was not all.
    pub(super) fn turn(&mut self) {
        self.take_in_events();
        self.run_commands();
        self.muxer.expire(Instant::now());
        match self.move_packets() {
            Ok(true) => self.shared.wake_worker(),
            Ok(false) => {}
            Err((index, error)) => {
                if let Some(queues) = &self.queues {
                    let queue = match index {
                        0 => Some(&queues.rx),
                        1 => Some(&queues.tx),
                        _ => queues.event.as_ref(),
                    };
                    if let Some(queue) = queue {
                        queue.fail("vsock", &error);
                    }
                }
                self.give_up();
            }
        }
        self.set_timer();
    }
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.turn();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&*self.epoll, EventSet::IN)) {
            tracing::error!(%error, "the vsock worker cannot be put on its event loop");
        }
    }
}
