//! How much memory this process takes beyond what it gives the guest.

use std::{io, ops::Range};

/// Resident bytes of this process outside of `guest`, the host addresses of guest memory.
pub(super) fn beyond(guest: &[Range<usize>]) -> io::Result<u64> {
    Ok(sum(&std::fs::read_to_string("/proc/self/smaps")?, guest))
}

/// Adds up the `Rss` lines of the mappings that do not begin in `guest`. The kernel never joins guest memory to another
/// mapping: it is advised differently.
fn sum(smaps: &str, guest: &[Range<usize>]) -> u64 {
    let mut counts = true;
    let mut kib = 0;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if first == "Rss:" {
            if counts {
                kib += words
                    .next()
                    .and_then(|word| word.parse::<u64>().ok())
                    .unwrap_or(0);
            }
        } else if let Some((start, _)) = first.split_once('-')
            && let Ok(start) = usize::from_str_radix(start, 16)
        {
            counts = !guest.iter().any(|range| range.contains(&start));
        }
    }
    kib * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_does_not_count() {
        let smaps = "\
00400000-00401000 r-xp 00000000 08:01 1  /usr/bin/x
Size:                  4 kB
Rss:                   4 kB
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
Rss:              131072 kB
VmFlags: rd wr
7f0008000000-7f0008001000 rw-p 00000000 00:00 0
Rss:                   8 kB
";
        let guest = Range {
            start: 0x7f00_0000_0000,
            end: 0x7f00_0800_0000,
        };
        assert_eq!(sum(smaps, std::slice::from_ref(&guest)), 12 * 1024);
        assert_eq!(sum(smaps, &[]), (12 + 131_072) * 1024);
    }

    #[test]
    fn this_process_takes_memory() {
        assert!(beyond(&[]).unwrap() > 0);
    }
}
