//! A hostile guest, and a hostile other end of its network.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmm::testing::fuzz_net(bytes));
