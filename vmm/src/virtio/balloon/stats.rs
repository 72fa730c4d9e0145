//! The guest's memory statistics (virtio 1.2, 5.5.6.4).

use crate::virtio::buffers::Readable;

/// What the guest says about its memory. Sizes in bytes; none where it says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BalloonStats {
    /// Memory swapped in so far.
    pub swap_in: Option<u64>,
    /// Memory swapped out so far.
    pub swap_out: Option<u64>,
    /// Page faults that needed I/O so far.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Memory used for nothing at all.
    pub free: Option<u64>,
    /// All memory the guest's kernel manages, less the balloon.
    pub total: Option<u64>,
    /// An estimate of what programs could get without swapping.
    pub available: Option<u64>,
    /// Caches that can be dropped.
    pub caches: Option<u64>,
}

/// The most entries that are looked at; the specification knows ten.
const MAX_ENTRIES: usize = 64;

impl BalloonStats {
    /// Reads the entries of a statistics buffer: tag (le16) and value (le64). Tags not known are passed over.
    pub(super) fn parse(mut buffer: Readable) -> BalloonStats {
        let mut stats = BalloonStats::default();
        for _ in 0..MAX_ENTRIES {
            let Some([tag_low, tag_high, value @ ..]) = buffer.read_array::<10>() else {
                break;
            };
            let field = match u16::from_le_bytes([tag_low, tag_high]) {
                0 => &mut stats.swap_in,
                1 => &mut stats.swap_out,
                2 => &mut stats.major_faults,
                3 => &mut stats.minor_faults,
                4 => &mut stats.free,
                5 => &mut stats.total,
                6 => &mut stats.available,
                7 => &mut stats.caches,
                _ => continue,
            };
            *field = Some(u64::from_le_bytes(value));
        }
        stats
    }
}
