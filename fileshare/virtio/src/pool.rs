//! The threads of one queue.
//!
//! All of them sleep in one epoll, in which the driver's kick is edge-triggered, so that a kick wakes exactly one. That one
//! takes a chain and handles it itself; it wakes another only when there are more chains. A chain is taken off the available
//! ring and put on the used ring under the queue's lock; it is handled, and the driver interrupted for it, outside.
//!
//! A request for a lock may wait for as long as the guest likes, and the one that releases the lock may come behind it in the
//! same queue. So threads that may wait are replaced while they do.
//!
//! Nobody waits for what has no reply (FORGET), and it comes in bursts: after a burst a queue that is for such requests is
//! looked at again after a lull instead of being kicked, and the driver is interrupted once for all that came.

mod crew;
mod umask;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use fileshare::{buffers::ReplyBuffer, wire::Opcode};
use vmm::virtio::{Interrupter, QueueError, VirtQueue, buffers::ChainBuffers};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::crew::Crew;
use crate::{Reply, Request, RequestHandler, confine::Fence};

/// What the device is called in the log.
const NAME: &str = "fs";
/// The one request that waits for others.
const SETLKW: u32 = Opcode::Setlkw as u32;
/// The most threads of one queue that are replaced while they wait. When even more requests wait for locks, they take
/// threads away from the others: a limit to what a guest can make the host do.
const MAX_WAITING: usize = 256;
/// Threads beyond those asked for that stay when they have nothing to do, so that a lock that is free costs no new thread.
const SPARE: usize = 1;
/// How long the requests that nobody waits for are left alone after some were handled: long against what a kick and an
/// interrupt cost, short against anything that anybody notices.
const LULL: Duration = Duration::from_millis(2);
/// Requests need little, but must never run out.
const STACK_SIZE: usize = 512 * 1024;

/// The threads of a queue. Dropping it stops them and waits until they have ended.
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    index: u16,
    /// How many threads the queue has when none waits.
    base: usize,
    /// Most of what comes has no reply.
    unhurried: bool,
    handler: Arc<dyn RequestHandler>,
    interrupter: Interrupter,
    /// Edge-triggered: written to wake one more thread.
    more: EventFd,
    state: Mutex<State>,
}

struct State {
    /// None once it has failed.
    queue: Option<VirtQueue>,
    /// The threads that take chains; none when stopped.
    crew: Option<Arc<Crew>>,
    counts: Counts,
    /// All threads, those of former crews too.
    handles: Vec<JoinHandle<()>>,
    /// Counts threads, for their names.
    started: usize,
}

/// Threads of the crew.
#[derive(Default)]
struct Counts {
    /// Alive.
    all: usize,
    /// Asleep.
    idle: usize,
    /// In a request that may wait.
    waiting: usize,
}

/// A chain to be handled.
struct Work {
    head: u16,
    request: Request,
    reply: Reply,
}

impl Pool {
    /// Starts `threads` threads on a queue, inside `fence`. Chains that are there already are handled at once. `unhurried`
    /// says that most of what comes has no reply.
    pub(crate) fn start(
        queue: VirtQueue,
        threads: usize,
        unhurried: bool,
        handler: Arc<dyn RequestHandler>,
        fence: Option<&Arc<Fence>>,
    ) -> io::Result<Pool> {
        let pool = Pool {
            shared: Arc::new(Shared {
                index: queue.index(),
                base: threads,
                unhurried,
                handler,
                interrupter: queue.interrupter(),
                more: EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
                state: Mutex::new(State {
                    queue: Some(queue),
                    crew: None,
                    counts: Counts::default(),
                    handles: Vec::new(),
                    started: 0,
                }),
            }),
        };
        pool.renew(fence)?;
        Ok(pool)
    }

    /// Replaces the threads by others, inside `fence`: when this returns, they take the chains, and the ones from before end
    /// as soon as they are done with theirs. On an error nothing has changed.
    pub(crate) fn renew(&self, fence: Option<&Arc<Fence>>) -> io::Result<()> {
        let shared = &self.shared;
        let mut state = shared.lock();
        let Some(queue) = &state.queue else {
            return Ok(());
        };
        let crew = Arc::new(Crew::new(queue, &shared.more)?);
        let (entered, confirmations) = std::sync::mpsc::channel();
        let started = (0..shared.base).try_for_each(|_| {
            let (fence, entered) = (fence.cloned(), entered.clone());
            shared.spawn(&mut state, &crew, move || {
                let entry = fence.map_or(Ok(()), |fence| fence.enter().map(drop));
                let inside = entry.is_ok();
                // The other end waits for exactly these messages, under the lock that this thread needs next.
                let _ = entered.send(entry);
                inside
            })
        });
        drop(entered);
        let started = started.and_then(|()| {
            confirmations
                .iter()
                .try_for_each(|entry| entry.map_err(io::Error::other))
        });
        if started.is_err() {
            crew.wake_to_end();
            return started;
        }
        state.counts = Counts {
            all: shared.base,
            ..Counts::default()
        };
        if let Some(former) = state.crew.replace(crew) {
            former.wake_to_end();
        }
        Ok(())
    }

    /// Tells the threads to stop after the request they are in.
    pub(crate) fn begin_stop(&self) {
        if let Some(crew) = self.shared.lock().crew.take() {
            crew.wake_to_end();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.begin_stop();
        // Without a crew no more of them are started.
        let handles = std::mem::take(&mut self.shared.lock().handles);
        for handle in handles {
            // A panic was reported when it happened.
            let _ = handle.join();
        }
        // The transport learns from its end where the queue stands.
        drop(self.shared.lock().queue.take());
    }
}

impl State {
    /// The counts, for a thread of the crew; a thread of a former one does not count any more.
    fn counts(&mut self, crew: &Arc<Crew>) -> Option<&mut Counts> {
        let current = self.crew.as_ref()?;
        Arc::ptr_eq(current, crew).then_some(&mut self.counts)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a thread that works if `prepare`, which runs on it, says so.
    fn spawn(
        self: &Arc<Self>,
        state: &mut State,
        crew: &Arc<Crew>,
        prepare: impl FnOnce() -> bool + Send + 'static,
    ) -> io::Result<()> {
        let (shared, crew) = (Arc::clone(self), Arc::clone(crew));
        let handle = std::thread::Builder::new()
            .name(format!("fs{}:{}", self.index, state.started))
            .stack_size(STACK_SIZE)
            .spawn(move || {
                umask::clear();
                if prepare() {
                    shared.run(&crew);
                }
            })?;
        state.started += 1;
        state.handles.retain(|handle| !handle.is_finished());
        state.handles.push(handle);
        Ok(())
    }

    /// What a thread does.
    fn run(self: &Arc<Self>, crew: &Arc<Crew>) {
        let mut owed = false;
        self.work(crew, &mut owed);
        self.interrupt(&mut owed);
    }

    /// Handles chains for as long as the thread is needed. `owed` says that the driver is to be interrupted. That is done
    /// with the queue unlocked: it wakes the guest up, and the next kick may wake another thread before the call returns.
    fn work(self: &Arc<Self>, crew: &Arc<Crew>, owed: &mut bool) {
        let mut state = self.lock();
        // Since the thread last slept or paused.
        let mut served = false;
        loop {
            if let Some(work) = self.take(crew, &mut state, served && self.unhurried) {
                state = self.serve(crew, state, work, owed);
                served = true;
                continue;
            }
            let Some(counts) = state.counts(crew) else {
                return;
            };
            if std::mem::take(&mut served) && self.unhurried {
                // Nobody is kicked meanwhile: this thread looks again, whatever comes.
                *owed |= self.with_queue(&mut state, VirtQueue::wants_interrupt) == Some(true);
                drop(state);
                self.interrupt(owed);
                if let Err(error) = crew.pause(LULL) {
                    tracing::error!(device = NAME, %error, "a thread cannot pause");
                }
                state = self.lock();
                continue;
            }
            if counts.all - counts.waiting > self.base + SPARE {
                counts.all -= 1;
                return;
            }
            counts.idle += 1;
            drop(state);
            self.interrupt(owed);
            let slept = crew.sleep();
            state = self.lock();
            let Some(counts) = state.counts(crew) else {
                return;
            };
            counts.idle -= 1;
            if let Err(error) = slept {
                tracing::error!(device = NAME, %error, "a thread cannot sleep until there is work");
                counts.all -= 1;
                return;
            }
        }
    }

    /// Handles a chain, with the queue unlocked.
    fn serve<'a>(
        self: &'a Arc<Self>,
        crew: &Arc<Crew>,
        mut state: MutexGuard<'a, State>,
        work: Work,
        owed: &mut bool,
    ) -> MutexGuard<'a, State> {
        let Work { head, request, reply } = work;
        let may_wait = request.opcode() == Some(SETLKW);
        if may_wait {
            self.replace(crew, &mut state);
        }
        drop(state);
        // For the chain before.
        self.interrupt(owed);
        let room = reply.len();
        let written = self.handler.handle(request, reply).min(room);
        let mut state = self.lock();
        if let Some(counts) = state.counts(crew).filter(|_| may_wait) {
            counts.waiting -= 1;
        }
        let awaited = written > 0 || !self.unhurried;
        let wanted = self.with_queue(&mut state, |queue| {
            queue.add_used(head, u32::try_from(written).unwrap_or(u32::MAX))?;
            Ok(awaited && queue.wants_interrupt()?)
        });
        *owed |= wanted == Some(true);
        state
    }

    /// Interrupts the driver if that is owed.
    fn interrupt(&self, owed: &mut bool) {
        if std::mem::take(owed)
            && let Err(error) = self.interrupter.raise()
        {
            self.with_queue(&mut self.lock(), |_| Err::<(), _>(error));
        }
    }

    /// The next chain. Kicks are asked for when another thread is there to hear them, or when there is no chain; not in that
    /// case when the caller `returns` to look again.
    fn take(&self, crew: &Arc<Crew>, state: &mut State, returns: bool) -> Option<Work> {
        let idle = state.counts(crew)?.idle;
        self.with_queue(state, |queue| {
            let mut promised = false;
            loop {
                if let Some(chain) = queue.pop()? {
                    let head = chain.head_index();
                    let buffers = ChainBuffers::new(queue, chain)?;
                    if idle == 0 {
                        // Whoever is done first looks at the queue again.
                        queue.disable_kicks()?;
                    } else if queue.enable_kicks()? {
                        self.wake_another();
                    }
                    return Ok(Some(Work {
                        head,
                        request: Request::new(buffers.readable),
                        reply: Reply::new(buffers.writable),
                    }));
                }
                if returns {
                    queue.disable_kicks()?;
                    return Ok(None);
                }
                if promised {
                    return Err(queue.chain_error("the available ring cannot be read"));
                }
                promised = queue.enable_kicks()?;
                if !promised {
                    return Ok(None);
                }
            }
        })
        .flatten()
    }

    /// Does something with the queue; none when it has failed, now or before.
    fn with_queue<R>(
        &self,
        state: &mut State,
        act: impl FnOnce(&mut VirtQueue) -> Result<R, QueueError>,
    ) -> Option<R> {
        let queue = state.queue.as_mut()?;
        match act(queue) {
            Ok(result) => Some(result),
            Err(error) => {
                queue.fail(NAME, &error);
                if let Some(crew) = &state.crew {
                    crew.forget(queue);
                }
                state.queue = None;
                None
            }
        }
    }

    fn wake_another(&self) {
        if let Err(error) = self.more.write(1) {
            tracing::warn!(device = NAME, %error, "a thread could not be woken; requests are handled one after the other");
        }
    }

    /// Counts the calling thread as one that may wait, and starts another in its place.
    fn replace(self: &Arc<Self>, crew: &Arc<Crew>, state: &mut State) {
        let Some(counts) = state.counts(crew) else {
            return;
        };
        counts.waiting += 1;
        if counts.all - counts.waiting >= self.base || counts.waiting > MAX_WAITING {
            return;
        }
        // Whatever this thread is confined to, so is one that it starts.
        match self.spawn(state, crew, || true) {
            Ok(()) => state.counts.all += 1,
            Err(error) => tracing::warn!(
                device = NAME,
                %error,
                "no thread could be started for a request that waits; others may have to wait for it"
            ),
        }
    }
}
