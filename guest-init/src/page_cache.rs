//! Gives back what the page cache holds of files that nobody uses any more.
//!
//! Linux lets its page cache grow until memory is full, and a hypervisor cannot tell such a page from one that is needed: after one
//! large build the host would be without all of the machine's memory until the machine ends. Here, when next to nothing has been
//! read or written for a while, what the cache has above a quarter of the memory is reclaimed, the least recently used first
//! (`memory.reclaim` of the root cgroup, Documentation/admin-guide/cgroup-v2.rst); free page reporting then hands it to the host.
//! Where that turns out wrong, because the files are read again, it waits twice as long the next time.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::console::warning;
use crate::status::field;

/// How often the figures are looked at.
const PERIOD: Duration = Duration::from_secs(15);
/// What may be read and written in a period that still counts as quiet, in bytes: logs, and what dockerd itself does.
const QUIET: u64 = 8 << 20;
/// The share of the memory that the cache may always keep.
const KEPT: u64 = 4;
/// Less than this is not worth it.
const LEAST: u64 = 32 << 20;
/// What comes back of what was given, at most, if that was no mistake.
const REGRETTED: u64 = 8;
/// The longest wait: a quarter of an hour.
const MOST_PERIODS: u32 = 60;

/// Does it for as long as the machine runs.
pub(crate) async fn give_back() {
    let mut policy = Policy::default();
    let mut ticks = tokio::time::interval(PERIOD);
    // After a pause of the machine one look is enough.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let bytes = match sample() {
            Ok(sample) => policy.decide(&sample),
            Err(e) => {
                warning!("what the page cache has is not given back: {e:#}");
                return;
            }
        };
        if bytes > 0 {
            // Takes the kernel some milliseconds, and more when the machine is emulated.
            let reclaimed = tokio::task::spawn_blocking(move || reclaim(bytes)).await;
            if let Ok(Err(e)) = reclaimed {
                warning!("what the page cache has is not given back: {e:#}");
                return;
            }
        }
    }
}

/// Asks the kernel to reclaim this much. That it found less is no failure.
fn reclaim(bytes: u64) -> anyhow::Result<()> {
    let file = crate::cgroups::root().join("memory.reclaim");
    match fs::write(&file, bytes.to_string()) {
        Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => {
            Err(e).with_context(|| format!("cannot write to {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// What the kernel says, in bytes; what is read, written and read again since it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Sample {
    total: u64,
    active: u64,
    inactive: u64,
    moved: u64,
    refaulted: u64,
}

fn sample() -> anyhow::Result<Sample> {
    let read =
        |path: &str| fs::read_to_string(Path::new(path)).with_context(|| format!("cannot read {path}"));
    parse(&read("/proc/meminfo")?, &read("/proc/vmstat")?)
        .context("cannot understand /proc/meminfo and /proc/vmstat")
}

/// `meminfo` and pgpgin and pgpgout are in KiB, refaults in pages.
fn parse(meminfo: &str, vmstat: &str) -> Option<Sample> {
    let kib = |text, name| field(text, name)?.checked_mul(1024);
    let refaulted = field(vmstat, "workingset_refault_file")?.checked_mul(4096)?;
    Some(Sample {
        total: kib(meminfo, "MemTotal")?,
        active: kib(meminfo, "Active(file)")?,
        inactive: kib(meminfo, "Inactive(file)")?,
        moved: kib(vmstat, "pgpgin")?
            .checked_add(kib(vmstat, "pgpgout")?)?
            .checked_add(refaulted)?,
        refaulted,
    })
}

/// When to give back how much.
#[derive(Debug, Default)]
struct Policy {
    last: Option<Sample>,
    /// Quiet periods up to now.
    quiet: u32,
    /// Further ones that it takes.
    patience: u32,
    /// What was given back last, and what has been read again since.
    given: u64,
    regretted: u64,
}

impl Policy {
    /// How many bytes to reclaim now.
    fn decide(&mut self, now: &Sample) -> u64 {
        let Some(last) = self.last.replace(now.clone()) else {
            return 0;
        };
        self.regretted += now.refaulted.saturating_sub(last.refaulted);
        if now.moved.saturating_sub(last.moved) > QUIET {
            self.quiet = 0;
            return 0;
        }
        self.quiet = self.quiet.saturating_add(1);
        let files = now.active + now.inactive;
        let above = files.saturating_sub(now.total / KEPT);
        if self.quiet <= self.patience || above < LEAST {
            return 0;
        }
        if self.given > 0 {
            let given = std::mem::take(&mut self.given);
            if self.regretted > given / REGRETTED {
                self.patience = (self.patience * 2 + 1).min(MOST_PERIODS);
                self.quiet = 0;
                return 0;
            }
            self.patience /= 2;
        }
        // Of what has been used more than once, a part at a time: it may be in use without being read from a disk.
        self.given = above.min(now.inactive.max(above / 4));
        self.regretted = 0;
        self.given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn files(inactive: u64) -> Sample {
        Sample {
            total: 1024 * MIB,
            inactive: inactive * MIB,
            ..Sample::default()
        }
    }

    #[test]
    fn what_is_above_a_quarter_goes_back_when_it_is_quiet() {
        let mut policy = Policy::default();
        let mut now = files(700);
        assert_eq!(
            policy.decide(&now),
            0,
            "the first look tells nothing of what goes on"
        );
        now.moved += QUIET + 1;
        assert_eq!(policy.decide(&now), 0, "something goes on");
        assert_eq!(policy.decide(&now), (700 - 256) * MIB);
        assert_eq!(policy.decide(&files(256 + 31)), 0, "too little");
    }

    #[test]
    fn what_is_used_again_and_again_goes_slowly() {
        let mut policy = Policy::default();
        let now = Sample {
            active: 656 * MIB,
            ..files(0)
        };
        assert_eq!(policy.decide(&now), 0);
        assert_eq!(policy.decide(&now), 100 * MIB);
    }

    #[test]
    fn what_is_read_again_is_left_alone_for_longer_and_longer() {
        let mut policy = Policy::default();
        let mut now = files(700);
        policy.decide(&now);
        let mut waits = Vec::new();
        for _ in 0..10 {
            let mut looks = 0;
            while policy.decide(&now) == 0 {
                looks += 1;
            }
            waits.push(looks);
            // All of it, in small parts that by themselves would be quiet.
            now.refaulted += 444 * MIB;
        }
        assert_eq!(waits[..4], [0, 2, 4, 8], "{waits:?}");
        assert_eq!(waits.last(), Some(&(MOST_PERIODS + 1)));
        // It was right at last.
        let mut looks = 0;
        now.refaulted = 0;
        policy.last = Some(now.clone());
        policy.regretted = 0;
        while policy.decide(&now) == 0 {
            looks += 1;
        }
        assert_eq!((looks, policy.patience), (0, MOST_PERIODS / 2));
    }

    #[test]
    fn the_kernels_figures_are_read_by_name() {
        let meminfo = "MemTotal: 1000 kB\nActive: 9 kB\nActive(file): 20 kB\nInactive(file):  30 kB\n";
        let vmstat = "pgpgin 1\npgpgout 2\npgpgoutx 5\nworkingset_refault_file 3\n";
        assert_eq!(
            parse(meminfo, vmstat),
            Some(Sample {
                total: 1000 << 10,
                active: 20 << 10,
                inactive: 30 << 10,
                moved: (3 << 10) + (3 << 12),
                refaulted: 3 << 12,
            })
        );
        assert_eq!(parse(meminfo, "pgpgin 1\n"), None);
        let here = sample().unwrap();
        assert!(here.total > 0 && here.moved > 0, "{here:?}");
    }
}
