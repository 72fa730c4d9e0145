//! Arbitrary bytes as the packets of a process, of either side.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| protocol::testing::fuzz_packets(bytes));
