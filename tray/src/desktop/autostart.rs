//! Having the icon started at login: an entry among what desktops start (XDG Desktop Application Autostart).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The entry's name.
const FILE: &str = "berth-tray.desktop";

/// Why that could not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AutostartError {
    /// The path of the program cannot stand in such an entry.
    #[error("the path {0:?} has characters that an autostart entry cannot have; install berth elsewhere")]
    Path(PathBuf),
    /// The entry could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The entry.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The entry could not be removed.
    #[error("cannot remove {path}: {source}")]
    Remove {
        /// The entry.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Has the icon of `machine` started at login by this `berth`; the entry's path.
pub(crate) fn install(dir: &Path, berth: &Path, machine: &str) -> Result<PathBuf, AutostartError> {
    let path = dir.join(FILE);
    let text = entry(berth, machine).ok_or_else(|| AutostartError::Path(berth.to_owned()))?;
    let failed = |source| AutostartError::Write {
        path: path.clone(),
        source,
    };
    fs::create_dir_all(dir).map_err(failed)?;
    // Whole or not at all: a desktop may be reading.
    let staged = dir.join(format!(".{FILE}-{}", std::process::id()));
    fs::write(&staged, text)
        .and_then(|()| fs::rename(&staged, &path))
        .inspect_err(|_| drop(fs::remove_file(&staged)))
        .map_err(failed)?;
    Ok(path)
}

/// Has it started no longer; the entry's path, if there was one.
pub(crate) fn uninstall(dir: &Path) -> Result<Option<PathBuf>, AutostartError> {
    let path = dir.join(FILE);
    match fs::remove_file(&path) {
        Ok(()) => Ok(Some(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AutostartError::Remove { path, source }),
    }
}

/// The entry's text; none when the path cannot stand in it.
fn entry(berth: &Path, machine: &str) -> Option<String> {
    let berth = berth.to_str()?;
    if berth.contains(|character: char| character.is_control()) {
        return None;
    }
    let machine = if machine == crate::DEFAULT_MACHINE {
        String::new()
    } else {
        format!(" --machine {machine}")
    };
    Some(format!(
        "[Desktop Entry]\nType=Application\nName=berth\nComment=The status icon of berth's machines\nTryExec={try_exec}\n\
         Exec={exec} tray{machine}\nTerminal=false\nStartupNotify=false\nNoDisplay=true\nX-GNOME-Autostart-enabled=true\n",
        try_exec = berth.replace('\\', "\\\\"),
        exec = quoted(berth),
    ))
}

/// An argument of `Exec` (Desktop Entry Specification, "The Exec key"): quoted, and then escaped as every string is.
fn quoted(argument: &str) -> String {
    let mut quoted = String::from("\"");
    for character in argument.chars() {
        match character {
            '"' | '`' | '$' => quoted.push_str(&format!("\\\\{character}")),
            '\\' => quoted.push_str("\\\\\\\\"),
            '%' => quoted.push_str("%%"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_starts_this_berth() {
        let dir = tempfile::tempdir().unwrap();
        let autostart = dir.path().join("config/autostart");
        let path = install(&autostart, Path::new("/home/u/my bin/berth"), "work").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("\nExec=\"/home/u/my bin/berth\" tray --machine work\n"),
            "{text}"
        );
        assert!(text.contains("\nTryExec=/home/u/my bin/berth\n"));
        install(&autostart, Path::new("/b"), "default").unwrap();
        assert!(
            fs::read_to_string(&path)
                .unwrap()
                .contains("\nExec=\"/b\" tray\n")
        );
        assert_eq!(fs::read_dir(&autostart).unwrap().count(), 1);

        assert_eq!(uninstall(&autostart).unwrap(), Some(path));
        assert_eq!(uninstall(&autostart).unwrap(), None);
    }

    #[test]
    fn what_means_something_in_an_entry_is_escaped() {
        assert_eq!(quoted("/a$b"), r#""/a\\$b""#);
        assert_eq!(quoted("/100%"), r#""/100%%""#);
        assert_eq!(quoted(r"/a\b"), r#""/a\\\\b""#);
        assert_eq!(entry(Path::new("/a\nb"), "default"), None);
    }
}
