//! `berth status`.

use anyhow::Result;
use protocol::control::DockerState;

use super::context::{CommandContext, block_on};
use crate::api::client::ClientError;
use crate::api::types::{CoherenceReport, DockerReport, MemoryReport, Status};
use crate::exit::{Code, Failure};
use crate::host::Host;
use crate::machine::disk;
use crate::machine::failure::Failure as MachineFailure;
use crate::machine::handle::disk_report;
use crate::machine::settings::Settings;
use crate::machine::shares::{ShareReport, ShareState, directories};
use crate::machine::state::State;
use crate::output::{duration, table};

/// Tells how the machine is. Its exit code tells scripts: 0 running, 3 not.
pub(super) fn run(context: &CommandContext) -> Result<()> {
    let status = status(context)?;
    context.output.result(&status, &describe(context, &status))?;
    match status.state {
        State::Running | State::Paused => Ok(()),
        _ => Err(Failure::silent(Code::NotRunning)),
    }
}

/// What the daemon says, or what the machine's files say when it has none.
pub(super) fn status(context: &CommandContext) -> Result<Status> {
    let client = context.client();
    let asked = block_on(async {
        Ok(match client.status().await {
            // It ended while it was asked. Its socket has been closed with the connection, so the next connection finds
            // none, or a daemon that is well.
            Err(ClientError::Broken(_)) => client.status().await,
            answer => answer,
        })
    })?;
    match asked {
        Ok(status) => Ok(status),
        Err(ClientError::NoDaemon) => from_files(context),
        Err(error) => Err(error.into()),
    }
}

fn from_files(context: &CommandContext) -> Result<Status> {
    let chosen = context.record()?.map(|record| record.chosen).unwrap_or_default();
    let settings = Settings::resolve(&chosen, &context.config()?, &Host::detect())
        .map_err(|error| Failure::wrap(Code::Usage, error))?;
    let shares = settings
        .shares
        .iter()
        .cloned()
        .map(ShareReport::without_machine)
        .collect();
    // A daemon that ended in an orderly way has removed its file.
    let killed = || {
        context.machine.pid_file().exists().then(|| {
            MachineFailure::now(
                "its daemon ended without stopping it: it was killed, or the host was switched off",
                None,
            )
        })
    };
    let failure = MachineFailure::load(&context.machine.last_failure()).or_else(killed);
    Ok(Status {
        machine: context.name.to_string(),
        state: match &failure {
            Some(failure) => State::Failed {
                reason: failure.reason.clone(),
            },
            None => State::Stopped,
        },
        engine: None,
        uptime_seconds: None,
        memory: MemoryReport {
            given: settings.memory,
            used: None,
            resident: None,
        },
        settings,
        disk: disk_report(&context.machine, None),
        docker: DockerReport {
            socket: context.machine.docker_socket(),
            context: None,
            state: None,
            version: None,
            restarts: None,
        },
        guest: None,
        shares,
        coherence: None,
        network: None,
        api_socket: context.machine.api_socket(),
        daemon_pid: None,
        warnings: disk::shortage(&context.machine.data_disk()).into_iter().collect(),
        failure,
    })
}

fn describe(context: &CommandContext, status: &Status) -> String {
    let mut rows = vec![
        ("machine", status.machine.clone()),
        ("state", status.state.to_string()),
    ];
    if let Some(engine) = &status.engine {
        let program = engine
            .description
            .program
            .as_ref()
            .map_or_else(String::new, |program| format!(" ({program})"));
        let accelerator = if engine.description.accelerator == engine.description.engine.to_string() {
            String::new()
        } else {
            format!(", {}", engine.description.accelerator)
        };
        rows.push((
            "engine",
            format!("{}{accelerator}{program}", engine.description.engine),
        ));
        rows.push(("", engine.reason.clone()));
    }
    if let Some(uptime) = status.uptime_seconds {
        rows.push(("uptime", duration(uptime)));
    }
    let settings = &status.settings;
    if let Some(profile) = &settings.profile {
        rows.push(("profile", profile.clone()));
    }
    rows.push((
        "cpus",
        if settings.max_cpus > settings.cpus {
            format!("{} of at most {}", settings.cpus, settings.max_cpus)
        } else {
            settings.cpus.to_string()
        },
    ));
    let most = if settings.max_memory > settings.memory {
        format!(" (at most {})", settings.max_memory)
    } else {
        String::new()
    };
    let memory = &status.memory;
    rows.push((
        "memory",
        match (memory.used, memory.resident) {
            (Some(used), Some(resident)) => {
                format!("{used} used of {}{most}; {resident} of the host's", memory.given)
            }
            (None, Some(resident)) => format!("{} given{most}; {resident} of the host's", memory.given),
            _ => format!("{}{most}", memory.given),
        },
    ));
    rows.push((
        "disk",
        match &status.disk {
            Some(disk) => {
                let used = disk
                    .used
                    .map_or_else(String::new, |used| format!("{used} used of "));
                format!("{used}{}; {} of the host's", disk.size, disk.allocated)
            }
            None => format!("{} (not made yet)", status.settings.disk),
        },
    ));
    for (index, share) in status.shares.iter().enumerate() {
        let name = if index == 0 { "shares" } else { "" };
        rows.push((name, describe_share(share)));
    }
    if let Some(coherence) = status.coherence.filter(|_| !status.state.is_final()) {
        rows.push(("host changes", describe_coherence(&coherence)));
    }
    if !status.state.is_final() {
        let restarts = match status.docker.restarts {
            Some(restarts) if restarts > 0 => format!(" (ended by itself {restarts} times)"),
            _ => String::new(),
        };
        let version = status.docker.version.as_deref().unwrap_or("not there yet");
        let state = match status.docker.state {
            Some(DockerState::Starting | DockerState::Restarting) => ", restarting",
            Some(DockerState::Stopping) => ", stopping",
            Some(DockerState::Ready | DockerState::Waiting) | None => "",
        };
        rows.push(("docker", format!("{version}{state}{restarts}")));
        if let Some(name) = &status.docker.context {
            rows.push(("context", name.clone()));
        }
        if let Some(guest) = &status.guest {
            rows.push(("kernel", guest.kernel.clone()));
        }
        if let Some(network) = &status.network {
            rows.push(("network", network.clone()));
        }
        rows.push(("docker socket", status.docker.socket.display().to_string()));
        rows.push(("api socket", status.api_socket.display().to_string()));
    }
    for warning in &status.warnings {
        rows.push(("warning", warning.clone()));
    }
    let mut text = table(&rows);
    if let (State::Failed { .. }, Some(failure)) = (&status.state, &status.failure) {
        if !failure.console.is_empty() {
            text.push_str("the console's last lines:\n");
            for line in &failure.console {
                text.push_str(&format!("  | {line}\n"));
            }
        }
        text.push_str(&format!("start it again with `{}`\n", context.command("start")));
    }
    text
}

/// How the machine is told of host changes, in one line.
fn describe_coherence(coherence: &CoherenceReport) -> String {
    let replayed = match coherence.replayed {
        1 => "1 change".into(),
        number => format!("{number} changes"),
    };
    let by_inotify = match coherence.by_inotify {
        0 => String::new(),
        number => format!(" ({number} by inotify)"),
    };
    format!(
        "{} watched{by_inotify}, {replayed} replayed",
        directories(coherence.watched)
    )
}

/// One share in one line.
pub(super) fn describe_share(report: &ShareReport) -> String {
    let ShareReport { share, state } = report;
    let mut text = share.path.display().to_string();
    if share.target != share.path {
        text.push_str(&format!(" at {}", share.target.display()));
    }
    let mut remarks = Vec::new();
    if share.read_only {
        remarks.push("read-only".to_owned());
    }
    if !share.exclude.is_empty() {
        let excluded: Vec<_> = share
            .exclude
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        remarks.push(format!("without {}", excluded.join(", ")));
    }
    if let ShareState::Failed { message } = state {
        remarks.push(format!("not shared: {message}"));
    }
    if !remarks.is_empty() {
        text.push_str(&format!(" ({})", remarks.join("; ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use fileshare::passthrough::coherence::Figures;

    use crate::shares::Share;

    use super::*;

    #[test]
    fn host_changes_are_told_in_numbers() {
        let told = |watched, by_inotify, replayed| {
            let figures = Figures {
                watched,
                by_inotify,
                replayed,
                ..Figures::default()
            };
            describe_coherence(&figures.into())
        };
        assert_eq!(told(12, 0, 340), "12 directories watched, 340 changes replayed");
        assert_eq!(told(1, 0, 1), "1 directory watched, 1 change replayed");
        assert_eq!(
            told(12, 5, 340),
            "12 directories watched (5 by inotify), 340 changes replayed"
        );
    }

    #[test]
    fn a_share_is_told_with_all_that_is_special_about_it() {
        let plain = ShareReport {
            share: Share {
                path: "/home/me".into(),
                target: "/home/me".into(),
                read_only: false,
                exclude: Vec::new(),
            },
            state: ShareState::Shared,
        };
        assert_eq!(describe_share(&plain), "/home/me");
        let special = ShareReport {
            share: Share {
                target: "/data".into(),
                read_only: true,
                exclude: vec![".ssh".into(), "a/b".into()],
                ..plain.share
            },
            state: ShareState::Failed {
                message: "/home/me is not there".into(),
            },
        };
        assert_eq!(
            describe_share(&special),
            "/home/me at /data (read-only; without .ssh, a/b; not shared: /home/me is not there)"
        );
    }
}
