//! A guest's memory with nothing on either side of it: whoever leaves it is caught by the processor.

use std::{io, ptr::null_mut};

use vm_memory::{GuestAddress, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::{
    memory::{GuestRam, GuestRegions},
    virtio::test_driver::{MEMORY_SIZE, TestMachine},
};

const SMALL: usize = 64 << 10;
/// Where the regions begin in the guest, and their sizes. The second follows the first without a gap in the guest, but not in
/// the host.
const REGIONS: [(u64, usize); 3] = [(0, MEMORY_SIZE), (MEMORY_SIZE as u64, SMALL), (4 << 30, SMALL)];
/// Addresses at which regions begin and end.
pub(super) const EDGES: &[u64] = &[
    0,
    MEMORY_SIZE as u64,
    (MEMORY_SIZE + SMALL) as u64,
    4 << 30,
    (4 << 30) + SMALL as u64,
    0,
];
const GUARD: usize = 2 << 20;

thread_local! {
    /// Never unmapped, so that no pointer of a device can outlive it.
    static REGION_ADDRESSES: Vec<usize> = REGIONS.iter().map(|(_, size)| reserve(*size)).collect();
}

/// A machine with blank memory. There is one memory for each thread: only one machine of a thread can be in use.
pub(super) fn machine() -> TestMachine {
    let regions = REGION_ADDRESSES.with(|addresses| {
        addresses
            .iter()
            .zip(REGIONS)
            .map(|(address, (start, size))| region(*address, start, size))
            .collect()
    });
    TestMachine {
        memory: GuestRam::new(GuestRegions::from_regions(regions).unwrap()),
        interrupt: Default::default(),
    }
}

/// Maps `size` bytes that may be touched with guards around them that may not. Returns where.
fn reserve(size: usize) -> usize {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice, of which a part is made accessible.
    unsafe {
        let start = libc::mmap(null_mut(), size + 2 * GUARD, libc::PROT_NONE, flags, -1, 0);
        assert_ne!(start, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        let inside = start.byte_add(GUARD);
        assert_eq!(
            libc::mprotect(inside, size, prot),
            0,
            "{}",
            io::Error::last_os_error()
        );
        inside as usize
    }
}

fn region(address: usize, start: u64, size: usize) -> GuestRegionMmap {
    let pointer = address as *mut u8;
    // SAFETY: `reserve` mapped exactly this, for ever; it holds nothing but what guests of this thread have left there.
    let mapping = unsafe {
        libc::madvise(pointer.cast(), size, libc::MADV_DONTNEED);
        MmapRegion::build_raw(
            pointer,
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        )
    };
    let region = GuestRegionMmap::new(mapping.unwrap(), GuestAddress(start)).unwrap();
    debug_assert_eq!(region.len(), size as u64);
    region
}
