//! What a machine is started with: what `berth start` was told, else what it was told before, else its profile, else the
//! configuration, else what suits the host.

use serde::{Deserialize, Serialize};

use crate::config::{Config, EngineChoice, NO_PROFILE};
use crate::host::Host;
use crate::paths::home;
use crate::profiles;
use crate::shares::Share;
use crate::shares::choice::{self, ShareChanges};
use crate::shares::rules::ShareError;
use crate::size::Size;

/// What was chosen for this machine on the command line; kept in its record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// The profile's name; [`NO_PROFILE`] takes one away that was chosen before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Virtual CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u8>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Apparent size of the data disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Size>,
    /// Which engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineChoice>,
    /// What `berth share` has changed.
    #[serde(default, skip_serializing_if = "ShareChanges::is_empty")]
    pub shares: ShareChanges,
}

impl Chosen {
    /// These choices, and those of `before` where there is none. With a profile, what was chosen before in place of what a
    /// profile says no longer counts.
    pub fn or(&self, before: &Chosen) -> Chosen {
        let switched = self.profile.is_some();
        let profile = self.profile.clone().or_else(|| before.profile.clone());
        Chosen {
            profile: profile.filter(|name| name != NO_PROFILE),
            cpus: self.cpus.or(before.cpus.filter(|_| !switched)),
            memory: self.memory.or(before.memory.filter(|_| !switched)),
            disk: self.disk.or(before.disk.filter(|_| !switched)),
            engine: self.engine.or(before.engine),
            shares: if self.shares.is_empty() {
                before.shares.clone()
            } else {
                self.shares.clone()
            },
        }
    }
}

/// Everything decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The profile; none when none was chosen.
    #[serde(default)]
    pub profile: Option<String>,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Memory, whole MiB.
    pub memory: Size,
    /// The most CPUs that it can have without a restart.
    #[serde(default)]
    pub max_cpus: u8,
    /// The most memory that it can have without a restart.
    #[serde(default = "nothing")]
    pub max_memory: Size,
    /// Whether its containers can reach the network.
    #[serde(default)]
    pub network: bool,
    /// Apparent size of the data disk.
    pub disk: Size,
    /// Which engine.
    pub engine: EngineChoice,
    /// Directories of the host that its containers can have.
    #[serde(default)]
    pub shares: Vec<Share>,
}

/// What a daemon of an older berth says of what it does not know.
fn nothing() -> Size {
    Size::from_bytes(0)
}

/// The size of a data disk that nobody chose.
pub const DEFAULT_DISK: Size = Size::from_gib(64);

/// How many times the memory that it starts with a machine may get without a restart, when nobody says how much.
const MOST_TIMES: u64 = 4;

/// Settings this host cannot give. Exit code 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// More memory than there is.
    #[error(
        "the machine is to have {asked} of memory and this host has {host}; choose less with --memory or in the configuration"
    )]
    Memory {
        /// What was asked for.
        asked: Size,
        /// What there is.
        host: Size,
    },
    /// A profile that is not there.
    #[error(
        "there is no profile {name}; there are {} (`berth profile list` shows them, `berth profile use {NO_PROFILE}` does \
         without one)",
        .known.join(", ")
    )]
    NoProfile {
        /// The name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// Shares that cannot be together.
    #[error(
        "{0} (`berth share list` shows the shares; `berth share remove` or the configuration takes one away)"
    )]
    Shares(ShareError),
}

impl Settings {
    /// Decides, and says no to what cannot be.
    pub fn resolve(chosen: &Chosen, config: &Config, host: &Host) -> Result<Settings, SettingsError> {
        let profile = chosen.profile.clone().filter(|name| name != NO_PROFILE);
        let config = &under_profile(chosen, config, host)?;
        let cpus = chosen
            .cpus
            .or(config.cpus())
            .unwrap_or_else(|| host.default_cpus());
        let memory = chosen
            .memory
            .or(config.memory())
            .unwrap_or_else(|| host.default_memory());
        let (most_cpus, most_memory) = most(profile.as_deref(), memory, config, host);
        let settings = Settings {
            profile,
            cpus,
            memory,
            max_cpus: config
                .max_cpus()
                .or(most_cpus)
                .map_or(cpus, |most| most.max(cpus)),
            max_memory: config
                .max_memory()
                .or(most_memory)
                .map_or(memory, |most| most.max(memory)),
            network: config.network(),
            disk: chosen.disk.or(config.disk()).unwrap_or(DEFAULT_DISK),
            engine: chosen.engine.or(config.engine()).unwrap_or_default(),
            shares: chosen.shares.apply(&base_shares(config)),
        };
        if settings.max_memory > host.memory {
            return Err(SettingsError::Memory {
                asked: settings.max_memory,
                host: host.memory,
            });
        }
        choice::check(&settings.shares).map_err(SettingsError::Shares)?;
        Ok(settings)
    }

    /// How `chosen` differs from these settings of a running machine, one line each; empty when it does not.
    pub fn differences(&self, chosen: &Chosen) -> Vec<String> {
        fn differs<T: PartialEq + std::fmt::Display>(
            what: &str,
            now: &T,
            asked: Option<&T>,
        ) -> Option<String> {
            let asked = asked.filter(|asked| *asked != now)?;
            Some(format!("{what} is {now}, not {asked}"))
        }
        let profile = chosen.profile.as_deref().filter(|asked| {
            let now = self.profile.as_deref().unwrap_or(NO_PROFILE);
            now != *asked
        });
        let profile = profile.map(|asked| {
            format!(
                "profile is {}, not {asked}",
                self.profile.as_deref().unwrap_or(NO_PROFILE)
            )
        });
        [
            profile,
            differs("cpus", &self.cpus, chosen.cpus.as_ref()),
            differs("memory", &self.memory, chosen.memory.as_ref()),
            differs("disk", &self.disk, chosen.disk.as_ref()),
            differs("engine", &self.engine, chosen.engine.as_ref()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The most CPUs and memory that any profile has which a machine is likely to be switched to: those of the configuration, and
/// those that come with berth when it has one of them. The kernel's notes on memory that could be there take 1.6 percent of
/// it, so a small machine is not prepared for much more than it has.
fn most(profile: Option<&str>, memory: Size, config: &Config, host: &Host) -> (Option<u8>, Option<Size>) {
    let all = profiles::all(config, host);
    let has_builtin = all
        .iter()
        .any(|known| Some(known.name.as_str()) == profile && known.origin == profiles::Origin::Builtin);
    let likely = all
        .into_iter()
        .filter(|profile| has_builtin || profile.origin == profiles::Origin::Config)
        .map(|profile| profile.settings);
    let (cpus, sizes): (Vec<_>, Vec<_>) = likely.map(|settings| (settings.cpus, settings.memory)).unzip();
    let reasonable = Size::from_mib(memory.mib() * MOST_TIMES).min(host.memory);
    (
        cpus.into_iter().flatten().max(),
        sizes
            .into_iter()
            .flatten()
            .filter(|size| *size <= reasonable)
            .max(),
    )
}

/// The configuration as it is for a machine with the profile that was chosen.
///
/// # Errors
/// When there is no such profile.
pub fn under_profile(chosen: &Chosen, config: &Config, host: &Host) -> Result<Config, SettingsError> {
    let Some(name) = chosen.profile.as_deref().filter(|name| *name != NO_PROFILE) else {
        return Ok(config.clone());
    };
    match profiles::find(name, config, host) {
        Some(profile) => Ok(config.under(&profile.settings)),
        None => Err(SettingsError::NoProfile {
            name: name.to_owned(),
            known: profiles::all(config, host)
                .into_iter()
                .map(|profile| profile.name)
                .collect(),
        }),
    }
}

/// The shares of a machine for which `berth share` has changed nothing; `config` is that of [`under_profile`].
pub fn base_shares(config: &Config) -> Vec<Share> {
    choice::base(config.shares(), home().as_deref())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const HOST: Host = Host {
        cpus: 8,
        memory: Size::from_gib(16),
    };

    #[test]
    fn the_command_line_wins_over_the_configuration_and_that_over_the_host() {
        let config = Config::parse("cpus: 3\nmemory: 3GiB\n", Path::new("c")).unwrap();
        let chosen = Chosen {
            cpus: Some(2),
            ..Chosen::default()
        };
        let settings = Settings::resolve(&chosen, &config, &HOST).unwrap();
        assert_eq!(
            settings,
            Settings {
                profile: None,
                cpus: 2,
                memory: Size::from_gib(3),
                max_cpus: 2,
                max_memory: Size::from_gib(3),
                network: true,
                disk: DEFAULT_DISK,
                engine: EngineChoice::Auto,
                shares: base_shares(&config),
            }
        );
        let settings = Settings::resolve(&Chosen::default(), &Config::default(), &HOST).unwrap();
        assert_eq!((settings.cpus, settings.memory), (4, Size::from_gib(4)));
    }

    #[test]
    fn earlier_choices_hold_until_others_are_made() {
        let before = Chosen {
            cpus: Some(1),
            disk: Some(Size::from_gib(9)),
            ..Chosen::default()
        };
        let now = Chosen {
            cpus: Some(2),
            ..Chosen::default()
        };
        let both = now.or(&before);
        assert_eq!(
            (both.cpus, both.disk, both.memory),
            (Some(2), Some(Size::from_gib(9)), None)
        );
    }

    fn profiled() -> Config {
        let text = "cpus: 3\nmemory: 3GiB\nprofiles:\n  a:\n    cpus: 6\n    network: false\n  b:\n    memory: 8GiB\n  \
                    huge:\n    memory: 999GiB\n";
        Config::parse(text, Path::new("c")).unwrap()
    }

    fn with_profile(name: &str) -> Chosen {
        Chosen {
            profile: Some(name.into()),
            ..Chosen::default()
        }
    }

    #[test]
    fn a_profile_wins_over_the_configuration_and_an_option_over_the_profile() {
        let settings = Settings::resolve(&with_profile("a"), &profiled(), &HOST).unwrap();
        assert_eq!(settings.profile.as_deref(), Some("a"));
        assert_eq!((settings.cpus, settings.memory), (6, Size::from_gib(3)));
        assert!(!settings.network);
        let explicit = Chosen {
            cpus: Some(1),
            ..with_profile("a")
        };
        assert_eq!(Settings::resolve(&explicit, &profiled(), &HOST).unwrap().cpus, 1);
        let error = Settings::resolve(&with_profile("x"), &profiled(), &HOST).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("no profile x; there are light, balanced, heavy, a, b"),
            "{error}"
        );
        let error = Settings::resolve(&with_profile("huge"), &profiled(), &HOST).unwrap_err();
        assert!(matches!(error, SettingsError::Memory { .. }), "{error}");
    }

    #[test]
    fn a_machine_can_get_as_much_as_the_largest_profile_has() {
        let most = |chosen: &Chosen, config: &Config| {
            let settings = Settings::resolve(chosen, config, &HOST).unwrap();
            (settings.max_cpus, settings.max_memory)
        };
        let plain = Config::default();
        // Nobody pays for what they do not use.
        assert_eq!(most(&Chosen::default(), &plain), (4, Size::from_gib(4)));
        assert_eq!(most(&with_profile("light"), &plain), (8, Size::from_gib(8)));
        assert_eq!(most(&with_profile("a"), &profiled()), (6, Size::from_gib(8)));
        // What no host of this size can have is not counted.
        assert_eq!(most(&Chosen::default(), &profiled()), (6, Size::from_gib(8)));
        let tiny = Chosen {
            memory: Some(Size::from_gib(1)),
            ..Chosen::default()
        };
        assert_eq!(
            most(&tiny, &profiled()),
            (6, Size::from_gib(1)),
            "8 times as much"
        );
        let capped = Config::parse("max_cpus: 2\nmax_memory: 5GiB\n", Path::new("c")).unwrap();
        assert_eq!(most(&with_profile("light"), &capped), (2, Size::from_gib(5)));
        assert_eq!(
            most(&Chosen::default(), &capped),
            (4, Size::from_gib(5)),
            "never less than it starts with"
        );
        let too_much = Config::parse("max_memory: 17GiB\n", Path::new("c")).unwrap();
        assert!(Settings::resolve(&Chosen::default(), &too_much, &HOST).is_err());
    }

    #[test]
    fn another_profile_takes_back_what_was_chosen_before() {
        let before = Chosen {
            cpus: Some(1),
            disk: Some(Size::from_gib(9)),
            engine: Some(EngineChoice::Qemu),
            ..with_profile("a")
        };
        let kept = Chosen {
            memory: Some(Size::from_gib(1)),
            ..Chosen::default()
        }
        .or(&before);
        assert_eq!((kept.profile.as_deref(), kept.cpus), (Some("a"), Some(1)));
        let switched = with_profile("b").or(&kept);
        assert_eq!(
            switched,
            Chosen {
                engine: Some(EngineChoice::Qemu),
                ..with_profile("b")
            }
        );
        assert_eq!(with_profile(NO_PROFILE).or(&kept).profile, None);
    }

    #[test]
    fn shares_are_those_of_the_configuration_with_the_changes() {
        let config =
            Config::parse("shares:\n- path: /nowhere\n- path: /elsewhere\n", Path::new("c")).unwrap();
        let mut chosen = Chosen::default();
        let added = |path| Share::new(Path::new(path), None, true, &[]).unwrap();
        chosen.shares.remove(Path::new("/nowhere"), &base_shares(&config));
        chosen.shares.add(added("/more"), &base_shares(&config));
        let settings = Settings::resolve(&chosen, &config, &HOST).unwrap();
        let paths: Vec<_> = settings
            .shares
            .iter()
            .map(|share| share.path.to_str().unwrap())
            .collect();
        assert_eq!(paths, ["/elsewhere", "/more"]);
        assert_eq!(
            Chosen::default().or(&chosen).shares,
            chosen.shares,
            "a start keeps them"
        );

        chosen
            .shares
            .add(added("/elsewhere/below"), &base_shares(&config));
        let error = Settings::resolve(&chosen, &config, &HOST)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("overlap") && error.contains("berth share remove"),
            "{error}"
        );
    }

    #[test]
    fn more_memory_than_the_host_has_is_refused() {
        let chosen = Chosen {
            memory: Some(Size::from_gib(17)),
            ..Chosen::default()
        };
        let error = Settings::resolve(&chosen, &Config::default(), &HOST).unwrap_err();
        assert!(error.to_string().contains("17 GiB") && error.to_string().contains("16 GiB"));
    }

    #[test]
    fn a_running_machine_says_what_a_restart_would_change() {
        let settings = Settings::resolve(&Chosen::default(), &Config::default(), &HOST).unwrap();
        assert!(settings.differences(&Chosen::default()).is_empty());
        let asked = Chosen {
            cpus: Some(settings.cpus),
            memory: Some(Size::from_gib(8)),
            engine: Some(EngineChoice::Qemu),
            ..Chosen::default()
        };
        assert_eq!(
            settings.differences(&asked),
            ["memory is 4 GiB, not 8 GiB", "engine is auto, not qemu"]
        );
    }
}
