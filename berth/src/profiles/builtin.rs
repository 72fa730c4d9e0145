//! The profiles that come with berth. What they say depends on the host, and is never more than it has.

use super::{Origin, Profile, ProfileSettings};
use crate::config::MAX_CPUS;
use crate::host::Host;
use crate::size::Size;

/// All of them, from small to large.
pub fn all(host: &Host) -> Vec<Profile> {
    [
        ("light", light(host)),
        ("balanced", balanced(host)),
        ("heavy", heavy(host)),
    ]
    .into_iter()
    .map(|(name, settings)| Profile {
        name: name.to_owned(),
        origin: Origin::Builtin,
        settings,
    })
    .collect()
}

/// For when the host is needed for something else: a quarter of the CPUs and an eighth of the memory, at least 1 GiB.
fn light(host: &Host) -> ProfileSettings {
    settings(host, host.cpus / 4, host.memory.mib() / 8, Size::from_gib(1))
}

/// What a machine has that was told nothing: half the CPUs and a quarter of the memory, at least 2 GiB.
fn balanced(host: &Host) -> ProfileSettings {
    settings(host, host.cpus / 2, host.memory.mib() / 4, Size::from_gib(2))
}

/// For large builds: all CPUs and half the memory, at least 2 GiB.
pub fn heavy(host: &Host) -> ProfileSettings {
    settings(host, host.cpus, host.memory.mib() / 2, Size::from_gib(2))
}

fn settings(host: &Host, cpus: u32, memory_mib: u64, least: Size) -> ProfileSettings {
    let there_is = Size::from_mib(host.memory.mib());
    ProfileSettings {
        cpus: Some(u8::try_from(cpus).unwrap_or(u8::MAX).clamp(1, MAX_CPUS)),
        memory: Some(Size::from_mib(memory_mib).max(least).min(there_is)),
        ..ProfileSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cpus: u32, memory: Size) -> Vec<(Option<u8>, Option<Size>)> {
        all(&Host { cpus, memory })
            .into_iter()
            .map(|profile| (profile.settings.cpus, profile.settings.memory))
            .collect()
    }

    #[test]
    fn they_go_by_the_host_and_never_beyond_it() {
        let gib = |gib| Some(Size::from_gib(gib));
        assert_eq!(
            of(16, Size::from_gib(64)),
            [(Some(4), gib(8)), (Some(8), gib(16)), (Some(16), gib(32))]
        );
        assert_eq!(
            of(1, Size::from_gib(4)),
            [(Some(1), gib(1)), (Some(1), gib(2)), (Some(1), gib(2))]
        );
        let small = Some(Size::from_mib(700));
        assert_eq!(
            of(300, Size::from_mib(700)),
            [(Some(75), small), (Some(128), small), (Some(128), small)]
        );
    }

    #[test]
    fn the_one_in_the_middle_is_what_a_machine_has_without_one() {
        for host in [(1, 1), (2, 8), (64, 256)] {
            let host = Host {
                cpus: host.0,
                memory: Size::from_gib(host.1),
            };
            let balanced = balanced(&host);
            assert_eq!(balanced.cpus, Some(host.default_cpus()));
            assert_eq!(balanced.memory, Some(host.default_memory()));
        }
    }
}
