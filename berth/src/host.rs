//! What this host has, for defaults and for limits.

use std::fs;
use std::path::Path;

use crate::size::Size;

/// The host's CPUs and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// CPUs this process may use.
    pub cpus: u32,
    /// Memory this process may use.
    pub memory: Size,
}

impl Host {
    /// Looks at the running host.
    pub fn detect() -> Host {
        let cpus =
            std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = parse_mem_total(&meminfo).unwrap_or(Size::from_gib(2));
        // In a container with a limit, that is what there is.
        let limit = fs::read_to_string(Path::new("/sys/fs/cgroup/memory.max"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .map(Size::from_bytes);
        Host {
            cpus,
            memory: limit.map_or(total, |limit| limit.min(total)),
        }
    }

    /// Half the CPUs, at least one.
    pub fn default_cpus(&self) -> u8 {
        u8::try_from(self.cpus / 2)
            .unwrap_or(u8::MAX)
            .clamp(1, crate::config::MAX_CPUS)
    }

    /// A quarter of the memory in whole MiB, at least 2 GiB, unless the host has not even that.
    pub fn default_memory(&self) -> Size {
        let quarter = Size::from_mib(self.memory.mib() / 4);
        quarter
            .max(Size::from_gib(2))
            .min(Size::from_mib(self.memory.mib()))
    }
}

fn parse_mem_total(meminfo: &str) -> Option<Size> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).map(Size::from_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_half_the_cpus_and_a_quarter_of_memory_with_a_floor() {
        let big = Host {
            cpus: 16,
            memory: Size::from_gib(64),
        };
        assert_eq!(
            (big.default_cpus(), big.default_memory()),
            (8, Size::from_gib(16))
        );
        let small = Host {
            cpus: 1,
            memory: Size::from_gib(4),
        };
        assert_eq!(
            (small.default_cpus(), small.default_memory()),
            (1, Size::from_gib(2))
        );
        let tiny = Host {
            cpus: 1,
            memory: Size::from_gib(1),
        };
        assert_eq!(tiny.default_memory(), Size::from_gib(1));
    }

    #[test]
    fn memory_is_read_from_meminfo() {
        assert_eq!(
            parse_mem_total("MemTotal:       2048 kB\nMemFree: 1 kB\n"),
            Some(Size::from_mib(2))
        );
        assert_eq!(parse_mem_total("MemFree: 1 kB\n"), None);
    }
}
