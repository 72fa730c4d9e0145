//! Making the compose and buildx plugins that berth brings visible to a docker client that has none.
//!
//! berth's plugins are in its own directory. The docker client looks there when `cliPluginsExtraDirs` in its `config.json`
//! names it; its own directories still come first, so a plugin the user installs later wins.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{ContextError, Store};

/// The plugins berth brings.
pub const PLUGINS: [&str; 2] = ["docker-buildx", "docker-compose"];

const KEY: &str = "cliPluginsExtraDirs";

/// Where the docker client looks by itself, after its configuration directory.
const SYSTEM_DIRS: [&str; 4] = [
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
];

/// Adds `ours` to the directories in which the docker client looks for plugins, if one of [`PLUGINS`] is there and nowhere
/// else. Returns whether the client finds all of them now.
pub fn offer(ours: &Path) -> Result<bool, ContextError> {
    Store::from_env()?.offer_plugins(ours, &SYSTEM_DIRS.map(PathBuf::from))
}

/// Undoes [`offer`].
pub fn withdraw(ours: &Path) -> Result<(), ContextError> {
    Store::from_env()?.withdraw_plugins(ours)
}

impl Store {
    pub(super) fn offer_plugins(&self, ours: &Path, system: &[PathBuf]) -> Result<bool, ContextError> {
        let mut config = self.config()?;
        let mut extra = extra_dirs(config.get(KEY));
        let own = self.dir.join("cli-plugins");
        let missing = |dirs: &[PathBuf]| {
            PLUGINS
                .into_iter()
                .filter(|plugin| !dirs.iter().any(|dir| dir.join(plugin).is_file()))
                .collect::<Vec<_>>()
        };
        let mut dirs: Vec<PathBuf> = std::iter::once(own).chain(system.iter().cloned()).collect();
        dirs.extend(extra.iter().map(PathBuf::from));
        let lacking = missing(&dirs);
        if lacking.iter().any(|plugin| ours.join(plugin).is_file()) {
            extra.push(ours.to_string_lossy().into_owned());
            config.set(KEY, Some(extra.into()));
            config.write()?;
            dirs.push(ours.to_owned());
        }
        Ok(missing(&dirs).is_empty())
    }

    pub(super) fn withdraw_plugins(&self, ours: &Path) -> Result<(), ContextError> {
        let mut config = self.config()?;
        let before = extra_dirs(config.get(KEY));
        let after: Vec<String> = before
            .iter()
            .filter(|dir| Path::new(dir) != ours)
            .cloned()
            .collect();
        if after.len() != before.len() {
            config.set(KEY, (!after.is_empty()).then(|| after.into()));
            config.write()?;
        }
        Ok(())
    }
}

fn extra_dirs(value: Option<&Value>) -> Vec<String> {
    let dirs = value.and_then(Value::as_array).into_iter().flatten();
    dirs.filter_map(|dir| Some(dir.as_str()?.to_owned())).collect()
}
