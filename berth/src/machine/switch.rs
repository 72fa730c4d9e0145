//! Switching a running machine to another profile: what can be changed is changed at once, what cannot is said.

use std::path::Path;
use std::sync::Arc;

use super::events::Event;
use super::handle::Handle;
use super::record::{MachineRecord, RecordError};
use super::resources::{Now, ResourceError};
use super::settings::{Chosen, Settings, SettingsError};
use crate::api::types::{SettingsReport, SettingsRequest};
use crate::config::{Config, ConfigError};
use crate::host::Host;
use crate::shares::Share;

/// Why a machine was not switched.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The configuration cannot be read, or is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no such profile, or this host cannot give what it says.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The machine does not run or did not do it.
    #[error(transparent)]
    Resources(#[from] ResourceError),
    /// It is done, and will be forgotten with the machine's end.
    #[error("it is done, but could not be kept for the machine's next start")]
    NotKept(#[from] RecordError),
}

/// Switches the machine. The choice is kept for its next starts; the configuration is read anew, so that a profile made a
/// moment ago is there.
///
/// # Errors
/// When nothing could be done, or not all of what can be done at once.
pub async fn switch(
    machine: &Arc<Handle>,
    config_file: &Path,
    request: SettingsRequest,
) -> Result<SettingsReport, SwitchError> {
    let chosen = Chosen {
        profile: request.profile,
        cpus: request.cpus,
        memory: request.memory,
        ..Chosen::default()
    };
    let config = Config::load(config_file)?;
    let record = machine.paths.record();
    let before = MachineRecord::load(&record)?
        .map(|record| record.chosen)
        .unwrap_or_default();
    let wanted = Settings::resolve(&chosen.or(&before), &config, &Host::detect())?;
    let change = Now {
        profile: wanted.profile.clone(),
        cpus: wanted.cpus,
        memory: wanted.memory,
    };
    let shortfall = machine
        .resources
        .change(change, machine.dial(), machine.states())
        .await?;
    let now = machine.resources.now();
    machine.events.send(Event::Settings {
        profile: now.profile.clone(),
        cpus: now.cpus,
        memory: now.memory,
    });
    if let Some(shortfall) = &shortfall {
        tracing::warn!("{shortfall}");
    }
    MachineRecord::remember(&record, &chosen)?;
    let shares: Vec<Share> = machine
        .shares
        .list()
        .into_iter()
        .map(|report| report.share)
        .collect();
    Ok(SettingsReport {
        needs_restart: needs_restart(&machine.settings, &wanted, &shares),
        memory_given: machine.resources.memory(),
        profile: now.profile,
        cpus: now.cpus,
        max_cpus: machine.settings.max_cpus,
        memory: now.memory,
        max_memory: machine.settings.max_memory,
        shortfall,
    })
}

/// What of `wanted` a machine that was started with `started`, and has these shares now, gets with a restart only; a sentence
/// for each.
fn needs_restart(started: &Settings, wanted: &Settings, shares: &[Share]) -> Vec<String> {
    let mut all = Vec::new();
    if wanted.cpus > started.max_cpus {
        all.push(format!(
            "{} CPUs: it was started with at most {}",
            wanted.cpus, started.max_cpus
        ));
    }
    if wanted.memory > started.max_memory {
        all.push(format!(
            "{} of memory: it was started with at most {}",
            wanted.memory, started.max_memory
        ));
    }
    if wanted.disk > started.disk {
        all.push(format!("a disk of {}: it has {}", wanted.disk, started.disk));
    }
    if wanted.network != started.network {
        all.push(if wanted.network {
            "the network: it has none".to_owned()
        } else {
            "no network: it has one".to_owned()
        });
    }
    let same =
        wanted.shares.len() == shares.len() && wanted.shares.iter().all(|share| shares.contains(share));
    if !same {
        let paths: Vec<_> = wanted
            .shares
            .iter()
            .map(|share| share.path.display().to_string())
            .collect();
        all.push(match &paths[..] {
            [] => "no shares: it has some".to_owned(),
            _ => format!("its shares ({})", paths.join(", ")),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Size;

    #[test]
    fn what_needs_a_restart_is_said_and_what_does_not_is_not() {
        let text = "cpus: 2\nmemory: 1GiB\ndisk: 20GiB\nshares: []\nmax_memory: 2GiB\nprofiles:\n  live:\n    cpus: 1\n    \
                    memory: 2GiB\n    disk: 10GiB\n  other:\n    cpus: 3\n    memory: 3GiB\n    disk: 30GiB\n    network: false\n    \
                    shares:\n    - path: /nowhere\n";
        let config = Config::parse(text, Path::new("c")).unwrap();
        let host = Host {
            cpus: 4,
            memory: Size::from_gib(8),
        };
        let settings = |profile: Option<&str>| {
            let chosen = Chosen {
                profile: profile.map(Into::into),
                ..Chosen::default()
            };
            Settings::resolve(&chosen, &config, &host).unwrap()
        };
        let mut started = settings(None);
        // As if the larger profiles had been added since.
        started.max_cpus = 2;
        let told = needs_restart(&started, &settings(Some("live")), &[]);
        assert!(told.is_empty(), "{told:?}");
        assert_eq!(
            needs_restart(&started, &settings(Some("other")), &[]),
            [
                "3 CPUs: it was started with at most 2",
                "3 GiB of memory: it was started with at most 2 GiB",
                "a disk of 30 GiB: it has 20 GiB",
                "no network: it has one",
                "its shares (/nowhere)",
            ]
        );
    }
}
