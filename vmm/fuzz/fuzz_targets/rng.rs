//! A hostile guest and the source of random bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmm::testing::fuzz_rng(bytes));
