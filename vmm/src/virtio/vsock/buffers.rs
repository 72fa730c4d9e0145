//! The memory a descriptor chain points to, as one run of bytes.
//!
//! A packet may be cut into descriptors anywhere (virtio 1.2, 2.7.4): header and data in one, in two, or each in many. Linux
//! sends packets of more than 32 KiB in several since 2025.

use std::{io, os::fd::AsRawFd};

use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use super::{packet::HEADER_SIZE, socket};
use crate::virtio::Chain;

/// The most pieces a packet may be in. Linux needs 18; more than this is not a packet but an attack on our time.
const MAX_PIECES: usize = 1024;

/// The readable or the writable part of a chain, checked to lie in guest memory.
pub(super) struct GuestBuffers<'a> {
    pieces: Vec<VolatileSlice<'a>>,
    length: usize,
}

impl<'a> GuestBuffers<'a> {
    /// The part the driver filled.
    pub(super) fn readable(chain: &'a Chain) -> Result<GuestBuffers<'a>, &'static str> {
        Self::collect(chain, false)
    }

    /// The part the device is to fill.
    pub(super) fn writable(chain: &'a Chain) -> Result<GuestBuffers<'a>, &'static str> {
        Self::collect(chain, true)
    }

    fn collect(chain: &'a Chain, writable: bool) -> Result<GuestBuffers<'a>, &'static str> {
        let access = if writable {
            Permissions::Write
        } else {
            Permissions::Read
        };
        let memory = chain.memory();
        let mut pieces = Vec::with_capacity(2);
        let mut length = 0;
        for descriptor in chain.clone() {
            if descriptor.is_write_only() != writable {
                continue;
            }
            let size = descriptor.len() as usize;
            let slices = memory
                .get_slices(descriptor.addr(), size, access)
                .map_err(|_| "a descriptor points outside guest memory")?;
            for slice in slices {
                if pieces.len() == MAX_PIECES {
                    return Err("a packet is in too many pieces");
                }
                pieces.push(slice.map_err(|_| "a descriptor points outside guest memory")?);
            }
            // A chain yields less than 2^32 bytes.
            length += size;
        }
        Ok(GuestBuffers { pieces, length })
    }

    /// How many bytes there are.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// The first bytes, which hold the header; none when there are fewer.
    pub(super) fn read_header(&self) -> Option<[u8; HEADER_SIZE]> {
        let mut header = [0; HEADER_SIZE];
        let mut filled = 0;
        for piece in &self.pieces {
            filled += piece.copy_to(&mut header[filled..]);
            if filled == HEADER_SIZE {
                return Some(header);
            }
        }
        None
    }

    /// Writes the header to the front. There is room: the caller has looked at [`Self::len`].
    pub(super) fn write_header(&self, header: &[u8; HEADER_SIZE]) {
        let mut rest: &[u8] = header;
        for piece in &self.pieces {
            let length = rest.len().min(piece.len());
            let (now, later) = rest.split_at(length);
            piece.copy_from(now);
            rest = later;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Appends the bytes from `offset` to `offset + length`, which exist, to `out`.
    pub(super) fn append_to(&self, offset: usize, length: usize, out: &mut impl Extend<u8>) {
        let mut chunk = [0; 4096];
        self.for_each(offset, length, |piece| {
            let mut at = 0;
            while at < piece.len() {
                let Ok(rest) = piece.offset(at) else { return };
                let copied = rest.copy_to(&mut chunk[..]);
                out.extend(chunk[..copied].iter().copied());
                at += copied;
            }
        });
    }

    /// Sends the bytes from `offset` to `offset + length`, which exist, to a socket; as many as it takes now.
    pub(super) fn send_to(&self, socket: &impl AsRawFd, offset: usize, length: usize) -> io::Result<usize> {
        let mut list = socket::IoList::new();
        self.for_each(offset, length, |piece| list.push(piece));
        list.send(socket)
    }

    /// Receives from a socket into the bytes from `offset` to `offset + length`, which exist; as many as there are now.
    pub(super) fn receive_from(
        &self,
        socket: &impl AsRawFd,
        offset: usize,
        length: usize,
    ) -> io::Result<usize> {
        let mut list = socket::IoList::new();
        self.for_each(offset, length, |piece| list.push(piece));
        list.receive(socket)
    }

    fn for_each(&self, mut offset: usize, mut length: usize, mut f: impl FnMut(VolatileSlice<'a>)) {
        for piece in &self.pieces {
            if offset >= piece.len() {
                offset -= piece.len();
                continue;
            }
            let now = length.min(piece.len() - offset);
            if now == 0 {
                return;
            }
            // In range by the arithmetic above.
            let Ok(part) = piece.subslice(offset, now) else {
                return;
            };
            f(part);
            offset = 0;
            length -= now;
        }
    }
}
