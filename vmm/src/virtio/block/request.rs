//! Requests, as the driver lays them out (virtio 1.2, 5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::SECTOR_SIZE;
use crate::virtio::buffers::Readable;

/// The longest range of a DISCARD request: 4 GiB.
pub(super) const MAX_DISCARD_SECTORS: u32 = 8 << 20;
/// The most ranges of a DISCARD request.
pub(super) const MAX_DISCARD_SEGMENTS: u32 = 32;
/// The longest range of a WRITE_ZEROES request, 1 GiB: it may come down to writing that much.
pub(super) const MAX_WRITE_ZEROES_SECTORS: u32 = 2 << 20;

/// A piece of the disk, in bytes; lies within its capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Extent {
    /// The piece of `length` bytes from `sector`, if a disk of `capacity` sectors has it.
    pub(super) fn new(sector: u64, length: u64, capacity: u64) -> Result<Extent, Refusal> {
        if !length.is_multiple_of(SECTOR_SIZE) {
            return Err(Refusal::Invalid);
        }
        let end = sector.checked_add(length / SECTOR_SIZE).ok_or(Refusal::Invalid)?;
        if end > capacity {
            return Err(Refusal::Invalid);
        }
        Ok(Extent {
            // No overflow: the end of the disk is a file size.
            offset: sector * SECTOR_SIZE,
            length,
        })
    }
}

/// Why a request is not even tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It breaks the rules or reaches beyond the disk.
    Invalid,
    /// The device does not know it.
    Unsupported,
}

impl Refusal {
    /// The status byte for the driver.
    pub(super) fn status(self) -> u32 {
        match self {
            Refusal::Invalid => VIRTIO_BLK_S_IOERR,
            Refusal::Unsupported => VIRTIO_BLK_S_UNSUPP,
        }
    }
}

/// One range of a WRITE_ZEROES request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ZeroRange {
    pub(super) extent: Extent,
    pub(super) unmap: bool,
}

/// A request whose every number has been checked against the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read(Extent),
    Write(Extent),
    Flush,
    GetId,
    Discard(Vec<Extent>),
    WriteZeroes(Vec<ZeroRange>),
}

impl Request {
    /// Takes the request header off the front of `readable`, and for DISCARD and WRITE_ZEROES what follows it. `room` is
    /// the space for data, without the status byte; `capacity` the disk's sectors.
    pub(super) fn parse(readable: &mut Readable, room: usize, capacity: u64) -> Result<Request, Refusal> {
        let header: [u8; 16] = readable.read_array().ok_or(Refusal::Invalid)?;
        let [kind @ .., _, _, _, _, _, _, _, _, _, _, _, _] = header;
        let [_, _, _, _, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes(kind) {
            VIRTIO_BLK_T_IN => Ok(Request::Read(Extent::new(sector, room as u64, capacity)?)),
            VIRTIO_BLK_T_OUT => Ok(Request::Write(Extent::new(
                sector,
                readable.len() as u64,
                capacity,
            )?)),
            VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Request::GetId),
            VIRTIO_BLK_T_DISCARD => {
                let mut extents = Vec::new();
                for range in ranges(readable, MAX_DISCARD_SECTORS, capacity)? {
                    // 5.2.6.2: unmap means nothing here and must be refused.
                    if range.unmap {
                        return Err(Refusal::Unsupported);
                    }
                    extents.push(range.extent);
                }
                Ok(Request::Discard(extents))
            }
            VIRTIO_BLK_T_WRITE_ZEROES => Ok(Request::WriteZeroes(ranges(
                readable,
                MAX_WRITE_ZEROES_SECTORS,
                capacity,
            )?)),
            _ => Err(Refusal::Unsupported),
        }
    }
}

/// Reads the struct virtio_blk_discard_write_zeroes that fill the rest of a request.
fn ranges(readable: &mut Readable, max_sectors: u32, capacity: u64) -> Result<Vec<ZeroRange>, Refusal> {
    if readable.is_empty() || readable.len() > MAX_DISCARD_SEGMENTS as usize * 16 {
        return Err(Refusal::Invalid);
    }
    let mut ranges = Vec::new();
    while !readable.is_empty() {
        let sector = u64::from_le_bytes(readable.read_array().ok_or(Refusal::Invalid)?);
        let sectors = u32::from_le_bytes(readable.read_array().ok_or(Refusal::Invalid)?);
        let flags = u32::from_le_bytes(readable.read_array().ok_or(Refusal::Invalid)?);
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return Err(Refusal::Unsupported);
        }
        if sectors > max_sectors {
            return Err(Refusal::Invalid);
        }
        ranges.push(ZeroRange {
            extent: Extent::new(sector, u64::from(sectors) * SECTOR_SIZE, capacity)?,
            unmap: flags != 0,
        });
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn extents_end_where_the_disk_ends() {
        let whole = Extent {
            offset: 0,
            length: 8 * 512,
        };
        assert_eq!(Extent::new(0, 8 * 512, 8), Ok(whole));
        assert_eq!(Extent::new(1, 8 * 512, 8), Err(Refusal::Invalid));
        assert_eq!(Extent::new(0, 511, 8), Err(Refusal::Invalid));
        assert_eq!(Extent::new(u64::MAX, 512, 8), Err(Refusal::Invalid));
        assert_eq!(Extent::new(u64::MAX / 512 + 1, 512, 8), Err(Refusal::Invalid));
        let nothing = Extent {
            offset: 8 * 512,
            length: 0,
        };
        assert_eq!(Extent::new(8, 0, 8), Ok(nothing));
        assert_eq!(Extent::new(9, 0, 8), Err(Refusal::Invalid));
    }

    proptest! {
        #[test]
        fn no_extent_leaves_the_disk(sector: u64, length: u64, capacity in 0u64..1 << 54) {
            if let Ok(extent) = Extent::new(sector, length, capacity) {
                prop_assert_eq!(u128::from(extent.offset), u128::from(sector) * 512);
                let end = u128::from(extent.offset) + u128::from(extent.length);
                prop_assert!(end <= u128::from(capacity) * 512);
            }
        }
    }
}
