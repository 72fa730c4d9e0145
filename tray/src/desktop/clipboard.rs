//! Putting text into the clipboard.
//!
//! A clipboard's content is served by whoever put it there, as long as it is wanted. The programs for that are small, and a
//! connection to the display of our own would be a large dependency for one line of text.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::{DesktopError, programs};

/// How long a program may take to have the text.
const LIMIT: Duration = Duration::from_secs(5);

/// Puts it there.
pub(crate) async fn copy(text: &str) -> Result<(), DesktopError> {
    let wayland = std::env::var_os("WAYLAND_DISPLAY").is_some();
    let candidates: &[(&str, &[&str])] = if wayland {
        &[
            ("wl-copy", &[]),
            ("xclip", &["-selection", "clipboard"]),
            ("xsel", &["-ib"]),
        ]
    } else {
        &[("xclip", &["-selection", "clipboard"]), ("xsel", &["-ib"])]
    };
    let found = candidates
        .iter()
        .find_map(|(name, arguments)| Some((*name, programs::on_path(name)?, arguments)));
    let (name, program, arguments) = found.ok_or(DesktopError::Missing {
        what: "there is nothing that fills the clipboard",
        install: if wayland {
            "the package wl-clipboard"
        } else {
            "the package xclip"
        },
    })?;
    let failed = |message: String| DesktopError::Failed {
        program: name.to_owned(),
        message,
    };
    let mut command = programs::apart(&program);
    let mut child = programs::start(command.args(*arguments).stdin(Stdio::piped()))?;
    let fill = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(text.as_bytes())
                .await
                .map_err(|error| failed(error.to_string()))?;
        }
        // What serves the clipboard from then on is a child of it.
        child.wait().await.map_err(|error| failed(error.to_string()))
    };
    let status = tokio::time::timeout(LIMIT, fill).await;
    let status = status.map_err(|_| failed("it does not end".into()))??;
    if status.success() {
        Ok(())
    } else {
        Err(failed(status.to_string()))
    }
}
