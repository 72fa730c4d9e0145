//! What a process has in memory, the guest's memory apart.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

/// Resident memory of a process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Resident {
    /// Everything but the guest's memory.
    pub own: u64,
    /// The part of it that no other process shares.
    pub private: u64,
    /// The guest's memory.
    pub guest: u64,
}

/// Reads the resident memory of a process whose guest has `guest_bytes` of memory.
///
/// # Errors
/// When the process is gone or may not be looked at.
pub fn resident(pid: u32, guest_bytes: u64) -> Result<Resident> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(parse(&text, guest_bytes))
}

/// A mapping of half the guest's size or more is guest memory: it may lie in two parts around the 32-bit hole, and its
/// neighbours may have been merged with it.
fn parse(smaps: &str, guest_bytes: u64) -> Resident {
    let mut resident = Resident {
        own: 0,
        private: 0,
        guest: 0,
    };
    let mut is_guest = false;
    for line in smaps.lines() {
        let Some((name, rest)) = line.split_once(':') else {
            continue;
        };
        let bytes = rest
            .trim()
            .strip_suffix(" kB")
            .and_then(|number| number.trim().parse::<u64>().ok())
            .map(|kib| kib << 10);
        match (name, bytes) {
            // The first line after a mapping's head.
            ("Size", Some(size)) => is_guest = size >= guest_bytes / 2,
            ("Rss", Some(rss)) if is_guest => resident.guest += rss,
            ("Rss", Some(rss)) => resident.own += rss,
            ("Private_Clean" | "Private_Dirty", Some(private)) if !is_guest => resident.private += private,
            _ => {}
        }
    }
    resident
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_told_from_the_rest() {
        let smaps = "\
00400000-00500000 r-xp 00000000 08:01 12 /usr/bin/vmm
Size:               1024 kB
Rss:                 800 kB
Private_Clean:       100 kB
Private_Dirty:        50 kB
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
Size:             131072 kB
Rss:               40000 kB
Private_Clean:         0 kB
Private_Dirty:     40000 kB
";
        let expected = Resident {
            own: 800 << 10,
            private: 150 << 10,
            guest: 40000 << 10,
        };
        assert_eq!(parse(smaps, 128 << 20), expected);
    }
}
