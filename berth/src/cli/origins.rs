//! Where each setting of a machine comes from, for `berth config`.

use std::fmt;

use serde::Serialize;

use crate::config::Places;
use crate::machine::settings::Chosen;
use crate::profiles::ProfileSettings;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "from", rename_all = "lowercase")]
pub(super) enum ValueOrigin {
    /// Nobody said anything.
    Default,
    /// The configuration.
    File {
        /// Its line, where that could be told.
        line: Option<usize>,
    },
    /// The machine's profile.
    Profile {
        /// Its name.
        name: String,
        /// The line of the configuration, when it is from there.
        line: Option<usize>,
    },
    /// An option of an earlier start, or `berth share` or `berth profile`: the machine's record.
    Record,
    /// The profiles that the machine may be switched to.
    Profiles,
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_line = |line: &Option<usize>| line.map_or_else(String::new, |line| format!(", line {line}"));
        match self {
            ValueOrigin::Default => f.write_str("default"),
            ValueOrigin::File { line } => write!(f, "file{}", in_line(line)),
            ValueOrigin::Profile { name, line } => write!(f, "profile {name}{}", in_line(line)),
            ValueOrigin::Record => f.write_str("chosen for this machine"),
            ValueOrigin::Profiles => f.write_str("the largest of the profiles"),
        }
    }
}

/// What settings may come from.
pub(super) struct Sources<'a> {
    /// The machine's record.
    pub(super) chosen: &'a Chosen,
    /// Its profile, with its name.
    pub(super) profile: Option<(&'a str, &'a ProfileSettings)>,
    /// What stands where in the configuration.
    pub(super) places: &'a Places,
    /// Whether the configuration has a setting, by its path.
    pub(super) in_file: &'a dyn Fn(&str) -> bool,
}

impl Sources<'_> {
    /// Where the setting `path` comes from.
    pub(super) fn of(&self, path: &str) -> ValueOrigin {
        let chosen = match path {
            "profile" => self.chosen.profile.is_some(),
            "cpus" => self.chosen.cpus.is_some(),
            "memory" => self.chosen.memory.is_some(),
            "disk" => self.chosen.disk.is_some(),
            "engine" => self.chosen.engine.is_some(),
            "shares" => !self.chosen.shares.is_empty(),
            _ => false,
        };
        if chosen {
            return ValueOrigin::Record;
        }
        if let Some((name, profile)) = self.profile {
            let says = match path {
                "cpus" => profile.cpus.is_some(),
                "memory" => profile.memory.is_some(),
                "disk" => profile.disk.is_some(),
                "shares" => profile.shares.is_some(),
                "network.enabled" => profile.network.is_some(),
                _ => false,
            };
            if says {
                let key = path.split('.').next().unwrap_or(path);
                return ValueOrigin::Profile {
                    name: name.to_owned(),
                    line: self.places.line(&format!("profiles.{name}.{key}")),
                };
            }
        }
        if (self.in_file)(path) {
            return ValueOrigin::File {
                line: self.places.line(path),
            };
        }
        ValueOrigin::Default
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_chosen_comes_before_the_profile_and_that_before_the_file() {
        let text = "cpus: 1\nmemory: 1GiB\ndisk: 9GiB\nprofiles:\n  a:\n    cpus: 2\n    memory: 2GiB\n";
        let chosen = Chosen {
            profile: Some("a".into()),
            cpus: Some(3),
            ..Chosen::default()
        };
        let profile = ProfileSettings {
            cpus: Some(2),
            memory: Some(crate::size::Size::from_gib(2)),
            ..ProfileSettings::default()
        };
        let places = Places::of(text);
        let sources = Sources {
            chosen: &chosen,
            profile: Some(("a", &profile)),
            places: &places,
            in_file: &|path| ["cpus", "memory", "disk"].contains(&path),
        };
        assert_eq!(sources.of("cpus"), ValueOrigin::Record);
        assert_eq!(sources.of("memory").to_string(), "profile a, line 7");
        assert_eq!(sources.of("disk").to_string(), "file, line 3");
        assert_eq!(sources.of("engine"), ValueOrigin::Default);
        assert_eq!(
            serde_json::to_value(sources.of("disk")).unwrap(),
            serde_json::json!({ "from": "file", "line": 3 })
        );
    }
}
