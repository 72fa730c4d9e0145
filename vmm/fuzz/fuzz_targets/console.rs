//! A hostile guest and the console.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmm::testing::fuzz_console(bytes));
