//! What the menu's items do. Each begins a task and returns; what comes of it is told as an update or a message.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::app::{App, Message};
use crate::daemon::client::{self, CHANGE_TIME, STOP_TIME};
use crate::daemon::types::SettingsReport;
use crate::desktop::{DesktopError, browser, clipboard, programs, terminal};
use crate::menu::Action;
use crate::model::{Doing, Machine, Notice, Update};
use crate::paths::Paths;

/// How many lines of a container's log are shown from before.
const LOG_LINES: &str = "500";

/// Begins what was clicked.
pub(crate) fn begin(app: &mut App, action: Action) {
    match action {
        Action::Start(machine) => run_berth(app, machine, Doing::Start, &["start"]),
        Action::Restart(machine) => run_berth(app, machine, Doing::Restart, &["restart"]),
        Action::Stop(machine) => stop(app, machine),
        Action::Show(machine) => app.apply(Update::Show(machine)),
        Action::UseProfile { machine, profile } => use_profile(app, machine, profile),
        Action::Open(url) => report(app, "The browser could not be opened", browser::open(&url)),
        Action::StopContainer { machine, id, name } => stop_container(app, &machine, &id, name),
        Action::ContainerLogs { machine, id } => {
            let shown = container_logs(&app.paths, &app.docker_socket(&machine), &id);
            report(app, "The logs could not be shown", shown);
        }
        Action::CopySocket(machine) => copy_socket(app, &machine),
        Action::Doctor(machine) => {
            let shown = terminal::run(app.berth.path(), ["--machine", &machine, "doctor"]);
            report(app, "`berth doctor` could not be shown", shown);
        }
        // Handled where the program ends.
        Action::Quit => {}
    }
}

/// Says that something did not work.
fn report(app: &App, summary: &str, result: Result<(), DesktopError>) {
    if let Err(error) = result {
        app.tell(Notice::answer(summary, error.to_string()));
    }
}

/// Has the command line do it, and waits for its end.
fn run_berth(app: &mut App, machine: String, doing: Doing, arguments: &'static [&'static str]) {
    let berth = app.berth.clone();
    perform(app, machine, doing, async move |machine| {
        berth.tell(&machine, arguments).await
    });
}

/// Does something about a machine that it shows as long as that takes.
fn perform<F: Future<Output = Result<(), String>> + Send + 'static>(
    app: &mut App,
    machine: String,
    doing: Doing,
    task: impl FnOnce(String) -> F,
) {
    app.apply(Update::Doing {
        machine: machine.clone(),
        doing: doing.clone(),
    });
    let inbox = app.inbox.clone();
    let task = task(machine.clone());
    tokio::spawn(async move {
        let result = task.await;
        let _ = inbox.send(Message::Update(Update::Done {
            machine,
            doing,
            result,
        }));
    });
}

fn stop(app: &mut App, machine: String) {
    let socket = app.paths.api_socket(&machine);
    perform(app, machine, Doing::Stop, async move |_| {
        let asked = client::post(&socket, "/v1/stop", &json!({}), client::ANSWER_TIME).await;
        asked.map(drop).map_err(|error| error.to_string())
    });
}

fn use_profile(app: &mut App, machine: String, profile: String) {
    let doing = Doing::Profile(profile.clone());
    if !app.world.machine(&machine).is_some_and(Machine::is_running) {
        let berth = app.berth.clone();
        perform(app, machine, doing, async move |machine| {
            berth.tell(&machine, &["profile", "use", &profile]).await
        });
        return;
    }
    let socket = app.paths.api_socket(&machine);
    let inbox = app.inbox.clone();
    perform(app, machine, doing, async move |machine| {
        let body = json!({ "profile": profile });
        let answer = client::post(&socket, "/v1/settings", &body, CHANGE_TIME).await;
        let answer = answer.map_err(|error| error.to_string())?;
        // It has been switched, whatever an answer says that is not understood.
        let report: SettingsReport = serde_json::from_slice(&answer).unwrap_or_default();
        if let Some(notice) = rest_of_switch(&machine, &profile, report) {
            let _ = inbox.send(Message::Notice(notice));
        }
        Ok(())
    });
}

/// What of a profile a machine does not have yet.
fn rest_of_switch(machine: &str, profile: &str, report: SettingsReport) -> Option<Notice> {
    let rest: Vec<_> = report
        .shortfall
        .into_iter()
        .chain(
            report
                .needs_restart
                .into_iter()
                .map(|what| format!("with a restart only: {what}")),
        )
        .collect();
    (!rest.is_empty()).then(|| {
        Notice::answer(
            format!("The machine {machine} has not all of the profile {profile} yet"),
            rest.join("\n"),
        )
    })
}

fn stop_container(app: &App, machine: &str, id: &str, name: String) {
    let socket = app.docker_socket(machine);
    let path = format!("/containers/{id}/stop");
    let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let inbox = app.inbox.clone();
    tokio::spawn(async move {
        let asked = if is_id {
            let asked = client::post(&socket, &path, &json!(null), STOP_TIME).await;
            asked.map(drop).map_err(|error| error.to_string())
        } else {
            Err("it has no id that Docker would know".to_owned())
        };
        // That it has stopped is seen in the menu.
        if let Err(message) = asked {
            let notice = Notice::answer(format!("The container {name} could not be stopped"), message);
            let _ = inbox.send(Message::Notice(notice));
        }
    });
}

fn container_logs(paths: &Paths, socket: &Path, id: &str) -> Result<(), DesktopError> {
    let docker = docker_client(paths).ok_or(DesktopError::Missing {
        what: "there is no docker client",
        install: "one, such as the package docker-cli",
    })?;
    let host = format!("unix://{}", socket.display());
    terminal::run(
        &docker,
        ["--host", &host, "logs", "--follow", "--tail", LOG_LINES, "--", id],
    )
}

/// The user's own docker client, else the one that berth installed.
fn docker_client(paths: &Paths) -> Option<PathBuf> {
    programs::on_path("docker")
        .or_else(|| Some(paths.docker_client.clone()).filter(|path| programs::is_program(path)))
}

fn copy_socket(app: &App, machine: &str) {
    let path = app.docker_socket(machine).display().to_string();
    let inbox = app.inbox.clone();
    tokio::spawn(async move {
        if let Err(error) = clipboard::copy(&path).await {
            let notice = Notice::answer(
                "The path of the Docker socket could not be copied",
                format!("{error}. The path is {path}"),
            );
            let _ = inbox.send(Message::Notice(notice));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_switch_leaves_undone_is_told() {
        let report = SettingsReport {
            shortfall: Some("it has 640 MiB and not 512 MiB".into()),
            needs_restart: vec!["a disk of 3 GiB: it has 2 GiB".into()],
        };
        let notice = rest_of_switch("default", "roomy", report).unwrap();
        assert_eq!(
            notice.body,
            "it has 640 MiB and not 512 MiB\nwith a restart only: a disk of 3 GiB: it has 2 GiB"
        );
        assert_eq!(
            rest_of_switch("default", "roomy", SettingsReport::default()),
            None
        );
    }
}
