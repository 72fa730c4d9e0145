//! The configuration's `profiles`: named sets of settings, each value checked where it stands.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Unexpected, Visitor};

use super::shares::Shares;
use super::values::{Cpus, Disk, Memory};

const PROFILES: &str = "lines such as `light:`, each with settings below it";

/// What a profile's name may be, in words.
pub(super) const NAME: &str = "a profile name: 1 to 63 lower-case letters, digits, '_' and '-', beginning with a letter or digit, \
                               and not `none`";

/// The name that means "no profile" where one is chosen.
pub const NO_PROFILE: &str = "none";

/// Whether this can be a profile's name.
pub(super) fn is_name(text: &str) -> bool {
    let letter = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 63
        && text.bytes().next().is_some_and(letter)
        && text.bytes().all(|c| letter(c) || b"_-".contains(&c))
        && text != NO_PROFILE
}

/// What one profile says.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a set of `key: value` lines")]
pub(super) struct ProfileSection {
    pub(super) cpus: Option<Cpus>,
    pub(super) memory: Option<Memory>,
    pub(super) disk: Option<Disk>,
    pub(super) shares: Option<Shares>,
    pub(super) network: Option<bool>,
}

/// All profiles, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Profiles(pub(super) Vec<(String, ProfileSection)>);

impl<'de> Deserialize<'de> for Profiles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;

        impl<'de> Visitor<'de> for All {
            type Value = Profiles;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(PROFILES)
            }

            // `profiles:` with nothing below it, as is left when the last one is deleted.
            fn visit_unit<E: Error>(self) -> Result<Profiles, E> {
                Ok(Profiles::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Profiles, A::Error> {
                let mut profiles: Vec<(String, ProfileSection)> = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    if profiles.iter().any(|(known, _)| *known == name) {
                        return Err(A::Error::custom(format!("duplicate profile `{name}`")));
                    }
                    let section: Option<ProfileSection> = map.next_value()?;
                    profiles.push((name, section.unwrap_or_default()));
                }
                Ok(Profiles(profiles))
            }
        }

        deserializer.deserialize_any(All)
    }
}

struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(NAME)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Name, E> {
                if is_name(text) {
                    Ok(Name(text.to_owned()))
                } else {
                    Err(E::invalid_value(Unexpected::Str(text), &self))
                }
            }

            // YAML takes a name of digits for a number.
            fn visit_u64<E: Error>(self, number: u64) -> Result<Name, E> {
                Ok(Name(number.to_string()))
            }
        }

        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;
    use crate::size::Size;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("/c.yaml")).unwrap_err().to_string()
    }

    #[test]
    fn profiles_are_read_in_their_order() {
        let config = Config::parse(
            "profiles:\n  work:\n    cpus: 3\n    memory: 4GiB\n    disk: 100GiB\n    network: false\n    shares:\n    - path: \
             /nowhere\n  empty:\n  7:\n    cpus: 1\n",
            Path::new("/c.yaml"),
        )
        .unwrap();
        let profiles: Vec<_> = config.profiles().collect();
        let names: Vec<_> = profiles.iter().map(|profile| profile.name.as_str()).collect();
        assert_eq!(names, ["work", "empty", "7"]);
        let work = &profiles[0].settings;
        assert_eq!((work.cpus, work.memory), (Some(3), Some(Size::from_gib(4))));
        assert_eq!(
            (work.disk, work.network),
            (Some(Size::from_gib(100)), Some(false))
        );
        assert_eq!(work.shares.as_ref().unwrap()[0].path, Path::new("/nowhere"));
        assert!(profiles[1].settings.cpus.is_none());
        assert_eq!(
            Config::parse("profiles:\n", Path::new("c"))
                .unwrap()
                .profiles()
                .count(),
            0
        );
    }

    #[test]
    fn a_wrong_value_in_a_profile_is_refused_with_its_place() {
        assert_eq!(
            error("profiles:\n  a:\n    cpus: 0\n"),
            "/c.yaml:3:11: profiles.a.cpus: invalid value: integer `0`, expected a number of CPUs from 1 to 128"
        );
        let memory = error("profiles:\n  a:\n    cpus: 1\n    memory: 4\n");
        assert!(
            memory.starts_with("/c.yaml:4:13: profiles.a.memory: invalid value: integer `4`"),
            "{memory}"
        );
        let unknown = error("profiles:\n  a:\n    cpu: 1\n");
        assert!(
            unknown.starts_with(
                "/c.yaml:3:5: profiles.a: unknown field `cpu`, expected one of `cpus`, `memory`"
            ),
            "{unknown}"
        );
        for name in ["A", "-a", "none", "a b", "a.b"] {
            let message = error(&format!("profiles:\n  {name}:\n    cpus: 1\n"));
            assert!(
                message.starts_with("/c.yaml:2:3: profiles: invalid value")
                    && message.contains("and not `none`"),
                "{message}"
            );
        }
        let twice = error("profiles:\n  a:\n    cpus: 1\n  a:\n    cpus: 2\n");
        assert!(
            twice.starts_with("/c.yaml:") && twice.contains("duplicate profile `a`"),
            "{twice}"
        );
        let list = error("profiles: [a]\n");
        assert!(list.contains("expected lines such as `light:`"), "{list}");
        let network = error("profiles:\n  a:\n    network: sometimes\n");
        assert!(
            network.starts_with("/c.yaml:3:14: profiles.a.network: "),
            "{network}"
        );
    }
}
