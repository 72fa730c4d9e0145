//! Requests about open directories.

use super::call::Call;
use super::file::open_flags;
use crate::buffers::{ReplyBuffer, RequestBuffer, SplitFront};
use crate::filesystem::{DirSink, Entry, Errno, FileSystem, Result};
use crate::wire::{
    Dirent, Direntplus, Encoder, EntryOut, FSYNC_FDATASYNC, FsyncIn, OpenIn, ReadIn, ReleaseIn, SUBMOUNTS,
    Wire, record_padding, record_size,
};

impl<F: FileSystem, Q: RequestBuffer, R: ReplyBuffer + SplitFront> Call<'_, F, Q, R> {
    pub(super) fn opendir(&mut self) -> Result<()> {
        let arg: OpenIn = self.request.take()?;
        let flags = open_flags(arg.flags)?;
        let opened = self.fs.opendir(&self.request.context, self.request.node, flags)?;
        self.opened(opened)
    }

    pub(super) fn readdir(&mut self, plus: bool) -> Result<()> {
        let arg: ReadIn = self.request.take()?;
        let submounts = self.has(SUBMOUNTS);
        let (fs, request) = (self.fs, &self.request);
        self.reply.data(|room| {
            let mut sink = Sink {
                // Widening: a u32.
                left: room.len().min(arg.size as usize),
                room,
                plus,
                submounts,
                state: State::Empty,
            };
            let result = fs.readdir(&request.context, request.node, arg.fh, arg.offset, &mut sink);
            match (sink.state, result) {
                (State::Filled, Ok(())) => Ok(()),
                // What is there is given: lookups in it have been counted, and the next request meets the error again.
                (State::Filled, Err(error)) => {
                    tracing::debug!(
                        node = request.node,
                        error = error.0,
                        "readdir failed after some entries"
                    );
                    Ok(())
                }
                // No entry would mean the end of the directory.
                (State::Full, Ok(())) => Err(Errno(libc::EINVAL)),
                (State::Empty, Ok(())) => Ok(()),
                (_, Err(error)) => Err(error),
            }
        })
    }

    pub(super) fn fsyncdir(&mut self) -> Result<()> {
        let arg: FsyncIn = self.request.take()?;
        let datasync = arg.fsync_flags & FSYNC_FDATASYNC != 0;
        self.fs
            .fsyncdir(&self.request.context, self.request.node, arg.fh, datasync)?;
        self.reply.empty()
    }

    pub(super) fn releasedir(&mut self) -> Result<()> {
        let arg: ReleaseIn = self.request.take()?;
        self.fs
            .releasedir(&self.request.context, self.request.node, arg.fh)?;
        self.reply.empty()
    }
}

/// What has become of the entries.
enum State {
    /// None has come.
    Empty,
    /// None has fitted.
    Full,
    /// Some are in the reply.
    Filled,
}

/// Puts entries into the reply as they come.
struct Sink<'a, R> {
    room: &'a mut R,
    /// Bytes that may still be put.
    left: usize,
    plus: bool,
    submounts: bool,
    state: State,
}

impl<R: ReplyBuffer> Sink<'_, R> {
    /// Bytes of an entry's structure.
    fn fixed(&self) -> usize {
        if self.plus { Direntplus::SIZE } else { Dirent::SIZE }
    }

    fn put<T: Wire>(&mut self, fixed: &T, name: &[u8]) -> bool {
        if !self.fits(name) {
            if matches!(self.state, State::Empty) {
                self.state = State::Full;
            }
            // After one that did not fit no shorter one may follow: the offset to go on from is the last one's.
            self.left = 0;
            return false;
        }
        const { assert!(T::SIZE <= Direntplus::SIZE) };
        let mut bytes = [0; Direntplus::SIZE];
        fixed.put(&mut Encoder::new(&mut bytes));
        self.room.write(&bytes[..T::SIZE]);
        self.room.write(name);
        self.room.write(&[0; 8][..record_padding(T::SIZE + name.len())]);
        self.left -= record_size(T::SIZE, name.len());
        self.state = State::Filled;
        true
    }
}

impl<R: ReplyBuffer> DirSink for Sink<'_, R> {
    fn plus(&self) -> bool {
        self.plus
    }

    fn fits(&self, name: &[u8]) -> bool {
        record_size(self.fixed(), name.len()) <= self.left
    }

    fn add(&mut self, ino: u64, next: u64, kind: u8, name: &[u8]) -> bool {
        if self.plus {
            return self.add_plus(None, ino, next, kind, name);
        }
        self.put(&dirent(ino, next, kind, name), name)
    }

    fn add_plus(&mut self, entry: Option<&Entry>, ino: u64, next: u64, kind: u8, name: &[u8]) -> bool {
        debug_assert!(self.plus, "entries with attributes are for READDIRPLUS");
        let record = Direntplus {
            entry_out: entry.map_or_else(EntryOut::default, |entry| EntryOut::new(entry, self.submounts)),
            dirent: dirent(ino, next, kind, name),
        };
        self.put(&record, name)
    }
}

fn dirent(ino: u64, off: u64, kind: u8, name: &[u8]) -> Dirent {
    Dirent {
        ino,
        off,
        // Names are at most 255 bytes.
        namelen: u32::try_from(name.len()).unwrap_or(u32::MAX),
        kind: u32::from(kind),
    }
}
