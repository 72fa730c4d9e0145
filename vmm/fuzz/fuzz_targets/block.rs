//! A hostile guest and a disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmm::testing::fuzz_block(bytes));
