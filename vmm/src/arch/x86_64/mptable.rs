//! The MP table (Intel MultiProcessor Specification 1.4): how a kernel without ACPI finds its CPUs and interrupt lines.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::memory::GuestRegions;

const SPEC_REVISION: u8 = 4;
/// What an integrated local APIC and KVM's IO-APIC call themselves.
const APIC_VERSION: u8 = 0x14;
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
const ISA_BUS: u8 = 0;
const ALL_APICS: u8 = 0xff;
const ENTRY_CPU: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTERNAL: u8 = 3;

/// Writes the table for `cpus` CPUs with APIC ids from 0, and an IO-APIC whose pin N is interrupt line N.
pub fn write(memory: &GuestRegions, cpus: u8) -> Result<(), GuestMemoryError> {
    memory.write_slice(&bytes(layout::MP_TABLE, cpus), layout::MP_TABLE)
}

fn bytes(at: GuestAddress, cpus: u8) -> Vec<u8> {
    const POINTER_LENGTH: u32 = 16;
    // Table addresses are 32 bits wide; `at` lies below 1 MiB.
    let table_address = at.0 as u32 + POINTER_LENGTH;

    let mut pointer = Vec::from(*b"_MP_");
    pointer.extend(table_address.to_le_bytes());
    pointer.extend([1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);

    let (entry_count, entries) = entries(cpus);
    let mut table = Vec::from(*b"PCMP");
    table.extend(((44 + entries.len()) as u16).to_le_bytes());
    table.extend([SPEC_REVISION, 0]);
    table.extend(*b"BERTH   ");
    table.extend(*b"VM          ");
    table.extend(0u32.to_le_bytes()); // OEM table: none
    table.extend(0u16.to_le_bytes());
    table.extend(entry_count.to_le_bytes());
    table.extend(layout::LOCAL_APIC.to_le_bytes());
    table.extend(0u32.to_le_bytes()); // extended table: none
    table.extend(entries);
    table[7] = checksum(&table);

    pointer.extend(table);
    pointer
}

fn entries(cpus: u8) -> (u16, Vec<u8>) {
    // Right after the CPUs'. It need not be distinct on what KVM emulates, but kernels warn when it is not.
    let io_apic_id = cpus;
    let mut count = 0;
    let mut bytes = Vec::new();
    let mut add = |entry: &[u8]| {
        count += 1;
        bytes.extend(entry);
    };

    for cpu in 0..cpus {
        let mut entry = [0; 20];
        entry[0] = ENTRY_CPU;
        entry[1] = cpu;
        entry[2] = APIC_VERSION;
        entry[3] = CPU_ENABLED | if cpu == 0 { CPU_BOOT } else { 0 };
        entry[4..8].copy_from_slice(&0x600u32.to_le_bytes()); // signature: family 6; kernels ask CPUID instead
        entry[8..12].copy_from_slice(&0x201u32.to_le_bytes()); // features: an FPU and an APIC
        add(&entry);
    }
    add(&[ENTRY_BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let mut io_apic = [ENTRY_IO_APIC, io_apic_id, APIC_VERSION, 1, 0, 0, 0, 0];
    io_apic[4..].copy_from_slice(&layout::IO_APIC.to_le_bytes());
    add(&io_apic);
    for pin in 0..layout::IO_APIC_PINS {
        // Polarity and trigger conform to the bus: ISA, so edges, active high.
        add(&[
            ENTRY_IO_INTERRUPT,
            INTERRUPT_VECTORED,
            0,
            0,
            ISA_BUS,
            pin,
            io_apic_id,
            pin,
        ]);
    }
    add(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTERNAL, 0, 0, ISA_BUS, 0, 0, 0]);
    add(&[
        ENTRY_LOCAL_INTERRUPT,
        INTERRUPT_NMI,
        0,
        0,
        ISA_BUS,
        0,
        ALL_APICS,
        1,
    ]);
    (count, bytes)
}

/// The byte that makes `bytes` sum to zero, when it stands where a zero stands now.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn checksums_and_lengths_hold() {
        for cpus in [1, 2, 7, super::super::cpuid::MAX_CPUS] {
            let table = bytes(layout::MP_TABLE, cpus);
            assert!(table.len() <= layout::MP_TABLE_MAX);
            assert_eq!(&table[..4], b"_MP_");
            assert_eq!(sum(&table[..16]), 0);
            let table = &table[16..];
            assert_eq!(&table[..4], b"PCMP");
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert_eq!(sum(table), 0);
            assert_eq!(
                u16::from_le_bytes([table[34], table[35]]),
                u16::from(cpus) + 2 + 24 + 2
            );
        }
    }

    #[test]
    fn the_first_cpu_boots() {
        let table = bytes(layout::MP_TABLE, 2);
        let cpus = &table[16 + 44..][..40];
        assert_eq!(cpus[..4], [0, 0, APIC_VERSION, 3]);
        assert_eq!(cpus[20..24], [0, 1, APIC_VERSION, 1]);
    }
}
