//! A vhost-user front end that sends anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmm::testing::fuzz_vhost_user(bytes));
