//! Taking a request apart. Whatever does not have the form it should is an error here and reaches no file system.

use std::ffi::CStr;

use crate::buffers::RequestBuffer;
use crate::filesystem::{Context, Errno, Result};
use crate::wire::{InHeader, NAME_MAX, Wire, XATTR_NAME_MAX};

/// A request without the structures that have been taken off its front.
pub(super) struct Request<Q> {
    buffer: Q,
    /// Bytes left before the extensions.
    left: usize,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) context: Context,
}

/// The longest structure that a request has.
const LONGEST: usize = 128;

impl<Q: RequestBuffer> Request<Q> {
    /// Takes the header off. When the lengths in it cannot be, the error comes with the request's number.
    pub(super) fn new(mut buffer: Q) -> std::result::Result<(Request<Q>, u32), (u64, Errno)> {
        let whole = buffer.len();
        let mut bytes = [0; InHeader::SIZE];
        let read = buffer.read(&mut bytes);
        let Some(header) = InHeader::decode(&bytes[..read]) else {
            return Err((0, Errno(libc::EINVAL)));
        };
        let extensions = usize::from(header.total_extlen) * 8;
        let left = usize::try_from(header.len)
            .ok()
            .filter(|&len| len <= whole)
            .and_then(|len| len.checked_sub(InHeader::SIZE + extensions));
        let Some(left) = left else {
            return Err((header.unique, Errno(libc::EINVAL)));
        };
        let request = Request {
            buffer,
            left,
            unique: header.unique,
            node: header.nodeid,
            context: Context {
                uid: header.uid,
                gid: header.gid,
                pid: header.pid,
            },
        };
        Ok((request, header.opcode))
    }

    /// Takes a structure off the front; EINVAL when the request ends before.
    pub(super) fn take<T: Wire>(&mut self) -> Result<T> {
        const { assert!(T::SIZE <= LONGEST) };
        let mut bytes = [0; LONGEST];
        let bytes = &mut bytes[..T::SIZE];
        self.fill(bytes)?;
        T::decode(bytes).ok_or(Errno(libc::EINVAL))
    }

    /// Takes the next bytes; EINVAL when the request ends before.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        if bytes.len() > self.left || self.buffer.read(bytes) != bytes.len() {
            return Err(Errno(libc::EINVAL));
        }
        self.left -= bytes.len();
        Ok(())
    }

    /// Bytes left.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// What is left as it lies there: at least [`Self::left`] bytes.
    pub(super) fn data(&mut self) -> &mut Q {
        &mut self.buffer
    }

    /// Takes all that is left into `bytes`; `too_long` when it does not fit.
    pub(super) fn rest<'b>(&mut self, bytes: &'b mut [u8], too_long: i32) -> Result<&'b [u8]> {
        let bytes = bytes.get_mut(..self.left).ok_or(Errno(too_long))?;
        self.fill(bytes)?;
        Ok(bytes)
    }

    /// The one name that is left.
    pub(super) fn name<'b>(&mut self, bytes: &'b mut NameBytes) -> Result<&'b CStr> {
        let rest = self.rest(bytes.for_one(), libc::ENAMETOOLONG)?;
        entry_name(whole_string(rest)?)
    }

    /// The two names that are left.
    pub(super) fn two_names<'b>(&mut self, bytes: &'b mut NameBytes) -> Result<(&'b CStr, &'b CStr)> {
        let rest = self.rest(&mut bytes.0, libc::ENAMETOOLONG)?;
        let (first, rest) = first_string(rest)?;
        Ok((entry_name(first)?, entry_name(whole_string(rest)?)?))
    }

    /// The name of an extended attribute that is left.
    pub(super) fn xattr_name<'b>(&mut self, bytes: &'b mut NameBytes) -> Result<&'b CStr> {
        let rest = self.rest(&mut bytes.0[..XATTR_NAME_MAX + 1], libc::ERANGE)?;
        xattr_name(whole_string(rest)?)
    }
}

/// Room for two names, each with its NUL.
pub(super) struct NameBytes([u8; 2 * (NAME_MAX + 1)]);

impl NameBytes {
    pub(super) fn new() -> NameBytes {
        NameBytes([0; 2 * (NAME_MAX + 1)])
    }

    /// Room for one.
    pub(super) fn for_one(&mut self) -> &mut [u8] {
        &mut self.0[..NAME_MAX + 1]
    }
}

/// The string up to and with the first NUL, and what follows.
pub(super) fn first_string(bytes: &[u8]) -> Result<(&CStr, &[u8])> {
    let string = CStr::from_bytes_until_nul(bytes).map_err(|_| Errno(libc::EINVAL))?;
    Ok((string, &bytes[string.count_bytes() + 1..]))
}

/// The string that all of `bytes` is, its NUL the last byte and the only one.
pub(super) fn whole_string(bytes: &[u8]) -> Result<&CStr> {
    CStr::from_bytes_with_nul(bytes).map_err(|_| Errno(libc::EINVAL))
}

/// A name that a directory can have. `.` and `..` are not: a kernel resolves them itself.
pub(super) fn entry_name(name: &CStr) -> Result<&CStr> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(Errno(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(Errno(libc::EINVAL)),
        bytes if bytes.len() > NAME_MAX => Err(Errno(libc::ENAMETOOLONG)),
        _ => Ok(name),
    }
}

/// A name that an extended attribute can have; ERANGE as setxattr(2) answers to others.
pub(super) fn xattr_name(name: &CStr) -> Result<&CStr> {
    match name.count_bytes() {
        1..=XATTR_NAME_MAX => Ok(name),
        _ => Err(Errno(libc::ERANGE)),
    }
}

/// A position or size in a file, which is at most `i64::MAX`.
pub(super) fn position(value: u64) -> Result<u64> {
    i64::try_from(value)
        .map(|_| value)
        .map_err(|_| Errno(libc::EINVAL))
}

/// A stretch of a file that ends at most at `i64::MAX`.
pub(super) fn range(start: u64, length: u64) -> Result<()> {
    let end = start.checked_add(length).ok_or(Errno(libc::EFBIG))?;
    position(start)?;
    i64::try_from(end).map(|_| ()).map_err(|_| Errno(libc::EFBIG))
}
