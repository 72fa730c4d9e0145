//! A hostile guest and the balloon.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmm::testing::fuzz_balloon(bytes));
