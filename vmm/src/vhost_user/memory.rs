//! The guest's memory, as the front end describes it.

use std::{fs::File, io, sync::Arc};

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::memory::{GuestRam, GuestRegions};

/// The regions of guest memory with the addresses the front end knows them by.
pub(super) struct MemoryTable {
    ram: GuestRam,
    regions: Vec<Region>,
}

struct Region {
    mapping: Arc<GuestRegionMmap<()>>,
    /// Where the region lies in the front end's address space.
    user_address: u64,
}

impl Region {
    fn map(description: &VhostUserMemoryRegion, file: File) -> io::Result<Region> {
        // By value: the fields of a packed structure.
        let (guest, size, user, offset) = (
            description.guest_phys_addr,
            description.memory_size,
            description.user_addr,
            description.mmap_offset,
        );
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        if user.checked_add(size).is_none() {
            return Err(invalid("a memory region wraps around"));
        }
        let length = usize::try_from(size).map_err(|_| invalid("a memory region is too large"))?;
        // A mapping past the end of its file can be made, but touching it kills the process.
        let metadata = file.metadata()?;
        if offset
            .checked_add(size)
            .is_none_or(|end| metadata.is_file() && metadata.len() < end)
        {
            return Err(invalid("a memory region is larger than its file"));
        }
        let mapping = MmapRegion::build(
            Some(FileOffset::new(file, offset)),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        )
        .map_err(io::Error::other)?;
        let mapping = GuestRegionMmap::new(mapping, GuestAddress(guest))
            .ok_or_else(|| invalid("a memory region wraps around"))?;
        Ok(Region {
            mapping: Arc::new(mapping),
            user_address: user,
        })
    }

    fn is(&self, description: &VhostUserMemoryRegion) -> bool {
        let (guest, size, user) = (
            description.guest_phys_addr,
            description.memory_size,
            description.user_addr,
        );
        self.mapping.start_addr().0 == guest && self.mapping.len() == size && self.user_address == user
    }
}

impl MemoryTable {
    /// No memory.
    pub(super) fn new() -> MemoryTable {
        MemoryTable {
            ram: GuestRam::new(GuestRegions::default()),
            regions: Vec::new(),
        }
    }

    /// The memory, as devices see it; it follows every change of the table.
    pub(super) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Replaces all regions.
    pub(super) fn replace(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> io::Result<()> {
        let regions = regions
            .iter()
            .zip(files)
            .map(|(region, file)| Region::map(region, file))
            .collect::<io::Result<Vec<_>>>()?;
        self.publish(regions)
    }

    /// Adds a region.
    pub(super) fn add(&mut self, region: &VhostUserMemoryRegion, file: File) -> io::Result<()> {
        let mut regions = self.take_copy();
        regions.push(Region::map(region, file)?);
        self.publish(regions)
    }

    /// Removes a region; it need not be there.
    pub(super) fn remove(&mut self, region: &VhostUserMemoryRegion) -> io::Result<()> {
        let mut regions = self.take_copy();
        regions.retain(|known| !known.is(region));
        self.publish(regions)
    }

    fn take_copy(&self) -> Vec<Region> {
        self.regions
            .iter()
            .map(|region| Region {
                mapping: Arc::clone(&region.mapping),
                user_address: region.user_address,
            })
            .collect()
    }

    fn publish(&mut self, mut regions: Vec<Region>) -> io::Result<()> {
        regions.sort_by_key(|region| region.mapping.start_addr());
        let mappings: Vec<_> = regions.iter().map(|region| Arc::clone(&region.mapping)).collect();
        let collection = if mappings.is_empty() {
            GuestRegions::default()
        } else {
            // Fails when regions overlap.
            GuestRegions::from_arc_regions(mappings).map_err(io::Error::other)?
        };
        self.ram
            .lock()
            .map_err(|_| io::Error::other("the memory table's lock is poisoned"))?
            .replace(collection);
        self.regions = regions;
        Ok(())
    }

    /// The guest address of an address of the front end's, if it is guest memory.
    pub(super) fn guest_address(&self, user_address: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = user_address.checked_sub(region.user_address)?;
            (offset < region.mapping.len()).then(|| GuestAddress(region.mapping.start_addr().0 + offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryBackend};

    use super::*;

    fn file(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file
    }

    #[test]
    fn addresses_are_translated_by_region() {
        let mut table = MemoryTable::new();
        let low = VhostUserMemoryRegion::new(0, 0x2000, 0x7000_0000, 0);
        let high = VhostUserMemoryRegion::new(0x1_0000_0000, 0x1000, 0x7000_2000, 0x2000);
        let backing = file(0x3000);
        table
            .replace(&[high, low], vec![backing.try_clone().unwrap(), backing])
            .unwrap();
        assert_eq!(table.guest_address(0x7000_1fff), Some(GuestAddress(0x1fff)));
        assert_eq!(
            table.guest_address(0x7000_2010),
            Some(GuestAddress(0x1_0000_0010))
        );
        assert_eq!(table.guest_address(0x7000_3000), None);
        assert_eq!(table.guest_address(0), None);
    }

    #[test]
    fn regions_share_the_file() {
        let mut table = MemoryTable::new();
        let backing = file(0x2000);
        let region = VhostUserMemoryRegion::new(0x1000, 0x1000, 0x1_0000, 0x1000);
        table
            .replace(&[region], vec![backing.try_clone().unwrap()])
            .unwrap();
        table
            .ram()
            .memory()
            .write_slice(b"seen", GuestAddress(0x1000))
            .unwrap();
        let mut seen = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&backing, &mut seen, 0x1000).unwrap();
        assert_eq!(&seen, b"seen");
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let mut table = MemoryTable::new();
        let good = VhostUserMemoryRegion::new(0, 0x1000, 0x1_0000, 0);
        table.replace(&[good], vec![file(0x1000)]).unwrap();
        let past_the_file = VhostUserMemoryRegion::new(0x1000, 0x2000, 0x2_0000, 0);
        assert!(table.add(&past_the_file, file(0x1000)).is_err());
        let overlapping = VhostUserMemoryRegion::new(0x800, 0x1000, 0x2_0000, 0);
        assert!(table.add(&overlapping, file(0x1000)).is_err());
        let wrapping = VhostUserMemoryRegion::new(u64::MAX - 0x800, 0x1000, 0x2_0000, 0);
        assert!(table.add(&wrapping, file(0x1000)).is_err());
        assert_eq!(table.ram().memory().num_regions(), 1);
    }

    #[test]
    fn regions_come_and_go_one_by_one() {
        let mut table = MemoryTable::new();
        let first = VhostUserMemoryRegion::new(0, 0x1000, 0x1_0000, 0);
        let second = VhostUserMemoryRegion::new(0x4000, 0x1000, 0x2_0000, 0);
        table.add(&first, file(0x1000)).unwrap();
        table.add(&second, file(0x1000)).unwrap();
        table.remove(&first).unwrap();
        assert_eq!(table.guest_address(0x1_0000), None);
        assert_eq!(table.guest_address(0x2_0001), Some(GuestAddress(0x4001)));
        table.remove(&second).unwrap();
        assert_eq!(table.ram().memory().num_regions(), 0);
    }
}
