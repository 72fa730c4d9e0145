//! The icon's own thread of events: what is known is changed here and nowhere else, and everything that takes time is a task
//! that reports back.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::berth::Berth;
use crate::daemon::client::{self, ClientError};
use crate::daemon::follow::follow;
use crate::daemon::types::{Profiles, State, Status};
use crate::icon::Pictures;
use crate::item::{FromPanel, View};
use crate::machines::{self, FileId};
use crate::menu::{Action, headline, menu};
use crate::model::{Effect, Look, Machine, Notice, Source, Update, World};
use crate::paths::Paths;
use crate::session::{self, Ends};
use crate::{actions, words};

/// What comes in.
#[derive(Debug)]
pub(crate) enum Message {
    /// Something is known.
    Update(Update),
    /// Something is to be told.
    Notice(Notice),
    /// A machine's questions are answered.
    Asked(String),
}

/// The program.
pub(crate) struct App {
    pub(crate) paths: Paths,
    pub(crate) berth: Berth,
    pub(crate) world: World,
    pub(crate) inbox: mpsc::UnboundedSender<Message>,
    pictures: Pictures,
    followers: HashMap<String, JoinHandle<()>>,
    /// Machines that are being asked, and whether they are to be asked again.
    asking: HashMap<String, bool>,
    view: watch::Sender<View>,
    notices: mpsc::UnboundedSender<Notice>,
}

/// Shows the icon until the user or the session ends it.
pub(crate) async fn run(paths: Paths, berth: Berth, machine: String) -> Result<()> {
    let (inbox, mut messages) = mpsc::unbounded_channel();
    let (notices, told) = mpsc::unbounded_channel();
    let (panel, mut from_panel) = mpsc::unbounded_channel();
    let mut app = App {
        paths,
        berth,
        world: World::new(machine),
        inbox,
        pictures: Pictures::default(),
        followers: HashMap::new(),
        asking: HashMap::new(),
        view: watch::Sender::new(View::default()),
        notices,
    };
    app.publish();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to signals")?;
    let ends = Ends {
        view: app.view.subscribe(),
        notices: told,
        panel,
    };
    let mut session = tokio::spawn(session::show(ends));
    let mut watcher = tokio::spawn(machines::watch(
        app.paths.clone(),
        app.inbox.clone(),
        |machines| Message::Update(Update::Machines(machines)),
    ));
    loop {
        tokio::select! {
            Some(message) = messages.recv() => {
                app.take(message);
                // What came meanwhile is shown together.
                while let Ok(message) = messages.try_recv() {
                    app.take(message);
                }
            }
            Some(what) = from_panel.recv() => match what {
                FromPanel::Clicked(Action::Quit) => return Ok(()),
                FromPanel::Clicked(action) => actions::begin(&mut app, action),
                FromPanel::MenuShown => {
                    let ask = app.world.ask(app.world.shown());
                    app.carry_out(ask);
                }
                FromPanel::PanelThere | FromPanel::PanelGone => {}
            },
            ended = &mut session => {
                return ended.context("the status icon")?.map_err(anyhow::Error::from);
            }
            ended = &mut watcher => {
                return ended.context("the watcher of machines")?.context(
                    "cannot watch the directories of machines; raise fs.inotify.max_user_instances or max_user_watches",
                );
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
        app.publish();
    }
}

impl App {
    fn take(&mut self, message: Message) {
        match message {
            Message::Update(update) => self.apply(update),
            Message::Notice(notice) => self.tell(notice),
            Message::Asked(machine) => {
                if self.asking.remove(&machine) == Some(true) {
                    let ask = self.world.ask(&machine);
                    self.carry_out(ask);
                }
            }
        }
    }

    /// Takes in what is known, and does what follows.
    pub(crate) fn apply(&mut self, update: Update) {
        let effects = self.world.apply(update, Instant::now());
        self.carry_out(effects);
    }

    /// Tells the user.
    pub(crate) fn tell(&self, notice: Notice) {
        // Nobody is there to be told when the icon is about to end.
        let _ = self.notices.send(notice);
    }

    fn carry_out(&mut self, effects: impl IntoIterator<Item = Effect>) {
        for effect in effects {
            match effect {
                Effect::Follow { machine, socket } => self.follow(machine, socket),
                Effect::Leave(machine) => self.leave(&machine),
                Effect::AskDaemon(machine) => self.ask(machine, Source::Daemon),
                Effect::AskFiles(machine) => self.ask(machine, Source::Files),
                Effect::Notify(notice) => self.tell(notice),
            }
        }
    }

    fn follow(&mut self, machine: String, socket: FileId) {
        self.leave(&machine);
        let path = self.paths.api_socket(&machine);
        let name = machine.clone();
        let task = follow(path, self.inbox.clone(), move |told| {
            Message::Update(Update::Followed {
                machine: name.clone(),
                socket,
                told,
            })
        });
        self.followers.insert(machine, tokio::spawn(task));
    }

    fn leave(&mut self, machine: &str) {
        if let Some(follower) = self.followers.remove(machine) {
            follower.abort();
        }
    }

    /// Asks how a machine is. While it is being asked already, it is asked once more after that.
    fn ask(&mut self, machine: String, source: Source) {
        if let Some(again) = self.asking.get_mut(&machine) {
            *again = true;
            return;
        }
        self.asking.insert(machine.clone(), false);
        let socket = self.paths.api_socket(&machine);
        let berth = self.berth.clone();
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            let (status, profiles) = match source {
                Source::Daemon => ask_daemon(socket).await,
                Source::Files => ask_files(&berth, &machine).await,
            };
            let updates = [
                status.map(|status| Update::Facts {
                    machine: machine.clone(),
                    source,
                    status: status.map(Box::new),
                }),
                profiles.map(|profiles| Update::Profiles {
                    machine: machine.clone(),
                    profiles,
                }),
            ];
            for update in updates.into_iter().flatten() {
                let _ = inbox.send(Message::Update(update));
            }
            let _ = inbox.send(Message::Asked(machine));
        });
    }

    /// Shows what is known now.
    fn publish(&mut self) {
        let now = Instant::now();
        let name = self.world.shown();
        let machine = self.world.machine(name);
        let view = View {
            pictures: self.pictures.of(machine.map_or(Look::Stopped, Machine::look)),
            headline: headline(name, machine),
            details: machine.map(details).unwrap_or_default(),
            menu: menu(&self.world, now),
        };
        self.view.send_if_modified(|shown| {
            let modified = *shown != view;
            *shown = view;
            modified
        });
    }

    /// Where a machine's Docker listens.
    pub(crate) fn docker_socket(&self, machine: &str) -> PathBuf {
        let facts = self.world.machine(machine).and_then(Machine::facts);
        let told = facts.and_then(|facts| facts.docker.socket.as_ref());
        told.map_or_else(|| self.paths.docker_socket(machine), PathBuf::from)
    }
}

/// What stands below the headline in the tool tip.
fn details(machine: &Machine) -> String {
    if let Some(failure) = machine.failure() {
        return failure.to_owned();
    }
    if let Look::Starting(done) = machine.look() {
        return match machine.state() {
            State::Starting { .. } => format!("part {} of {}", done + 1, words::PHASES.len()),
            _ => String::new(),
        };
    }
    let warnings = machine.warnings();
    if !warnings.is_empty() {
        return warnings.join("\n");
    }
    match (machine.is_live(), machine.containers().len()) {
        (false, _) => String::new(),
        (true, 1) => "1 container is running".into(),
        (true, number) => format!("{number} containers are running"),
    }
}

type Answers = (Option<Result<Status, String>>, Option<Profiles>);

async fn ask_daemon(socket: PathBuf) -> Answers {
    let status = match client::get::<Status>(&socket, "/v1/status").await {
        Ok(status) => Ok(status),
        // Whoever follows it finds out, too, and knows what to make of it.
        Err(ClientError::NoDaemon | ClientError::Broken(_)) => return (None, None),
        Err(error) => return (Some(Err(error.to_string())), None),
    };
    let profiles = client::get(&socket, "/v1/profiles").await;
    (
        Some(status),
        profiles
            .inspect_err(|error| tracing::info!("profiles: {error}"))
            .ok(),
    )
}

async fn ask_files(berth: &Berth, machine: &str) -> Answers {
    let status = berth.ask(machine, &["status"]).await;
    let profiles = berth.ask(machine, &["profile", "list"]).await;
    (
        Some(status),
        profiles
            .inspect_err(|error| tracing::info!("profiles: {error}"))
            .ok(),
    )
}
