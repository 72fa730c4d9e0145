//! Gives ranges of guest memory back to the host.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::BALLOON_PAGE;
use crate::memory::GuestRegions;

/// Turns page numbers, in any order and with repetitions, into runs of adjacent pages: (first, how many). Few large runs
/// mean few system calls, and huge pages that go as a whole.
pub(super) fn runs(pages: &mut [u32]) -> impl Iterator<Item = (u32, u32)> {
    pages.sort_unstable();
    let mut pages = pages.iter().copied().peekable();
    std::iter::from_fn(move || {
        let first = pages.next()?;
        let mut last = first;
        while let Some(next) = pages.next_if(|next| *next == last || last.checked_add(1) == Some(*next)) {
            last = next;
        }
        // At most 2^32 pages in total, and one run of all of them would take as many entries.
        Some((first, last - first + 1))
    })
}

/// Drops the contents of a run of pages, as far as it lies in guest memory. Returns the bytes.
pub(super) fn release_pages(memory: &GuestRegions, first: u32, count: u32) -> u64 {
    let start = u64::from(first) * BALLOON_PAGE;
    let end = start + u64::from(count) * BALLOON_PAGE;
    // Regions are looked at one by one, so that a run across a hole, or one that leaves memory, counts where it is inside.
    let mut released = 0;
    for region in memory.iter() {
        use vm_memory::{Address, GuestMemoryRegion};
        let region_start = region.start_addr().raw_value();
        let from = start.max(region_start);
        let to = end.min(region_start + region.len());
        if from >= to {
            continue;
        }
        for slice in memory
            .get_slices(GuestAddress(from), (to - from) as usize)
            .flatten()
        {
            released += release_slice(memory, &slice);
        }
    }
    released
}

/// Drops the contents of the whole host pages in a slice of guest memory. Returns the bytes.
pub(super) fn release_slice(memory: &GuestRegions, slice: &VolatileSlice<'_>) -> u64 {
    let page = page_size();
    let guard = slice.ptr_guard_mut();
    let from = (guard.as_ptr() as usize).next_multiple_of(page);
    let to = (guard.as_ptr() as usize + slice.len()) / page * page;
    if from >= to {
        return 0;
    }
    // What backs it decides how its pages are dropped; and whatever a slice claims, nothing outside guest memory goes.
    let region = memory.iter().find(|region| {
        let start = region.as_ptr() as usize;
        start <= from && to <= start + region.size()
    });
    let Some(region) = region else {
        return 0;
    };
    // In shared memory DONTNEED would only drop our view of the pages, not the pages.
    let advice = if region.flags() & libc::MAP_SHARED != 0 {
        libc::MADV_REMOVE
    } else {
        libc::MADV_DONTNEED
    };
    // SAFETY: the range lies within one mapping of guest memory, whose contents are the guest's and which no reference of
    // ours points into; the mapping stays in place.
    let result = unsafe { libc::madvise(from as *mut libc::c_void, to - from, advice) };
    if result != 0 {
        let error = io::Error::last_os_error();
        tracing::warn!(%error, "memory could not be given back to the host");
        return 0;
    }
    (to - from) as u64
}

fn page_size() -> usize {
    // SAFETY: the call takes no pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(BALLOON_PAGE as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;

    const PAGE: usize = BALLOON_PAGE as usize;

    #[test]
    fn runs_reach_the_last_page() {
        let mut pages = [u32::MAX, 0, u32::MAX - 1, u32::MAX];
        assert_eq!(runs(&mut pages).collect::<Vec<_>>(), [(0, 1), (u32::MAX - 1, 2)]);
    }

    #[test]
    fn only_what_is_in_memory_is_released() {
        // A hole between two regions, as below 4 GiB.
        let regions =
            GuestRegions::from_ranges(&[(GuestAddress(0), 8 * PAGE), (GuestAddress(12 << 12), 4 * PAGE)])
                .unwrap();
        let fill = || {
            regions.write_slice(&[1; 8 * PAGE], GuestAddress(0)).unwrap();
            regions
                .write_slice(&[1; 4 * PAGE], GuestAddress(12 << 12))
                .unwrap();
        };
        let empty = |page: u64| regions.read_obj::<u8>(GuestAddress(page << 12)).unwrap() == 0;

        fill();
        assert_eq!(release_pages(&regions, 6, 8), 4 * BALLOON_PAGE);
        let emptied: Vec<u64> = (0..8).chain(12..16).filter(|page| empty(*page)).collect();
        assert_eq!(emptied, [6, 7, 12, 13]);

        fill();
        assert_eq!(release_pages(&regions, 8, 4), 0);
        assert_eq!(release_pages(&regions, u32::MAX, 1), 0);
        assert_eq!(release_pages(&regions, 0, u32::MAX), 12 * BALLOON_PAGE);
    }

    #[test]
    fn parts_of_pages_stay() {
        let regions = GuestRegions::from_ranges(&[(GuestAddress(0), 8 * PAGE)]).unwrap();
        regions.write_slice(&[1; 8 * PAGE], GuestAddress(0)).unwrap();
        let slice = regions.get_slice(GuestAddress(100), 2 * PAGE).unwrap();
        assert_eq!(release_slice(&regions, &slice), BALLOON_PAGE);
        let mut bytes = vec![0; 3 * PAGE];
        regions.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        assert!(bytes[..PAGE].iter().all(|byte| *byte == 1));
        assert!(bytes[PAGE..2 * PAGE].iter().all(|byte| *byte == 0));
        assert!(bytes[2 * PAGE..].iter().all(|byte| *byte == 1));
        let slice = regions.get_slice(GuestAddress(100), 100).unwrap();
        assert_eq!(release_slice(&regions, &slice), 0);
        // Memory of another guest.
        let other = GuestRegions::from_ranges(&[(GuestAddress(0), 8 * PAGE)]).unwrap();
        let slice = other.get_slice(GuestAddress(0), PAGE).unwrap();
        assert_eq!(release_slice(&regions, &slice), 0);
    }

    #[test]
    fn shared_memory_is_released_too() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * BALLOON_PAGE).unwrap();
        let offset = vm_memory::FileOffset::new(file, 0);
        let regions =
            GuestRegions::from_ranges_with_files([(GuestAddress(0), 4 * PAGE, Some(offset))]).unwrap();
        regions.write_slice(&[1; 4 * PAGE], GuestAddress(0)).unwrap();
        assert_eq!(release_pages(&regions, 1, 2), 2 * BALLOON_PAGE);
        assert_eq!(regions.read_obj::<u8>(GuestAddress(1 << 12)).unwrap(), 0);
        assert_eq!(regions.read_obj::<u8>(GuestAddress(3 << 12)).unwrap(), 1);
    }

    proptest! {
        /// Runs cover exactly the pages given, in order, and cannot be merged further.
        #[test]
        fn runs_cover_exactly_the_pages(pages in prop::collection::vec(0u32..64, 0..100)) {
            let expected: BTreeSet<u32> = pages.iter().copied().collect();
            let mut pages = pages;
            let runs: Vec<(u32, u32)> = runs(&mut pages).collect();
            let covered: Vec<u32> = runs.iter().flat_map(|(first, count)| *first..first + count).collect();
            prop_assert_eq!(covered, expected.into_iter().collect::<Vec<_>>());
            for pair in runs.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 < pair[1].0);
            }
        }
    }
}
