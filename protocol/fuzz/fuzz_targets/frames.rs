//! Arbitrary bytes as framed messages, of either side.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| protocol::testing::fuzz_frames(bytes));
