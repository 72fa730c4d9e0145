//! Measurements: berth's hypervisor beside QEMU's microvm with the same kernel, initramfs and image, and what a machine's
//! streams carry. Run it where KVM is real: `scripts/lab run -- bench`; with `--icount` for figures that repeat. File
//! sharing is compared under QEMU's emulation, on any host: `scripts/bench-files`; what it costs to be told of the host's changes,
//! on a machine of berth's: `bench coherence`; what published ports carry, how soon they are there, and names: `bench network`; what an
//! idle machine and profiles take, and what goes back to the host: `bench resources`.

pub mod boot;
pub mod coherence;
pub mod files;
pub mod machine;
pub mod memory;
pub mod network;
pub mod report;
pub mod resources;

use std::time::Duration;

/// The middle of some durations.
pub fn median(durations: &[Duration]) -> Option<Duration> {
    percentile(durations, 50)
}

/// The duration that this many per cent do not exceed.
pub fn percentile(durations: &[Duration], per_cent: usize) -> Option<Duration> {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().checked_sub(1)?;
    sorted
        .get((sorted.len() * per_cent.min(100) / 100).min(last))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_members_and_ordered() {
        let durations: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(median(&durations), Some(Duration::from_millis(51)));
        assert_eq!(percentile(&durations, 99), Some(Duration::from_millis(100)));
        assert_eq!(percentile(&durations, 0), Some(Duration::from_millis(1)));
        assert_eq!(median(&durations[..1]), Some(Duration::from_millis(100)));
        assert_eq!(median(&[]), None);
    }
}
