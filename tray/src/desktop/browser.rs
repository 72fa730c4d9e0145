//! Showing an address in the user's browser.

use super::{DesktopError, programs};

/// What opens addresses, the best first.
const OPENERS: [(&str, &[&str]); 4] = [
    ("xdg-open", &[]),
    ("gio", &["open"]),
    ("sensible-browser", &[]),
    ("x-www-browser", &[]),
];

/// Opens it.
pub(crate) fn open(url: &str) -> Result<(), DesktopError> {
    let found = OPENERS
        .iter()
        .find_map(|(name, arguments)| Some((programs::on_path(name)?, arguments)));
    let (program, arguments) = found.ok_or(DesktopError::Missing {
        what: "there is nothing that opens addresses",
        install: "the package xdg-utils",
    })?;
    programs::launch(programs::apart(&program).args(*arguments).arg(url))
}
