//! The image file: opening, locking, and what requests do to it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{SECTOR_SIZE, health::BlockHealth, request::Extent};
use crate::virtio::buffers::{Readable, Writable};

/// Why a file cannot serve as a disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It could not be opened.
    #[error("it could not be opened; check that it exists and that its owner is the user of this program")]
    Open(#[source] io::Error),
    /// It is a directory, device or anything else.
    #[error("it is not a regular file")]
    NotAFile,
    /// It does not even hold one sector.
    #[error("its size is {0} bytes, less than a sector of 512 bytes")]
    TooSmall(u64),
    /// Somebody else has it.
    #[error("another virtual machine uses it; stop that machine first")]
    InUse,
    /// The lock could not be taken for another reason.
    #[error("it could not be locked; its file system may not support locks")]
    Lock(#[source] io::Error),
}

/// An open, locked image. Methods work on checked extents and are safe to call from several threads.
pub(super) struct Image {
    file: File,
    read_only: bool,
    sectors: u64,
    can_discard: bool,
    /// Cleared when the file system turns out not to support it.
    can_zero_range: AtomicBool,
    /// Whether a flush has failed. Held during a flush, because the kernel reports a failed write-back to one caller
    /// only: a concurrent flush must not pass for a success.
    flush_failed: Mutex<bool>,
    health: BlockHealth,
}

impl Image {
    pub(super) fn open(path: &Path, read_only: bool) -> Result<Image, ImageError> {
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            // Does not wait for the other end of a fifo; means nothing for a regular file.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(ImageError::Open)?;
        let metadata = file.metadata().map_err(ImageError::Open)?;
        if !metadata.is_file() {
            return Err(ImageError::NotAFile);
        }
        if metadata.len() < SECTOR_SIZE {
            return Err(ImageError::TooSmall(metadata.len()));
        }
        lock(&file, read_only)?;
        // Beyond the end of the file there is nothing to lose.
        let can_discard =
            !read_only && punch_hole(&file, metadata.len().next_multiple_of(4096), 4096).is_ok();
        Ok(Image {
            file,
            read_only,
            sectors: metadata.len() / SECTOR_SIZE,
            can_discard,
            can_zero_range: AtomicBool::new(true),
            flush_failed: Mutex::new(false),
            health: BlockHealth::default(),
        })
    }

    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn can_discard(&self) -> bool {
        self.can_discard
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(super) fn health(&self) -> &BlockHealth {
        &self.health
    }

    /// Reads from `offset` until `data` is full.
    pub(super) fn read(&self, offset: u64, data: &mut Writable) -> io::Result<()> {
        self.recorded(data.read_exact_at(self.file.as_fd(), offset))
    }

    /// Writes all of `data` at `offset`.
    pub(super) fn write(&self, offset: u64, data: &mut Readable) -> io::Result<()> {
        self.recorded(data.write_all_at(self.file.as_fd(), offset))
    }

    /// Gives the space of an extent back to the host; it reads as zeroes afterwards.
    pub(super) fn discard(&self, extent: Extent) -> io::Result<()> {
        self.recorded(punch_hole(&self.file, extent.offset, extent.length))
    }

    /// Makes an extent read as zeroes; gives its space back if `unmap`, else keeps or takes it.
    pub(super) fn write_zeroes(&self, extent: Extent, unmap: bool) -> io::Result<()> {
        if unmap && self.can_discard {
            return self.discard(extent);
        }
        if self.can_zero_range.load(Ordering::Relaxed) {
            let result = fallocate(
                &self.file,
                libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                extent.offset,
                extent.length,
            );
            match result {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    self.can_zero_range.store(false, Ordering::Relaxed);
                }
                other => return self.recorded(other),
            }
        }
        self.recorded(self.write_plain_zeroes(extent))
    }

    fn write_plain_zeroes(&self, extent: Extent) -> io::Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let mut done = 0;
        while done < extent.length {
            let count = (extent.length - done).min(ZEROES.len() as u64);
            self.file
                .write_all_at(&ZEROES[..count as usize], extent.offset + done)?;
            done += count;
        }
        Ok(())
    }

    /// Makes every write acknowledged so far durable. Fails for ever after it has failed once.
    pub(super) fn flush(&self) -> io::Result<()> {
        let mut failed = self.flush_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if *failed {
            return Err(io::Error::other("an earlier flush has failed"));
        }
        self.file.sync_data().inspect_err(|error| {
            *failed = true;
            self.health.record_flush_failure(error);
        })
    }

    fn recorded(&self, result: io::Result<()>) -> io::Result<()> {
        result.inspect_err(|error| self.health.record(error))
    }
}

/// Takes a lock that belongs to the open file, not to the process, and goes with it.
fn lock(file: &File, shared: bool) -> Result<(), ImageError> {
    // SAFETY: flock is plain data; all-zero means the whole file, and a pid of 0, which this kind of lock requires.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = if shared { libc::F_RDLCK } else { libc::F_WRLCK } as libc::c_short;
    request.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open and `request` is a valid flock for the time of the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(ImageError::InUse),
        _ => Err(ImageError::Lock(error)),
    }
}

fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
    fallocate(
        file,
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        offset,
        length,
    )
}

fn fallocate(file: &File, mode: libc::c_int, offset: u64, length: u64) -> io::Result<()> {
    let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = libc::off_t::try_from(offset).map_err(too_far)?;
    let length = libc::off_t::try_from(length).map_err(too_far)?;
    loop {
        // SAFETY: the call takes no pointers.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
