//! Guest memory, as every part of the crate sees it.

use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap, mmap::FromRangesError};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// The mapped regions of a guest.
pub type GuestRegions = GuestMemoryMmap<()>;
/// A shared handle to them. Atomic because a vhost-user front end may replace its memory table while a device runs.
pub type GuestRam = GuestMemoryAtomic<GuestRegions>;
/// The memory a descriptor chain points into, kept alive while the chain is.
pub type GuestRamGuard = <GuestRam as GuestAddressSpace>::T;

/// The size of a huge page on the host, and so the alignment at which one can back guest memory.
const HUGE_PAGE: usize = 2 << 20;

/// Maps private anonymous memory for a guest: (first address, bytes) each, in ascending order.
///
/// Pages come from the host as they are touched, as huge pages where it can give them.
pub fn allocate(ranges: &[(GuestAddress, usize)]) -> Result<GuestRegions, FromRangesError> {
    let mut regions = GuestRegions::from_ranges(ranges)?;
    let shortage = regions.iter().map(misalignment).find(|bytes| *bytes != 0);
    if let Some(shortage) = shortage {
        // The kernel maps downwards from the lowest mapping: with this much in between, the next attempt starts at a
        // huge page. Where it does not work out, the guest is slower and otherwise none the worse.
        drop(regions);
        let filler = vm_memory::MmapRegion::<()>::new(shortage).map_err(FromRangesError::from);
        regions = GuestRegions::from_ranges(ranges)?;
        drop(filler);
    }
    for region in regions.iter() {
        advise(region);
    }
    Ok(regions)
}

/// How far the host address of a region is past a huge page, given that its guest address is at one.
fn misalignment(region: &vm_memory::GuestRegionMmap) -> usize {
    if region.size() < HUGE_PAGE {
        return 0;
    }
    region.as_ptr() as usize % HUGE_PAGE
}

fn advise(region: &vm_memory::GuestRegionMmap) {
    // Huge pages: fewer faults and shorter page walks. No dump: a guest's memory does not belong in the host's core
    // files. No fork: a child of this process must not make the guest's pages copy-on-write.
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
        // SAFETY: the range is exactly one mapping that `region` owns, and none of the advices changes its contents.
        let result = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
        if result != 0 {
            // A kernel without the feature; each is an optimisation or a precaution, not a need.
            let error = std::io::Error::last_os_error();
            tracing::debug!(advice, %error, "the host does not take an advice about guest memory");
        }
    }
}

/// The number of bytes of guest memory.
pub fn total_size(regions: &GuestRegions) -> u64 {
    regions.iter().map(GuestMemoryRegion::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_mapped_where_asked() {
        let regions = allocate(&[
            (GuestAddress(0), 4 << 20),
            (GuestAddress(4 << 30), (2 << 20) + 4096),
        ])
        .unwrap();
        assert_eq!(total_size(&regions), (6 << 20) + 4096);
        assert!(regions.address_in_range(GuestAddress((4 << 20) - 1)));
        assert!(!regions.address_in_range(GuestAddress(4 << 20)));
        assert!(regions.address_in_range(GuestAddress(4 << 30)));
    }
}
