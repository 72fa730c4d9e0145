//! The guest's figures, read from `/proc` and `/sys`.

use std::fs;

use anyhow::Context;
use protocol::control::{DockerStatus, GuestStatus, MemoryStatus};

use crate::{clock, cpus, data_disk};

/// Collects them. `data_disk_mounted` says whether to ask for its use.
pub(crate) fn collect(docker: DockerStatus, data_disk_mounted: bool) -> anyhow::Result<GuestStatus> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let disk = if data_disk_mounted {
        Some(data_disk::status().context("cannot read the use of the data disk")?)
    } else {
        None
    };
    Ok(GuestStatus {
        kernel: kernel_release(),
        uptime_ms: u64::try_from(clock::uptime().as_millis()).unwrap_or(u64::MAX),
        cpus: u32::try_from(cpus::online()?.len()).unwrap_or(u32::MAX),
        load: parse_load(&read("/proc/loadavg")?).context("cannot understand /proc/loadavg")?,
        memory: parse_memory(&read("/proc/meminfo")?).context("cannot understand /proc/meminfo")?,
        data_disk: disk,
        docker,
        unix_time_ns: clock::unix_time_ns(),
    })
}

/// The kernel's release, as `uname -r` has it.
pub(crate) fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The load averages at the beginning of `/proc/loadavg`.
fn parse_load(text: &str) -> Option<[f64; 3]> {
    let mut words = text.split_ascii_whitespace().map(|word| word.parse().ok());
    Some([words.next()??, words.next()??, words.next()??])
}

/// The number that stands after a name in `/proc/meminfo` or `/proc/vmstat`.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix([':', ' ']))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// `/proc/meminfo`, whose figures are in units of 1024 bytes.
fn parse_memory(text: &str) -> Option<MemoryStatus> {
    let field = |name: &str| field(text, name)?.checked_mul(1024);
    Some(MemoryStatus {
        total: field("MemTotal")?,
        available: field("MemAvailable")?,
        free: field("MemFree")?,
        cached: field("Cached")?.checked_add(field("Buffers")?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_by_name_and_in_bytes() {
        let text = "MemTotal:        2030028 kB\nMemFree:         1000 kB\nMemAvailable:    1500 kB\n\
                    Buffers:           10 kB\nCached:           200 kB\nSwapCached:         999 kB\n";
        assert_eq!(
            parse_memory(text),
            Some(MemoryStatus {
                total: 2_030_028 * 1024,
                available: 1500 * 1024,
                free: 1000 * 1024,
                cached: 210 * 1024,
            })
        );
        assert_eq!(parse_memory("MemTotal: many kB\n"), None);
    }

    #[test]
    fn the_load_is_read() {
        assert_eq!(parse_load("0.12 1.50 2.00 1/123 456\n"), Some([0.12, 1.5, 2.0]));
        assert_eq!(parse_load("x"), None);
    }

    #[test]
    fn this_machines_figures_are_understood() {
        let docker = crate::docker::Docker::new().status();
        let status = collect(docker, false).unwrap();
        assert!(status.cpus > 0 && status.memory.total > 0 && status.uptime_ms > 0);
    }
}
