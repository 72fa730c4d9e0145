//! A hostile guest and the sockets.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmm::testing::fuzz_vsock(bytes));
