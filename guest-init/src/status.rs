//! The guest's figures, read from `/proc` and `/sys`.

use std::fs;

use anyhow::Context;
use protocol::control::{DockerStatus, GuestStatus, MemoryStatus};

use crate::{clock, data_disk};

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
        cpus: count_cpus(&read("/sys/devices/system/cpu/online")?)
            .context("cannot understand the list of CPUs online")?,
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

/// `/proc/meminfo`, whose figures are in units of 1024 bytes.
fn parse_memory(text: &str) -> Option<MemoryStatus> {
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let number: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
        number.checked_mul(1024)
    };
    Some(MemoryStatus {
        total: field("MemTotal")?,
        available: field("MemAvailable")?,
        free: field("MemFree")?,
        cached: field("Cached")?.checked_add(field("Buffers")?)?,
    })
}

/// How many CPUs a list such as `0-3,6` names.
fn count_cpus(list: &str) -> Option<u32> {
    let mut count = 0_u32;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
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
    fn load_and_cpu_lists_are_read() {
        assert_eq!(parse_load("0.12 1.50 2.00 1/123 456\n"), Some([0.12, 1.5, 2.0]));
        assert_eq!(parse_load("x"), None);
        assert_eq!(count_cpus("0\n"), Some(1));
        assert_eq!(count_cpus("0-3,6,8-9\n"), Some(7));
        assert_eq!(count_cpus("3-0"), None);
        assert_eq!(count_cpus(""), None);
    }

    #[test]
    fn this_machines_figures_are_understood() {
        let docker = crate::docker::Docker::new().status();
        let status = collect(docker, false).unwrap();
        assert!(status.cpus > 0 && status.memory.total > 0 && status.uptime_ms > 0);
    }
}
