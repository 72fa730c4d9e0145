//! x86-64: a PC without firmware, PCI or ACPI.
//!
//! The guest kernel is entered in long mode at its 64-bit entry point (Linux boot protocol, "64-bit boot protocol"),
//! with a zero page, an e820 map, and an MP table from which it learns its processors and interrupt lines. The 64-bit
//! entry is chosen over PVH because every x86-64 kernel has it, and because it skips the kernel's own switch to long
//! mode.

pub mod boot;
pub mod cpuid;
pub mod layout;
pub mod mptable;
pub mod registers;
