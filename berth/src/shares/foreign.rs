//! Paths as other systems write them: `C:\Users\me`, `/c/Users/me`, `/Users/me`.
//!
//! A compose file that was written for Docker Desktop, or a client that runs elsewhere, names its directories in the way of
//! its own system. The configuration's table `paths` says which directory of this host each stands for. One line serves all
//! the spellings of a directory:
//!
//! | of | spellings |
//! |---|---|
//! | a drive | `C:\x`, `c:/x`, `\\?\C:\x`, `/c/x`, `//c/x`, `/host_mnt/c/x`, `/mnt/c/x`, `/run/desktop/mnt/host/c/x` |
//! | a Unix path | `/Users/x`, `/host_mnt/Users/x` |
//!
//! On a drive, case does not matter, as Windows has it. The longest line that fits wins. Without a line for it, a path of
//! this form is what it is on Linux: `/c/x` is a directory `/c`.

use std::path::{Path, PathBuf};

/// What other programs put before a drive's letter or a path of a Mac.
const PREFIXES: &[&[&str]] = &[&["run", "desktop", "mnt", "host"], &["host_mnt"], &["mnt"], &[]];

/// The table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathTable(Vec<Line>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    from: Place,
    to: PathBuf,
}

/// A path in a form that all its spellings share.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// The drive's letter in lower case; none for a Unix path.
    drive: Option<char>,
    names: Vec<String>,
}

/// What the table says of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapped {
    /// It stands for this path of the host.
    To(PathBuf),
    /// It is a path of Windows, and no line is for it.
    Nowhere,
    /// Nothing: it is a path of this host, or no path at all.
    AsItIs,
}

impl PathTable {
    /// A table of these lines, each a prefix and the directory of this host it stands for.
    ///
    /// # Errors
    /// The first prefix that is no absolute path of any system.
    pub fn new(lines: impl IntoIterator<Item = (String, PathBuf)>) -> Result<PathTable, String> {
        lines
            .into_iter()
            .map(|(from, to)| match Place::of_prefix(&from) {
                Some(from) => Ok(Line { from, to }),
                None => Err(from),
            })
            .collect::<Result<_, _>>()
            .map(PathTable)
    }

    /// What `source` stands for.
    pub fn map(&self, source: &str) -> Mapped {
        let longest = Place::readings(source)
            .into_iter()
            .flat_map(|place| {
                self.0
                    .iter()
                    .filter_map(move |line| Some((line, line.rest(&place)?)))
            })
            .max_by_key(|(line, _)| line.from.names.len());
        match longest {
            Some((line, rest)) => Mapped::To(rest.iter().fold(line.to.clone(), |path, name| path.join(name))),
            None if windows_path(source).is_some() => Mapped::Nowhere,
            None => Mapped::AsItIs,
        }
    }
}

impl Line {
    /// What of `place` lies below this line's prefix.
    fn rest(&self, place: &Place) -> Option<Vec<String>> {
        let ours = &self.from.names;
        let fits = self.from.drive == place.drive
            && place.names.len() >= ours.len()
            && ours.iter().zip(&place.names).all(|(ours, theirs)| {
                ours == theirs || place.drive.is_some() && ours.to_lowercase() == theirs.to_lowercase()
            });
        fits.then(|| place.names[ours.len()..].to_vec())
    }
}

impl Place {
    /// A prefix of the table: the reading that a person means, which is the first.
    fn of_prefix(text: &str) -> Option<Place> {
        Place::readings(text).into_iter().next()
    }

    /// All places `text` may mean.
    fn readings(text: &str) -> Vec<Place> {
        if let Some((drive, rest)) = windows_path(text) {
            return names(rest, &['\\', '/'])
                .map(|names| Place {
                    drive: Some(drive),
                    names,
                })
                .into_iter()
                .collect();
        }
        if !text.starts_with('/') {
            return Vec::new();
        }
        let Some(all) = names(text, &['/']) else {
            return Vec::new();
        };
        let mut readings = Vec::new();
        for prefix in PREFIXES {
            let Some(rest) = strip(&all, prefix) else {
                continue;
            };
            if let Some((drive, names)) = rest
                .split_first()
                .and_then(|(first, names)| Some((letter(first)?, names)))
            {
                readings.push(Place {
                    drive: Some(drive),
                    names: names.to_vec(),
                });
            }
            // Below `/mnt`, a Linux path is a Linux path.
            if *prefix != ["mnt"] {
                readings.push(Place {
                    drive: None,
                    names: rest.to_vec(),
                });
            }
        }
        readings
    }
}

fn strip<'a>(names: &'a [String], prefix: &[&str]) -> Option<&'a [String]> {
    let fits = names.len() >= prefix.len() && names.iter().zip(prefix).all(|(name, prefix)| name == prefix);
    fits.then(|| &names[prefix.len()..])
}

/// The letter of a drive's directory (`/c`).
fn letter(name: &str) -> Option<char> {
    let mut chars = name.chars();
    let letter = chars.next().filter(char::is_ascii_alphabetic)?;
    chars.next().is_none().then(|| letter.to_ascii_lowercase())
}

/// The drive and the rest of a path such as `C:\x` or `c:/x`; `C:x` is relative and none.
fn windows_path(text: &str) -> Option<(char, &str)> {
    let text = text.strip_prefix(r"\\?\").unwrap_or(text);
    let (drive, rest) = text.split_at_checked(1)?;
    let rest = rest.strip_prefix(':')?;
    let absolute = rest.is_empty() || rest.starts_with(['\\', '/']);
    Some((letter(drive).filter(|_| absolute)?, rest))
}

/// How much of `text` a Windows path with its drive's colon takes, when a colon ends it: for who has to cut at colons.
pub fn windows_path_length(text: &str) -> Option<usize> {
    let (_, rest) = windows_path(text)?;
    let start = text.len() - rest.len();
    Some(start + rest.find(':').unwrap_or(rest.len()))
}

/// The names of a path; `..` takes the one before away, and one too many is no path.
fn names(path: &str, separators: &[char]) -> Option<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for name in path.split(separators) {
        match name {
            "" | "." => {}
            ".." => {
                names.pop()?;
            }
            name => names.push(name.to_owned()),
        }
    }
    Some(names)
}

/// Whether `text` can stand on the left of a line of the table.
pub fn is_prefix(text: &str) -> bool {
    Place::of_prefix(text).is_some() && Path::new(text) != Path::new("/")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(lines: &[(&str, &str)]) -> PathTable {
        PathTable::new(
            lines
                .iter()
                .map(|(from, to)| ((*from).to_owned(), PathBuf::from(to))),
        )
        .unwrap()
    }

    #[test]
    fn one_line_serves_every_spelling_of_a_directory_on_a_drive() {
        for from in [r"C:\Users\me", "c:/Users/me/", "/c/Users/me", "//c/users/Me"] {
            let table = table(&[(from, "/home/me")]);
            for (source, path) in [
                (r"C:\Users\me\src", "/home/me/src"),
                (r"c:\users\ME\Src", "/home/me/Src"),
                ("C:/Users/me/src", "/home/me/src"),
                ("c:/Users/me", "/home/me"),
                (r"C:\Users/me\a b", "/home/me/a b"),
                (r"\\?\C:\Users\me\src", "/home/me/src"),
                ("/c/Users/me/src", "/home/me/src"),
                ("/C/Users/me/src", "/home/me/src"),
                ("//c/Users/me/src", "/home/me/src"),
                ("/host_mnt/c/Users/me/src", "/home/me/src"),
                ("/mnt/c/Users/me/src", "/home/me/src"),
                ("/run/desktop/mnt/host/c/Users/me/src", "/home/me/src"),
                (r"C:\Users\me\a\..\b\.\c", "/home/me/b/c"),
            ] {
                assert_eq!(table.map(source), Mapped::To(path.into()), "{from} {source}");
            }
        }
    }

    #[test]
    fn paths_of_a_mac_have_their_line_too() {
        let table = table(&[
            ("/Users", "/home"),
            ("/Users/shared", "/srv/shared"),
            ("/Volumes/x", "/mnt/x"),
        ]);
        for (source, path) in [
            ("/Users/me/src", "/home/me/src"),
            ("/Users", "/home"),
            ("/host_mnt/Users/me", "/home/me"),
            ("/Users/shared/a", "/srv/shared/a"),
            ("//Users//me/", "/home/me"),
            ("/Volumes/x/y", "/mnt/x/y"),
        ] {
            assert_eq!(table.map(source), Mapped::To(path.into()), "{source}");
        }
        for source in [
            "/users/me",
            "/Usersx",
            "/mnt/Users/me",
            "/home/me",
            "volume",
            "Users/me",
            "",
        ] {
            assert_eq!(table.map(source), Mapped::AsItIs, "{source}");
        }
    }

    #[test]
    fn the_longest_line_wins_whatever_their_order() {
        for lines in [
            [("C:", "/mnt/c"), (r"C:\Users\me", "/home/me")],
            [(r"C:\Users\me", "/home/me"), ("C:", "/mnt/c")],
        ] {
            let table = table(&lines);
            assert_eq!(table.map(r"C:\Users\me\x"), Mapped::To("/home/me/x".into()));
            assert_eq!(
                table.map(r"C:\Users\mean"),
                Mapped::To("/mnt/c/Users/mean".into())
            );
            assert_eq!(table.map("c:"), Mapped::To("/mnt/c".into()));
            assert_eq!(table.map(r"D:\x"), Mapped::Nowhere);
        }
    }

    #[test]
    fn without_a_line_only_what_can_be_nothing_else_is_a_path_of_windows() {
        let table = PathTable::default();
        for source in [r"C:\Users\me", "c:/x", "C:", r"\\?\D:\x", r"C:\..\.."] {
            assert_eq!(table.map(source), Mapped::Nowhere, "{source}");
        }
        for source in [
            "/c/Users/me",
            "/mnt/c",
            "/Users/me",
            "/",
            "c",
            "C:x",
            "cache:/x",
            r"\\server\x",
        ] {
            assert_eq!(table.map(source), Mapped::AsItIs, "{source}");
        }
    }

    #[test]
    fn a_path_that_leaves_its_prefix_is_not_under_it() {
        let table = table(&[(r"C:\Users\me", "/home/me"), ("/Users/me", "/home/me")]);
        assert_eq!(table.map(r"C:\Users\me\..\you"), Mapped::Nowhere);
        assert_eq!(table.map("/Users/me/../you"), Mapped::AsItIs);
    }

    #[test]
    fn a_bind_is_cut_behind_the_drives_colon() {
        for (bind, length) in [
            (r"C:\a\b:/x", Some(6)),
            ("c:/a:/x:ro", Some(4)),
            (r"\\?\C:\a:/x", Some(8)),
            ("c:/a", Some(4)),
            ("/a:/x", None),
            ("name:/x", None),
        ] {
            assert_eq!(windows_path_length(bind), length, "{bind}");
        }
        // One letter may be a volume's name; with an absolute target it is ambiguous, and Windows wins as in docker's own
        // client.
        assert_eq!(windows_path_length("c:/x"), Some(4));
    }

    #[test]
    fn prefixes_are_absolute_paths_of_some_system() {
        for text in ["C:", r"c:\x", "/Users", "/c", "//c/Users"] {
            assert!(is_prefix(text), "{text}");
        }
        for text in ["", "/", "Users", "x:y", "../x", "C:x"] {
            assert!(!is_prefix(text), "{text}");
        }
        assert_eq!(PathTable::new([("x".to_owned(), "/".into())]), Err("x".into()));
    }

    proptest! {
        #[test]
        fn whatever_is_mapped_stays_below_the_lines_directory(source in r"[cC/\\:.a-bUsers]{0,24}") {
            let table = table(&[("C:", "/mnt/drive"), ("/Users", "/mnt/mac")]);
            if let Mapped::To(path) = table.map(&source) {
                prop_assert!(path.starts_with("/mnt/drive") || path.starts_with("/mnt/mac"));
                prop_assert!(!path.components().any(|part| part == std::path::Component::ParentDir));
            }
        }
    }
}
