//! Running a command in a terminal window.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::{DesktopError, programs};

/// Terminals and what stands before the command, the user's choice and the desktop's first.
const TERMINALS: [(&str, &[&str]); 14] = [
    ("xdg-terminal-exec", &[]),
    ("x-terminal-emulator", &["-e"]),
    ("gnome-terminal", &["--"]),
    ("kgx", &["--"]),
    ("ptyxis", &["--"]),
    ("konsole", &["-e"]),
    ("xfce4-terminal", &["-x"]),
    ("mate-terminal", &["-x"]),
    ("lxterminal", &["-e"]),
    ("qterminal", &["-e"]),
    ("foot", &[]),
    ("kitty", &[]),
    ("alacritty", &["-e"]),
    ("xterm", &["-e"]),
];

/// Shows what the command said until somebody has read it.
const SCRIPT: &str = r#""$@"; code=$?; printf '\n[ended with %s; press Enter to close] ' "$code"; read -r _"#;

/// A terminal and what stands before the command.
fn find() -> Option<(PathBuf, Vec<&'static str>)> {
    // $TERMINAL is no standard, and those who set it mean it.
    let chosen = std::env::var("TERMINAL").ok().and_then(|name| {
        let known = TERMINALS.iter().find(|(known, _)| {
            Path::new(&name)
                .file_name()
                .is_some_and(|base| base == OsStr::new(known))
        });
        let before = known.map_or_else(|| vec!["-e"], |(_, before)| before.to_vec());
        Some((programs::on_path(&name)?, before))
    });
    chosen.or_else(|| {
        TERMINALS
            .iter()
            .find_map(|(name, before)| Some((programs::on_path(name)?, before.to_vec())))
    })
}

/// Runs it there.
pub(crate) fn run<I: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = I>,
) -> Result<(), DesktopError> {
    let (terminal, before) = find().ok_or(DesktopError::Missing {
        what: "there is no terminal program that is known",
        install: "one, such as the package xterm, or set $TERMINAL",
    })?;
    programs::launch(
        programs::apart(&terminal)
            .args(before)
            .args(["sh", "-c", SCRIPT, "berth"])
            .arg(program)
            .args(arguments),
    )
}
