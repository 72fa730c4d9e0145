//! What a machine is started with: what `berth start` was told, else what it was told before, else the configuration, else
//! what suits the host.

use serde::{Deserialize, Serialize};

use crate::config::{Config, EngineChoice};
use crate::host::Host;
use crate::paths::home;
use crate::shares::Share;
use crate::shares::choice::{self, ShareChanges};
use crate::shares::rules::ShareError;
use crate::size::Size;

/// What was chosen for this machine on the command line; kept in its record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
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
    /// These choices, and those of `before` where there is none.
    pub fn or(&self, before: &Chosen) -> Chosen {
        Chosen {
            cpus: self.cpus.or(before.cpus),
            memory: self.memory.or(before.memory),
            disk: self.disk.or(before.disk),
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
    /// Virtual CPUs.
    pub cpus: u8,
    /// Memory, whole MiB.
    pub memory: Size,
    /// Apparent size of the data disk.
    pub disk: Size,
    /// Which engine.
    pub engine: EngineChoice,
    /// Directories of the host that its containers can have.
    #[serde(default)]
    pub shares: Vec<Share>,
}

/// The size of a data disk that nobody chose.
pub const DEFAULT_DISK: Size = Size::from_gib(64);

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
    /// Shares that cannot be together.
    #[error(
        "{0} (`berth share list` shows the shares; `berth share remove` or the configuration takes one away)"
    )]
    Shares(ShareError),
}

impl Settings {
    /// Decides, and says no to what cannot be.
    pub fn resolve(chosen: &Chosen, config: &Config, host: &Host) -> Result<Settings, SettingsError> {
        let settings = Settings {
            cpus: chosen
                .cpus
                .or(config.cpus())
                .unwrap_or_else(|| host.default_cpus()),
            memory: chosen
                .memory
                .or(config.memory())
                .unwrap_or_else(|| host.default_memory()),
            disk: chosen.disk.or(config.disk()).unwrap_or(DEFAULT_DISK),
            engine: chosen.engine.or(config.engine()).unwrap_or_default(),
            shares: chosen.shares.apply(&base_shares(config)),
        };
        if settings.memory > host.memory {
            return Err(SettingsError::Memory {
                asked: settings.memory,
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
        [
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

/// The shares of a machine for which `berth share` has changed nothing.
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
                cpus: 2,
                memory: Size::from_gib(3),
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
