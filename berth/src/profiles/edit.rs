//! Changing a profile in the text of a configuration that somebody has written, with comments and an order of their own.
//!
//! Only the lines of that profile are touched. The result is read again and compared with what was meant; a text that is
//! written in a way this does not understand is left alone, and its owner told to change it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::ProfileSettings;
use crate::config::{Config, ConfigError, Place, Places};

/// Why a profile could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The configuration is wrong as it is.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The text is written in a way that cannot be changed safely.
    #[error(
        "{path} is written in a way that berth does not change by itself (its `profiles:` do not stand in lines of `key: \
         value`); change the profile {name} there, with an editor"
    )]
    Unusual {
        /// The file.
        path: PathBuf,
        /// The profile.
        name: String,
    },
    /// The file could not be written.
    #[error("cannot write the configuration {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The text of a configuration, and what it says.
#[derive(Debug, Clone)]
pub struct ConfigText {
    path: PathBuf,
    text: String,
    config: Config,
}

impl ConfigText {
    /// Reads the file at `path`; an empty text when there is none.
    pub fn load(path: &Path) -> Result<ConfigText, EditError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                }
                .into());
            }
        };
        ConfigText::new(path, text)
    }

    /// This text, which stands or is to stand in `path`.
    pub fn new(path: &Path, text: String) -> Result<ConfigText, EditError> {
        Ok(ConfigText {
            config: Config::parse(&text, path)?,
            path: path.to_owned(),
            text,
        })
    }

    /// What it says.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The text itself.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The same text, to be put in another file.
    #[must_use]
    pub fn in_place_of(self, path: &Path) -> ConfigText {
        ConfigText {
            path: path.to_owned(),
            ..self
        }
    }

    /// With a profile added, or changed: settings that are left out here stay as they are.
    pub fn with(&self, name: &str, settings: &ProfileSettings) -> Result<ConfigText, EditError> {
        let before = self.config.profiles().find(|profile| profile.name == name);
        let before = before.map(|profile| profile.settings).unwrap_or_default();
        let wanted = ProfileSettings {
            cpus: settings.cpus.or(before.cpus),
            memory: settings.memory.or(before.memory),
            disk: settings.disk.or(before.disk),
            network: settings.network.or(before.network),
            shares: before.shares,
        };
        let text = set(&self.text, name, &values(settings));
        self.checked(name, text, &self.config.with_profile(name, Some(&wanted)))
    }

    /// Without a profile.
    pub fn without(&self, name: &str) -> Result<ConfigText, EditError> {
        let text = remove(&self.text, name);
        self.checked(name, text, &self.config.with_profile(name, None))
    }

    fn checked(&self, name: &str, text: Option<String>, wanted: &Config) -> Result<ConfigText, EditError> {
        let changed = text.and_then(|text| ConfigText::new(&self.path, text).ok());
        changed
            .filter(|changed| changed.config.says_the_same_as(wanted))
            .ok_or_else(|| EditError::Unusual {
                path: self.path.clone(),
                name: name.to_owned(),
            })
    }

    /// Puts it in its file, whole or not at all.
    pub fn store(&self) -> Result<(), EditError> {
        self.write().map_err(|source| EditError::Write {
            path: self.path.clone(),
            source,
        })
    }

    fn write(&self) -> io::Result<()> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        // Configurations are often symbolic links into a directory under version control; the link stays.
        let path = match self.path.canonicalize() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.path.clone(),
            path => path?,
        };
        let aside = path.with_extension("yaml.new");
        let write = || {
            let mut file = fs::File::create(&aside)?;
            if let Ok(before) = fs::metadata(&path) {
                file.set_permissions(before.permissions())?;
            }
            file.write_all(self.text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&aside, &path)
        };
        write().inspect_err(|_| {
            // Best effort: the next write replaces it.
            let _ = fs::remove_file(&aside);
        })
    }
}

/// The keys and values to be written.
fn values(settings: &ProfileSettings) -> Vec<(&'static str, String)> {
    [
        ("cpus", settings.cpus.map(|cpus| cpus.to_string())),
        ("memory", settings.memory.map(|memory| memory.to_config())),
        ("disk", settings.disk.map(|disk| disk.to_config())),
        ("network", settings.network.map(|network| network.to_string())),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
    .collect()
}

/// `text` with these values in the profile `name`; none when it cannot be told where they go.
fn set(text: &str, name: &str, values: &[(&'static str, String)]) -> Option<String> {
    let places = Places::of(text);
    let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    let entry = format!("profiles.{name}");
    if let Some(profile) = places.find(&entry) {
        // From the last line to the first, so that line numbers hold.
        let mut added = Vec::new();
        let mut changed: Vec<(&Place, &String)> = Vec::new();
        let inner = places
            .find_first_within(&entry)
            .map_or(profile.indent + 2, |place| place.indent);
        for (key, value) in values {
            match places.find(&format!("{entry}.{key}")) {
                Some(place) => changed.push((place, value)),
                None => added.push(format!("{:inner$}{key}: {value}", "")),
            }
        }
        for (place, value) in changed {
            lines[place.line] = with_value(&lines[place.line], value)?;
        }
        lines.splice(profile.end..profile.end, added);
        return Some(joined(&lines));
    }
    let (at, outer) = match places.find("profiles") {
        Some(profiles) => {
            let outer = places
                .find_first_within("profiles")
                .map_or(profiles.indent + 2, |place| place.indent);
            (profiles.end, outer)
        }
        None => {
            if lines.last().is_some_and(|last| !last.trim().is_empty()) {
                lines.push(String::new());
            }
            lines.push("profiles:".to_owned());
            (lines.len(), 2)
        }
    };
    let inner = outer + 2;
    let head = format!("{:outer$}{name}:", "");
    let body = values
        .iter()
        .map(|(key, value)| format!("{:inner$}{key}: {value}", ""));
    lines.splice(at..at, std::iter::once(head).chain(body));
    Some(joined(&lines))
}

/// `text` without the profile `name`.
fn remove(text: &str, name: &str) -> Option<String> {
    let places = Places::of(text);
    let profile = places.find(&format!("profiles.{name}"))?;
    let lines = text.lines().enumerate();
    let left = lines.filter(|(line, _)| !(profile.line..profile.end).contains(line));
    Some(joined(&left.map(|(_, line)| line.to_owned()).collect::<Vec<_>>()))
}

/// A line `key: old # why` with another value.
fn with_value(line: &str, value: &str) -> Option<String> {
    let (key, rest) = line.split_once(": ")?;
    let comment = rest.find(" #").map_or("", |at| {
        let spaces = rest[..at].len() - rest[..at].trim_end().len();
        &rest[at - spaces..]
    });
    Some(format!("{key}: {value}{comment}"))
}

fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Size;

    const TEXT: &str = "\
# My machines.
cpus: 2   # enough

profiles:
    # For the train.
    train:
        cpus: 1   # the battery
        # Not more.
        memory: 1GiB
        shares:
        - path: /nowhere

    # At the desk.
    desk:
        memory: 4GiB
        cpus: 4

# The rest.
engine: qemu
";

    fn text(text: &str) -> ConfigText {
        ConfigText::new(Path::new("/c.yaml"), text.to_owned()).unwrap()
    }

    fn settings(cpus: Option<u8>, memory: Option<u64>) -> ProfileSettings {
        ProfileSettings {
            cpus,
            memory: memory.map(Size::from_mib),
            ..ProfileSettings::default()
        }
    }

    /// The lines that are in one and not in the other: gone with `-`, new with `+`.
    fn difference(before: &str, after: &str) -> Vec<String> {
        let gone = before
            .lines()
            .filter(|line| !after.lines().any(|other| other == *line));
        let new = after
            .lines()
            .filter(|line| !before.lines().any(|other| other == *line));
        gone.map(|line| format!("-{line}"))
            .chain(new.map(|line| format!("+{line}")))
            .collect()
    }

    #[test]
    fn a_change_touches_its_line_and_keeps_its_comment() {
        let before = text(TEXT);
        let after = before.with("train", &settings(Some(2), None)).unwrap();
        assert_eq!(
            difference(TEXT, after.text()),
            [
                "-        cpus: 1   # the battery",
                "+        cpus: 2   # the battery"
            ]
        );
        let disk = ProfileSettings {
            disk: Some(Size::from_gib(80)),
            network: Some(false),
            ..settings(None, Some(1536))
        };
        let after = before.with("train", &disk).unwrap();
        assert_eq!(
            difference(TEXT, after.text()),
            [
                "-        memory: 1GiB",
                "+        memory: 1536MiB",
                "+        disk: 80GiB",
                "+        network: false"
            ]
        );
        let shares = after.config().profiles().next().unwrap().settings.shares;
        assert!(shares.is_some(), "what is not named stays");
    }

    #[test]
    fn a_new_profile_comes_after_the_others_in_their_form() {
        let after = text(TEXT).with("night", &settings(Some(8), Some(8192))).unwrap();
        assert_eq!(
            difference(TEXT, after.text()),
            ["+    night:", "+      cpus: 8", "+      memory: 8GiB"]
        );
        let names: Vec<_> = after.config().profiles().map(|profile| profile.name).collect();
        assert_eq!(names, ["train", "desk", "night"]);
        assert!(after.text().ends_with("# The rest.\nengine: qemu\n"));
    }

    #[test]
    fn a_profile_is_added_where_there_is_none_or_no_text_at_all() {
        for before in [
            "",
            "# nothing\n",
            "cpus: 1",
            "profiles:\n",
            "profiles:   # mine\n\ncpus: 1\n",
        ] {
            let after = text(before).with("a", &settings(Some(1), None)).unwrap();
            assert!(after.config().profiles().any(|profile| profile.name == "a"));
            for line in before.lines() {
                assert!(
                    after.text().lines().any(|other| other == line),
                    "{before:?}: {line}"
                );
            }
        }
    }

    #[test]
    fn a_profile_goes_alone() {
        let after = text(TEXT).without("desk").unwrap();
        assert_eq!(
            difference(TEXT, after.text()),
            ["-    desk:", "-        memory: 4GiB", "-        cpus: 4"]
        );
        let none = after.without("train").unwrap();
        assert_eq!(none.config().profiles().count(), 0);
        assert!(none.text().contains("# For the train.\n") && none.text().contains("\nprofiles:\n"));
    }

    #[test]
    fn what_is_written_in_another_way_is_left_alone() {
        for unusual in [
            "profiles: {a: {cpus: 1}}\n",
            "profiles:\n  a: {cpus: 1}\n",
            "{profiles: {a: {cpus: 1}}}\n",
            "profiles:\n  ? a\n  : cpus: 1\n",
            "profiles:\n  a: &x\n    cpus: 1\n  b: *x\n",
            "profiles:\n  a:\n    cpus:\n      1\n",
        ] {
            let Ok(before) = ConfigText::new(Path::new("/c.yaml"), unusual.to_owned()) else {
                panic!("{unusual}");
            };
            let error = before
                .with("a", &settings(Some(2), None))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("with an editor") && error.contains("/c.yaml"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_is_replaced_where_a_link_leads() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real.yaml"), dir.path().join("config.yaml"));
        fs::write(&real, TEXT).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let changed = ConfigText::load(&link).unwrap().without("desk").unwrap();
        changed.store().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), changed.text());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
