//! Arbitrary accesses to the registers of a device.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmm::testing::fuzz_mmio(bytes));
