//! The guest's physical address space.
//!
//! ```text
//! 0                  512 MiB … 3 GiB    low RAM: boot structures below 1 MiB, then the kernel, the initrd at its top
//! 0xc000_0000        hole, to 4 GiB: virtio-mmio from 0xd000_0000, IO-APIC, APIC, KVM's own pages
//! 0x1_0000_0000      the rest of RAM
//! ```

use vm_memory::GuestAddress;

/// The hole for devices begins here; RAM goes on at [`HIGH_RAM_START`].
pub const HOLE_START: u64 = 0xc000_0000;
/// The first byte of RAM above the hole.
pub const HIGH_RAM_START: u64 = 1 << 32;

/// The global descriptor table that the boot processor starts with.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// The "zero page": `struct boot_params`.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// The page tables that the boot processor starts with, three pages.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The boot processor's first stack pointer. The kernel sets its own at once.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The kernel command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// The most bytes of command line that an x86 kernel takes, with the final NUL (COMMAND_LINE_SIZE).
pub const COMMAND_LINE_MAX: usize = 2048;
/// The end of the RAM below 640 KiB that the e820 map offers.
pub const BASE_RAM_END: u64 = 0x9_fc00;
/// The MP table: in what would be the BIOS's ROM, where the kernel looks for its signature and puts nothing.
pub const MP_TABLE: GuestAddress = GuestAddress(0xf_0000);
/// The most bytes the MP table may have.
pub const MP_TABLE_MAX: usize = 0x1_0000;
/// RAM that belongs to the kernel from here on; where kernels are linked or above.
pub const KERNEL_START: GuestAddress = GuestAddress(0x10_0000);
/// The initrd ends at or below this: the kernel's own limit for where it looks early (initrd_addr_max).
pub const INITRD_END_MAX: u64 = 0x3800_0000;

/// The first virtio-mmio device; the next ones follow at [`MMIO_STRIDE`].
pub const MMIO_START: u64 = 0xd000_0000;
/// The distance between virtio-mmio devices and the size of each one's registers.
pub const MMIO_STRIDE: u64 = 0x1000;
/// The interrupt lines of the virtio-mmio devices, in order: what a PC leaves free. 8 is the real-time clock's, 12 and
/// 13 are taken for a PS/2 mouse and a coprocessor by kernels that believe in them.
pub const MMIO_IRQS: [u32; 16] = [5, 6, 7, 9, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
/// COM1's interrupt line.
pub const SERIAL_IRQ: u32 = 4;
/// The number of pins of the IO-APIC.
pub const IO_APIC_PINS: u8 = 24;
/// Where KVM puts the IO-APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Where KVM puts the local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// A page KVM needs on Intel for the identity map of real mode, in the hole.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages KVM needs on Intel for a task state segment, in the hole.
pub const KVM_TSS: usize = 0xfffb_d000;

/// The least memory a guest can be given, in MiB: less holds no kernel.
pub const MEMORY_MIN_MIB: u64 = 32;
/// The most memory a guest can be given, in MiB: 39 bits of physical address, which every processor has, less the hole.
pub const MEMORY_MAX_MIB: u64 = (1 << 19) - 1024;

/// The ranges of RAM of a guest of `memory_mib` MiB: (first address, bytes).
pub fn ram_ranges(memory_mib: u64) -> Vec<(GuestAddress, usize)> {
    let size = memory_mib << 20;
    let low = size.min(HOLE_START);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if size > low {
        ranges.push((GuestAddress(HIGH_RAM_START), (size - low) as usize));
    }
    ranges
}

/// The first address of virtio-mmio device number `slot`.
pub fn mmio_base(slot: usize) -> u64 {
    MMIO_START + slot as u64 * MMIO_STRIDE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_one_range() {
        assert_eq!(ram_ranges(128), [(GuestAddress(0), 128 << 20)]);
        assert_eq!(ram_ranges(3072), [(GuestAddress(0), 3 << 30)]);
    }

    #[test]
    fn large_memory_leaves_the_hole_free() {
        assert_eq!(
            ram_ranges(3073),
            [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 1 << 20)]
        );
    }

    #[test]
    fn devices_lie_in_the_hole_and_below_the_io_apic() {
        const { assert!(MMIO_START >= HOLE_START) };
        assert!(mmio_base(MMIO_IRQS.len()) <= u64::from(IO_APIC));
    }

    #[test]
    fn interrupt_lines_are_distinct_and_exist() {
        let mut lines = MMIO_IRQS.to_vec();
        lines.push(SERIAL_IRQ);
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), MMIO_IRQS.len() + 1);
        assert!(lines.iter().all(|line| *line < u32::from(IO_APIC_PINS)));
    }
}
