//! Sequences of requests to the whole server over a temporary directory, from which nothing may get out. Nor may descriptors be
//! left open, which only a process without other threads can tell.
#![no_main]

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let before = open_descriptors();
    fileshare::testing::fuzz_session(bytes);
    assert_eq!(open_descriptors(), before, "descriptors are left open");
});
