//! The server: takes requests apart, checks them, calls the file system, puts replies together.
//!
//! It holds nothing but the session's state, so requests are handled on as many threads as there are. A request costs no
//! allocation here; only values of extended attributes and targets of symbolic links that are set are copied into memory of
//! ours, everything else goes through the stack, and the data of READ and WRITE directly between file and guest.
//!
//! What the guest sends is checked here before a file system sees it: lengths, names, positions, flags. What cannot be
//! understood is answered with EINVAL (names that are too long with ENAMETOOLONG, what FUSE has and this does not with
//! ENOSYS), and requests before INIT with EIO. A request whose reply would not fit into the room the guest gave is refused
//! before anything is done.

mod attributes;
mod bounded;
mod call;
mod directory;
mod file;
mod init;
mod interrupts;
mod locks;
mod names;
mod reply;
mod request;
mod xattr;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::buffers::{ReplyBuffer, RequestBuffer, SplitFront};
use crate::filesystem::{Errno, FileSystem, Result};
use crate::wire::{BatchForgetIn, ForgetIn, ForgetOne, InitInShort, InterruptIn, Opcode, Wire};
use call::Call;
use interrupts::Interrupts;
use reply::Reply;
use request::Request;

pub use init::{MAX_WRITE, NEGOTIABLE};

/// A FUSE session over a file system.
#[derive(Debug)]
pub struct Server<F> {
    fs: Arc<F>,
    /// The features that INIT has turned on, and [`STARTED`]; 0 while INIT is awaited.
    session: AtomicU64,
    /// Held while a session starts or ends.
    changing: Mutex<()>,
    interrupts: Interrupts,
}

/// In [`Server::session`]: INIT has been answered. No feature has this bit.
const STARTED: u64 = 1 << 63;

impl<F: FileSystem> Server<F> {
    /// A server that awaits INIT.
    pub fn new(fs: Arc<F>) -> Self {
        Server {
            fs,
            session: AtomicU64::new(0),
            changing: Mutex::new(()),
            interrupts: Interrupts::default(),
        }
    }

    /// The file system.
    pub fn file_system(&self) -> &Arc<F> {
        &self.fs
    }

    /// The device was reset: ends the session, so that INIT is awaited again, and the waits of requests that are still being
    /// handled (they end with ENOLCK; wait for those calls of [`Self::handle`] to return before guest memory goes away).
    pub fn reset(&self) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.end_session();
    }

    /// With true, ends the waits of all requests (with ENOLCK), and of those to come at once, until called with false: for a
    /// device that stops without a reset and must get its requests back.
    pub fn interrupt_all(&self, on: bool) {
        self.interrupts.interrupt_all(on);
    }

    /// Handles one request, which may take as long as the file system takes; SETLKW waits for its lock. Returns how many
    /// bytes of the reply have been written, always from the front of `reply`: 0 for requests that have no reply, and for those
    /// whose room is too small for any.
    pub fn handle<Q: RequestBuffer, R: ReplyBuffer + SplitFront>(&self, request: Q, reply: R) -> usize {
        let (mut request, number) = match Request::new(request) {
            Ok(taken) => taken,
            Err((unique, error)) => {
                tracing::debug!(unique, "a request whose length cannot be");
                let mut reply = Reply::new(reply, unique);
                reply.error(error);
                return reply.written();
            }
        };
        let mut reply = Reply::new(reply, request.unique);
        let opcode = Opcode::new(number);
        tracing::trace!(number, ?opcode, unique = request.unique, node = request.node);
        let result = match opcode {
            Some(opcode) if !opcode.has_reply() => {
                self.without_reply(opcode, &mut request);
                return 0;
            }
            Some(opcode) => self.with_reply(opcode, request, &mut reply),
            None => Err(Errno(libc::ENOSYS)),
        };
        if let Err(error) = result {
            tracing::trace!(error = error.0);
            reply.error(error);
        }
        reply.written()
    }

    fn with_reply<Q: RequestBuffer, R: ReplyBuffer + SplitFront>(
        &self,
        opcode: Opcode,
        mut request: Request<Q>,
        reply: &mut Reply<R>,
    ) -> Result<()> {
        match reply.room() {
            Some(room) if room >= opcode.reply_size() => {}
            _ => {
                tracing::debug!(?opcode, "a request without room for its reply");
                return Err(Errno(libc::EINVAL));
            }
        }
        if opcode == Opcode::Init {
            return self.init(&mut request, reply);
        }
        let session = self.session.load(Ordering::Acquire);
        if session & STARTED == 0 {
            tracing::debug!(?opcode, "a request before INIT");
            return Err(Errno(libc::EIO));
        }
        if opcode == Opcode::Destroy {
            self.reset();
            return reply.empty();
        }
        Call {
            fs: &*self.fs,
            interrupts: &self.interrupts,
            flags: session,
            request,
            reply,
        }
        .run(opcode)
    }

    fn init<Q: RequestBuffer, R: ReplyBuffer + SplitFront>(
        &self,
        request: &mut Request<Q>,
        reply: &mut Reply<R>,
    ) -> Result<()> {
        let init: InitInShort = request.take()?;
        let flags2 = request.take::<u32>().ok();
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // A guest that starts over without DESTROY or reset (kexec) knows none of the old session's nodes.
        self.end_session();
        match init::negotiate(init, flags2, |offered| self.fs.init(offered))? {
            init::Answer::AskAgain(answer) => reply.one(&answer),
            init::Answer::Start { reply: answer, flags } => {
                tracing::debug!(
                    minor = init.minor,
                    flags = format_args!("{flags:#x}"),
                    "session started"
                );
                self.session.store(flags | STARTED, Ordering::Release);
                reply.one(&answer)
            }
        }
    }

    /// To be called with `changing` held.
    fn end_session(&self) {
        if self.session.swap(0, Ordering::AcqRel) != 0 {
            self.interrupts.end_session();
            self.fs.destroy();
        }
    }

    /// There is nobody to tell that such a request is malformed: what can be understood of it is done.
    fn without_reply<Q: RequestBuffer>(&self, opcode: Opcode, request: &mut Request<Q>) {
        if self.session.load(Ordering::Acquire) & STARTED == 0 {
            return;
        }
        match opcode {
            Opcode::Forget => {
                if let Ok(ForgetIn { nlookup }) = request.take() {
                    self.forget(request.node, nlookup);
                }
            }
            Opcode::BatchForget => self.batch_forget(request),
            Opcode::Interrupt => {
                if let Ok(InterruptIn { unique }) = request.take() {
                    self.interrupts.interrupt(unique);
                }
            }
            // NOTIFY_REPLY: nothing has been asked.
            _ => {}
        }
    }

    fn batch_forget<Q: RequestBuffer>(&self, request: &mut Request<Q>) {
        /// Entries taken at once.
        const CHUNK: usize = 64;
        let Ok(BatchForgetIn { count, .. }) = request.take() else {
            return;
        };
        // No more than there really are, whatever the count says.
        let mut left = (count as usize).min(request.left() / ForgetOne::SIZE);
        let mut bytes = [0; CHUNK * ForgetOne::SIZE];
        while left > 0 {
            let now = left.min(CHUNK);
            let bytes = &mut bytes[..now * ForgetOne::SIZE];
            if request.fill(bytes).is_err() {
                return;
            }
            for one in bytes.chunks_exact(ForgetOne::SIZE).filter_map(ForgetOne::decode) {
                self.forget(one.nodeid, one.nlookup);
            }
            left -= now;
        }
    }

    fn forget(&self, node: u64, count: u64) {
        if count > 0 {
            self.fs.forget(node, count);
        }
    }
}
