//! Profiles: named sets of settings to switch a machine between.
//!
//! They are those of the configuration, and a few that come with berth and suit the host. One of the configuration takes
//! the place of one of the same name that comes with berth.

pub mod builtin;
pub mod edit;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::host::Host;
use crate::shares::Share;
use crate::size::Size;

/// Where a profile is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// It comes with berth.
    Builtin,
    /// The configuration has it.
    Config,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Origin::Builtin => "builtin",
            Origin::Config => "config",
        })
    }
}

/// What a profile says; what it leaves out is as without it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileSettings {
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u8>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Apparent size of the data disk. Needs a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Size>,
    /// Whether containers can reach the network. Needs a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<bool>,
    /// Directories of the host that containers can have. Needs a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Vec<Share>>,
}

/// A profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// Where it is from.
    pub origin: Origin,
    /// What it says.
    #[serde(flatten)]
    pub settings: ProfileSettings,
}

/// All profiles: those that come with berth, from small to large, then the others in the order of the configuration.
pub fn all(config: &Config, host: &Host) -> Vec<Profile> {
    let mut all = builtin::all(host);
    for profile in config.profiles() {
        match all.iter_mut().find(|known| known.name == profile.name) {
            Some(known) => *known = profile,
            None => all.push(profile),
        }
    }
    all
}

/// The profile of this name.
pub fn find(name: &str, config: &Config, host: &Host) -> Option<Profile> {
    all(config, host).into_iter().find(|profile| profile.name == name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_configurations_profiles_take_the_place_of_berths_own() {
        let host = Host {
            cpus: 8,
            memory: Size::from_gib(32),
        };
        let text = "profiles:\n  work:\n    cpus: 3\n  balanced:\n    cpus: 5\n";
        let config = Config::parse(text, Path::new("c")).unwrap();
        let all = all(&config, &host);
        let names: Vec<_> = all
            .iter()
            .map(|profile| (profile.name.as_str(), profile.origin))
            .collect();
        assert_eq!(
            names,
            [
                ("light", Origin::Builtin),
                ("balanced", Origin::Config),
                ("heavy", Origin::Builtin),
                ("work", Origin::Config)
            ]
        );
        let balanced = find("balanced", &config, &host).unwrap().settings;
        assert_eq!((balanced.cpus, balanced.memory), (Some(5), None));
        assert_eq!(find("nothing", &config, &host), None);
    }
}
