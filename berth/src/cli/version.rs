//! `berth version`.

use anyhow::Result;
use serde::Serialize;

use super::context::{CommandContext, block_on};
use crate::api::types::Version;

#[derive(Debug, Serialize)]
struct Versions {
    client: Version,
    /// The machine's daemon, if it has one: an older berth may have started it.
    daemon: Option<Version>,
    docker: Option<String>,
}

/// Prints berth's version, and those of the running daemon and its Docker.
pub(super) fn run(context: &CommandContext) -> Result<()> {
    let (daemon, docker) = block_on(async {
        let client = context.client();
        // A machine that does not run, or whose daemon does not answer, has no version to tell.
        let daemon = client.version().await.ok();
        let docker = match daemon {
            Some(_) => client
                .status()
                .await
                .ok()
                .and_then(|status| status.docker.version),
            None => None,
        };
        Ok((daemon, docker))
    })?;
    let versions = Versions {
        client: Version::own(),
        daemon,
        docker,
    };
    let mut text = format!("berth {}", versions.client.version);
    if let Some(daemon) = &versions.daemon {
        text.push_str(&format!("\ndaemon of {}: {}", context.name, daemon.version));
        if daemon.version != versions.client.version {
            text.push_str(" (restart the machine to bring it up to date)");
        }
    }
    if let Some(docker) = &versions.docker {
        text.push_str(&format!("\ndocker in {}: {docker}", context.name));
    }
    context.output.result(&versions, &text)
}
