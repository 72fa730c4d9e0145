//! The configuration's `shares` and `paths`, each entry checked where it stands.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};

use crate::paths::home;
use crate::shares::foreign::{self, PathTable};
use crate::shares::{Share, rules};

const PATH: &str = "an absolute path, or one that begins with `~/`";
const TARGET: &str = "an absolute path in the guest";
const EXCLUDE: &str = "a path relative to the share, without `..`";
const SHARES: &str = "a list of shares, each with at least `path: DIRECTORY`";
const SHARE: &str = "a share: `path: DIRECTORY`, and optionally `target`, `read_only` and `exclude`";
const PREFIX: &str = "the beginning of a path, such as `C:\\Users\\me` or `/Users/me`";
const PATHS: &str = "lines such as `C:\\Users\\me: ~`, each with a directory of this host";

/// A directory of the host, `~` taken for the home directory.
#[derive(Debug, Clone, PartialEq)]
struct HostPath(PathBuf);

struct HostPathVisitor;

impl HostPathVisitor {
    fn expand<E: Error>(self, text: &str) -> Result<HostPath, E> {
        let refused = |visitor: &Self| E::invalid_value(Unexpected::Str(text), visitor);
        let Some(below) = text.strip_prefix('~') else {
            return Some(PathBuf::from(text))
                .filter(|path| path.is_absolute())
                .map(HostPath)
                .ok_or_else(|| refused(&self));
        };
        // `~somebody` is not the user's home, and nobody's business.
        if !below.is_empty() && !below.starts_with('/') {
            return Err(refused(&self));
        }
        let home =
            home().ok_or_else(|| E::custom("`~` is not known: HOME is not set to an absolute path"))?;
        Ok(HostPath(home.join(below.trim_start_matches('/'))))
    }
}

impl Visitor<'_> for HostPathVisitor {
    type Value = HostPath;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PATH)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<HostPath, E> {
        self.expand(text)
    }

    // A bare `~` is YAML's null, and means home all the same.
    fn visit_unit<E: Error>(self) -> Result<HostPath, E> {
        self.expand("~")
    }
}

impl<'de> Deserialize<'de> for HostPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HostPathVisitor)
    }
}

/// A text that has to be a path of some kind.
struct PathText<F> {
    expected: &'static str,
    check: F,
}

impl<F, T> Visitor<'_> for PathText<F>
where
    F: FnOnce(&Path) -> Result<T, rules::ShareError>,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.check)(Path::new(text)).map_err(E::custom)
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Target(PathBuf);

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = PathText {
            expected: TARGET,
            check: rules::target,
        };
        deserializer.deserialize_any(visitor).map(Target)
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Exclude(PathBuf);

impl<'de> Deserialize<'de> for Exclude {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = PathText {
            expected: EXCLUDE,
            check: rules::exclude,
        };
        deserializer.deserialize_any(visitor).map(Exclude)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: HostPath,
    target: Option<Target>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    exclude: Vec<Exclude>,
}

/// The list of shares.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Shares(pub(super) Vec<Share>);

impl<'de> Deserialize<'de> for Shares {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Shares;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SHARES)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Shares, A::Error> {
                let mut shares = Vec::new();
                while let Some(share) = entries.next_element_seed(NextShare(&shares))? {
                    shares.push(share);
                }
                Ok(Shares(shares))
            }
        }

        deserializer.deserialize_any(List)
    }
}

/// One entry, which must not overlap with those before it. Checked while it is read, so that its line is known.
struct NextShare<'a>(&'a [Share]);

impl<'de> serde::de::DeserializeSeed<'de> for NextShare<'_> {
    type Value = Share;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Share, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NextShare<'_> {
    type Value = Share;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHARE)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Share, A::Error> {
        let entry = Entry::deserialize(MapAccessDeserializer::new(map))?;
        let exclude: Vec<PathBuf> = entry.exclude.into_iter().map(|exclude| exclude.0).collect();
        let target = entry.target.as_ref().map(|target| target.0.as_path());
        let share = Share::new(&entry.path.0, target, entry.read_only, &exclude).map_err(A::Error::custom)?;
        rules::no_overlap(&share, self.0).map_err(A::Error::custom)?;
        Ok(share)
    }
}

/// The table of paths as other systems write them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Paths(pub(super) PathTable);

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table;

        impl<'de> Visitor<'de> for Table {
            type Value = Paths;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(PATHS)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Paths, A::Error> {
                let mut lines = Vec::new();
                while let Some(Prefix(prefix)) = map.next_key()? {
                    let HostPath(path) = map.next_value()?;
                    let path = rules::path(&path).map_err(A::Error::custom)?;
                    lines.push((prefix, path));
                }
                PathTable::new(lines).map(Paths).map_err(A::Error::custom)
            }
        }

        deserializer.deserialize_any(Table)
    }
}

struct Prefix(String);

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Prefix;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(PREFIX)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Prefix, E> {
                if foreign::is_prefix(text) {
                    Ok(Prefix(text.to_owned()))
                } else {
                    Err(E::invalid_value(Unexpected::Str(text), &self))
                }
            }
        }

        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::shares::foreign::Mapped;

    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("/c.yaml")).unwrap()
    }

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("/c.yaml")).unwrap_err().to_string()
    }

    #[test]
    fn shares_are_read_with_everything_they_can_have() {
        let config = parse(
            "shares:\n  - path: /nowhere/src/\n  - path: /nowhere/data\n    target: /data\n    read_only: true\n    exclude: \
             [.ssh, a/b]\n",
        );
        let shares = config.shares().unwrap();
        assert_eq!(shares[0].path, Path::new("/nowhere/src"));
        assert_eq!(shares[0].target, shares[0].path);
        assert!(!shares[0].read_only && shares[0].exclude.is_empty());
        assert_eq!(shares[1].target, Path::new("/data"));
        assert!(shares[1].read_only);
        assert_eq!(shares[1].exclude, [PathBuf::from(".ssh"), PathBuf::from("a/b")]);
        assert_eq!(parse("shares: []\n").shares(), Some(Vec::new()));
        assert_eq!(parse("").shares(), None);
    }

    #[test]
    fn a_tilde_is_the_home_directory_quoted_or_not() {
        let home = home().expect("tests have a home");
        for text in ["~", "'~'", "~/"] {
            let config = parse(&format!("paths:\n  /Users/me: {text}\n"));
            assert_eq!(
                config.path_table().map("/Users/me/x"),
                Mapped::To(home.join("x")),
                "{text}"
            );
        }
        let config = parse("shares:\n  - path: ~/no-such-directory\n    target: /x\n");
        assert_eq!(config.shares().unwrap()[0].path, home.join("no-such-directory"));
        assert!(error("shares:\n  - path: ~root\n").contains("begins with `~/`"));
    }

    #[test]
    fn a_wrong_share_is_refused_with_its_line() {
        assert_eq!(
            error("shares:\n  - path: src\n"),
            "/c.yaml:2:11: shares[0].path: invalid value: string \"src\", expected an absolute path, or one that begins \
             with `~/`"
        );
        let hides = error("shares:\n  - path: /nowhere\n    target: /usr\n");
        assert!(
            hides.starts_with("/c.yaml:3:13: shares[0].target: a share on /usr would hide /usr"),
            "{hides}"
        );
        let own = error("shares:\n  - path: /nowhere\n  - path: /var\n");
        assert!(
            own.starts_with("/c.yaml:3:5: shares[1]: a share on /var would hide"),
            "{own}"
        );
        let exclude = error("shares:\n  - path: /nowhere\n    exclude:\n      - a\n      - ../x\n");
        assert!(
            exclude.starts_with("/c.yaml:5:9: shares[0].exclude[1]: the exclusion ../x is not"),
            "{exclude}"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let no_dir = error(&format!("shares:\n- path: {}\n", file.path().display()));
        assert!(
            no_dir.starts_with("/c.yaml:2:3: shares[0]: ") && no_dir.contains("is not a directory"),
            "{no_dir}"
        );
    }

    #[test]
    fn shares_that_overlap_are_refused_at_the_second() {
        let paths = error(
            "shares:\n  - path: /nowhere\n  - path: /elsewhere\n  - path: /nowhere/x\n    target: /y\n",
        );
        assert!(
            paths.starts_with("/c.yaml:4:5: shares[2]: /nowhere and /nowhere/x overlap"),
            "{paths}"
        );
        let targets = error("shares:\n  - path: /nowhere\n  - path: /elsewhere\n    target: /nowhere/y\n");
        assert!(
            targets.contains("would both be on /nowhere/y in the guest"),
            "{targets}"
        );
    }

    #[test]
    fn what_is_no_list_of_shares_is_refused_with_what_is_accepted() {
        assert!(error("shares: ~/src\n").contains("expected a list of shares"));
        assert!(error("shares:\n  - /src\n").contains("expected a share: `path: DIRECTORY`"));
        let unknown = error("shares:\n  - path: /x\n    readonly: true\n");
        assert!(
            unknown.starts_with("/c.yaml:3:5: shares[0]: unknown field `readonly`, expected one of `path`"),
            "{unknown}"
        );
        assert!(error("shares:\n  - target: /x\n").contains("missing field `path`"));
        assert!(error("shares:\n  - path: /x\n    read_only: maybe\n").contains("read_only"));
    }

    #[test]
    fn the_table_of_paths_is_read_and_checked() {
        let config = parse("paths:\n  'C:\\Users\\me': /home/me\n  /Users: /home\n");
        let table = config.path_table();
        assert_eq!(table.map(r"c:\users\me\src"), Mapped::To("/home/me/src".into()));
        assert_eq!(table.map("/Users/you"), Mapped::To("/home/you".into()));
        let key = error("paths:\n  me: /home/me\n");
        assert!(
            key.starts_with("/c.yaml:2:3: paths: invalid value: string \"me\""),
            "{key}"
        );
        assert!(
            key.contains("expected the beginning of a path, such as `C:\\Users\\me`"),
            "{key}"
        );
        assert!(error("paths:\n  /Users: home\n").starts_with("/c.yaml:2:11: paths./Users: invalid value"));
    }
}
