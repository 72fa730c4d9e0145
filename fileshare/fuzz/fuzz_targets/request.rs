//! Arbitrary bytes as requests: the parser and the server over a file system in memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fileshare::testing::fuzz_request(bytes));
