//! The configuration space (virtio 1.2, 5.2.4): struct virtio_blk_config, little-endian.

use super::request::{MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, MAX_WRITE_ZEROES_SECTORS};

/// Bytes up to and including the fields of WRITE_ZEROES.
pub(super) const SIZE: usize = 60;
/// Where `writeback` lies.
pub(super) const WRITE_BACK_OFFSET: u64 = 32;

/// The largest single segment, in bytes. Any would do: nothing is copied. The bound keeps one request's time bounded.
const SIZE_MAX: u32 = 4 << 20;
/// What a guest addresses, in bytes.
const BLOCK_SIZE: u32 = 512;
/// What the host prefers: 2^3 blocks, its page size.
const PHYSICAL_BLOCK_EXP: u8 = 3;
const PHYSICAL_BLOCK_SECTORS: u16 = 1 << PHYSICAL_BLOCK_EXP;

pub(super) struct ConfigSpace {
    pub(super) sectors: u64,
    pub(super) seg_max: u32,
    pub(super) write_back: bool,
    pub(super) queues: u16,
}

impl ConfigSpace {
    pub(super) fn to_bytes(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let mut put =
            |offset: usize, field: &[u8]| bytes[offset..offset + field.len()].copy_from_slice(field);
        put(0, &self.sectors.to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &self.seg_max.to_le_bytes());
        // 16: geometry, not offered.
        put(20, &BLOCK_SIZE.to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXP]);
        // 25: alignment_offset 0.
        put(26, &PHYSICAL_BLOCK_SECTORS.to_le_bytes());
        // 28: opt_io_size 0, no preference.
        put(WRITE_BACK_OFFSET as usize, &[u8::from(self.write_back)]);
        put(34, &self.queues.to_le_bytes());
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &MAX_DISCARD_SEGMENTS.to_le_bytes());
        put(44, &u32::from(PHYSICAL_BLOCK_SECTORS).to_le_bytes());
        put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
        // One range per WRITE_ZEROES request is all that drivers send.
        put(52, &1u32.to_le_bytes());
        // write_zeroes_may_unmap
        put(56, &[1]);
        bytes
    }
}
