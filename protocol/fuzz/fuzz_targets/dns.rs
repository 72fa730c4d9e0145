//! Arbitrary bytes as questions for names, answers to them, and the stream of both.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| protocol::testing::fuzz_dns(bytes));
