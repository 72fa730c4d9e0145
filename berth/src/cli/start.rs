//! `berth start`.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::StartArgs;
use super::context::{CommandContext, block_on};
use super::docker_wait;
use super::follow::{Followed, follow_start};
use super::profile::change_live;
use crate::api::client::ClientError;
use crate::api::types::{SettingsRequest, Status};
use crate::config::write_template;
use crate::daemon::launch;
use crate::daemon::lock::Lock;
use crate::docker::context as docker_context;
use crate::exit::{Code, Failure};
use crate::host::Host;
use crate::machine::failure::Failure as MachineFailure;
use crate::machine::settings::{Chosen, Settings};
use crate::machine::state::State;
use crate::output;

/// What `berth start --json` prints.
#[derive(Debug, Serialize)]
struct Started<'a> {
    /// Whether it was running before.
    was_running: bool,
    #[serde(flatten)]
    status: &'a Status,
}

/// Starts the machine, returns when Docker answers, and says how it is.
pub(super) fn run(context: &CommandContext, args: &StartArgs) -> Result<()> {
    let chosen = args.chosen();
    let (status, was_running) = start(context, &chosen)?;
    let text = describe(context, &status, was_running, &chosen);
    context.output.result(
        &Started {
            was_running,
            status: &status,
        },
        &text,
    )
}

/// Starts the machine and returns when Docker answers; how it is then, and whether it was running before.
pub(super) fn start(context: &CommandContext, chosen: &Chosen) -> Result<(Status, bool)> {
    let host = Host::detect();
    let config_file = context.paths.config_file();
    match write_template(&config_file, &host) {
        Ok(true) => context.output.remark(format_args!(
            "wrote a configuration to look at: {}",
            config_file.display()
        )),
        Ok(false) => {}
        // Nobody needs it to start a machine.
        Err(error) => output::say(format_args!(
            "berth: warning: {}",
            crate::exit::chain(&error.into())
        )),
    }
    let config = context.config()?;
    let before = context.record()?.map(|record| record.chosen).unwrap_or_default();
    Settings::resolve(&chosen.or(&before), &config, &host)
        .map_err(|error| Failure::wrap(Code::Usage, error))?;

    let found = ensure_daemon(context, chosen)?;
    if found != Found::Up {
        follow(context)?;
    }
    let was_running = found != Found::Nothing;
    let mut status = block_on(ready(context, config.boot_timeout()))?;
    if was_running && change_what_can_be(context, &status, chosen)? {
        status = block_on(ready(context, config.boot_timeout()))?;
    }
    warn_of_override(context, &status);
    Ok((status, was_running))
}

/// Sees to it that Docker answers in a machine that is up, which is not so when it is paused or its Docker was just
/// killed; how the machine then is.
async fn ready(context: &CommandContext, timeout: Duration) -> Result<Status> {
    let client = context.client();
    let status = async || client.status().await.map_err(|error| context.client_error(error));
    if status().await?.state == State::Paused {
        client
            .resume()
            .await
            .map_err(|error| context.client_error(error))?;
        context.output.remark("the machine was paused and goes on");
    }
    docker_wait::wait(context, timeout).await?;
    status().await
}

/// Gives a machine that runs already what it was asked for now, as far as that needs no restart; whether there was any.
fn change_what_can_be(context: &CommandContext, status: &Status, chosen: &Chosen) -> Result<bool> {
    let wanted = Chosen {
        profile: chosen.profile.clone(),
        cpus: chosen.cpus,
        memory: chosen.memory,
        ..Chosen::default()
    };
    if status.settings.differences(&wanted).is_empty() {
        return Ok(false);
    }
    let request = SettingsRequest {
        profile: wanted.profile,
        cpus: wanted.cpus,
        memory: wanted.memory,
    };
    let Some(report) = change_live(context, &request)? else {
        return Ok(false);
    };
    if let Some(shortfall) = report.shortfall {
        context.output.remark(format_args!("berth: warning: {shortfall}"));
    }
    for needed in report.needs_restart {
        context
            .output
            .remark(format_args!("with a restart only: {needed}"));
    }
    Ok(true)
}

/// Tells a user whose environment sends `docker` elsewhere.
fn warn_of_override(context: &CommandContext, status: &Status) {
    if status.docker.context.is_none() {
        return;
    }
    // A configuration of docker's that cannot be read has been warned of when the context was made.
    if let Ok(current) = docker_context::current()
        && let Some(warning) = override_warning(&current, &status.docker.socket)
    {
        context.output.remark(format_args!("berth: warning: {warning}"));
    }
}

fn override_warning(current: &docker_context::Current, socket: &Path) -> Option<String> {
    let variable = current.overridden_by.as_deref()?;
    let ours = format!("unix://{}", socket.display());
    if variable == "DOCKER_HOST" && std::env::var_os(variable).is_some_and(|host| *host == *ours) {
        return None;
    }
    Some(format!(
        "${variable} is set and wins over docker's context, so `docker` may talk to something else; `unset {variable}` to use \
         the machine"
    ))
}

/// Shows the start of a machine that is not up yet, to its end.
fn follow(context: &CommandContext) -> Result<()> {
    let followed = block_on(follow_start(context))?;
    if !matches!(followed, Followed::Running) {
        // What is left of the machine goes with its daemon.
        launch::wait_gone(&context.machine)?;
    }
    match followed {
        Followed::Running => Ok(()),
        Followed::Stopped => Err(Failure::because(
            Code::Failed,
            "the machine was stopped while it was starting",
        )),
        Followed::Failed(failure) => Err(failed(context, &failure)),
    }
}

/// What a start found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// No machine that runs; it is being started now.
    Nothing,
    /// Another start under way.
    Starting,
    /// A machine that is up.
    Up,
}

/// Sees to it that the machine has a daemon that is not about to end; what there was before.
fn ensure_daemon(context: &CommandContext, chosen: &Chosen) -> Result<Found> {
    context.machine.make_runtime_dir()?;
    context.machine.make_lasting_dirs()?;
    let _start = Lock::wait(&context.machine.start_lock())?;
    match block_on(async { Ok(context.client().status().await) })? {
        Ok(status) if status.state.is_final() || status.state == State::Stopping => {
            context.output.remark("waiting for the machine to stop first");
            launch::wait_gone(&context.machine)?;
        }
        Ok(status) if matches!(status.state, State::Running | State::Paused) => return Ok(Found::Up),
        Ok(_) => return Ok(Found::Starting),
        // There is a daemon and its socket is gone, or it is just ending.
        Err(ClientError::NoDaemon) => launch::wait_gone(&context.machine)?,
        Err(error) => return Err(error.into()),
    }
    launch::launch(&context.name, &context.machine, chosen)?;
    Ok(Found::Nothing)
}

/// Why the machine failed, in full.
fn failed(context: &CommandContext, failure: &MachineFailure) -> anyhow::Error {
    if !failure.console.is_empty() && !context.output.json {
        output::say("the console's last lines:");
        for line in &failure.console {
            output::say(format_args!("  | {line}"));
        }
    }
    let code = if failure.host_lacks {
        Code::Unavailable
    } else {
        Code::Failed
    };
    let logs = if failure.host_lacks {
        String::new()
    } else {
        format!(
            ". Logs: {} and {}",
            context.machine.daemon_log().display(),
            context.machine.console_log().display()
        )
    };
    Failure::because(
        code,
        format!("the machine could not be started: {}{logs}", failure.reason),
    )
}

fn describe(context: &CommandContext, status: &Status, was_running: bool, chosen: &Chosen) -> String {
    let docker = status.docker.version.as_deref().unwrap_or("?");
    let mut text = if was_running {
        format!(
            "The machine {} runs already, with Docker {docker}.\n",
            context.name
        )
    } else {
        format!("The machine {} runs, with Docker {docker}.\n", context.name)
    };
    let differences = status.settings.differences(chosen);
    if was_running && !differences.is_empty() {
        text.push_str(&format!(
            "It needs a restart to change: {}. Do so with `{} …` and the same options.\n",
            differences.join(", "),
            context.command("restart")
        ));
    }
    match &status.docker.context {
        Some(name) => text.push_str(&format!("Use `docker` as always; its context is {name}.\n")),
        None => text.push_str(&format!(
            "Use it with DOCKER_HOST=unix://{}\n",
            status.docker.socket.display()
        )),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_that_sends_docker_elsewhere_is_warned_of() {
        let current = |overridden_by: Option<&str>| docker_context::Current {
            name: "berth".into(),
            overridden_by: overridden_by.map(Into::into),
        };
        let socket = Path::new("/run/berth/docker.sock");
        assert_eq!(override_warning(&current(None), socket), None);
        let warning = override_warning(&current(Some("DOCKER_CONTEXT")), socket).unwrap();
        assert!(warning.contains("unset DOCKER_CONTEXT"), "{warning}");
    }
}
