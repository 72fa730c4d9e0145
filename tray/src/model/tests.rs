//! What follows from what happens.

use std::fs;

use super::*;
use crate::daemon::types::{Container, Failure, Settings};
use crate::machines::Files;

fn file_id() -> FileId {
    // Inodes are not used again while the file is there, and each call makes another.
    let file = tempfile::NamedTempFile::new().unwrap();
    let (_, path) = file.keep().unwrap();
    let id = FileId::of(&path).unwrap();
    fs::remove_file(path).unwrap();
    id
}

struct Scene {
    world: World,
    socket: FileId,
}

impl Scene {
    /// A world with a machine whose daemon has begun to tell.
    fn followed() -> Scene {
        let mut scene = Scene {
            world: World::new("default".into()),
            socket: file_id(),
        };
        let effects = scene.files(None, Some(scene.socket));
        let follow = Effect::Follow {
            machine: "default".into(),
            socket: scene.socket,
        };
        assert_eq!(effects, [follow]);
        assert_eq!(scene.told(Told::Began), [Effect::AskDaemon("default".into())]);
        scene
    }

    fn running() -> Scene {
        let mut scene = Self::followed();
        scene.state(State::Running);
        scene
    }

    fn apply(&mut self, update: Update) -> Vec<Effect> {
        self.world.apply(update, Instant::now())
    }

    fn files(&mut self, record: Option<FileId>, socket: Option<FileId>) -> Vec<Effect> {
        let files = Files { record, socket };
        self.apply(Update::Machines([("default".to_owned(), files)].into()))
    }

    fn told(&mut self, told: Told) -> Vec<Effect> {
        let (machine, socket) = ("default".into(), self.socket);
        self.apply(Update::Followed {
            machine,
            socket,
            told,
        })
    }

    fn state(&mut self, state: State) -> Vec<Effect> {
        self.told(Told::Event(Event::State { state }))
    }

    fn facts(&mut self, source: Source, status: Status) -> Vec<Effect> {
        self.apply(Update::Facts {
            machine: "default".into(),
            source,
            status: Ok(Box::new(status)),
        })
    }

    fn done(&mut self, doing: Doing, result: Result<(), String>) -> Vec<Effect> {
        let machine = "default".into();
        self.apply(Update::Done {
            machine,
            doing,
            result,
        })
    }

    fn doing(&mut self, doing: Doing) {
        let machine = "default".into();
        assert_eq!(self.apply(Update::Doing { machine, doing }), []);
    }

    fn machine(&self) -> &Machine {
        self.world.machine("default").unwrap()
    }
}

fn failed(reason: &str) -> State {
    State::Failed {
        reason: reason.into(),
    }
}

fn notices(effects: &[Effect]) -> Vec<&str> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Notify(notice) => Some(notice.body.as_str()),
            _ => None,
        })
        .collect()
}

#[test]
fn a_start_is_followed_part_by_part() {
    let mut scene = Scene::followed();
    let mut looks = Vec::new();
    for phase in crate::words::PHASES {
        let phase = phase.to_owned();
        scene.told(Told::Event(Event::Phase { phase }));
        looks.push(scene.machine().look());
    }
    assert_eq!(looks, [0, 1, 2, 3, 4, 5, 6].map(Look::Starting));
    assert_eq!(
        scene.machine().state_text(),
        "starting (opening the Docker socket)"
    );
    assert_eq!(scene.state(State::Running), [Effect::AskDaemon("default".into())]);
    assert_eq!(scene.machine().look(), Look::Running);
}

#[test]
fn a_start_that_fails_is_told_once_with_its_reason() {
    let mut scene = Scene::followed();
    scene.doing(Doing::Start);
    scene.told(Told::Event(Event::Phase {
        phase: "kernel".into(),
    }));
    let reason = Failure { reason: "no".into() };
    assert_eq!(scene.told(Told::Event(Event::Failed(reason))), []);
    let effects = scene.state(failed("no"));
    assert_eq!(notices(&effects), ["no"]);
    assert_eq!(scene.machine().look(), Look::Failed);
    // The command that the icon ran says the same, and so do the files.
    scene.told(Told::Gone);
    assert_eq!(notices(&scene.done(Doing::Start, Err("no".into()))), [""; 0]);
    let status = Status {
        state: failed("no"),
        ..Status::default()
    };
    assert_eq!(notices(&scene.facts(Source::Files, status)), [""; 0]);
    assert_eq!(scene.machine().failure(), Some("no"));
}

#[test]
fn a_start_without_a_daemon_is_told_by_the_command() {
    let mut scene = Scene::followed();
    scene.state(State::Stopped);
    scene.told(Told::Gone);
    scene.doing(Doing::Start);
    assert_eq!(scene.machine().look(), Look::Starting(0));
    assert_eq!(scene.machine().state_text(), "starting");
    let effects = scene.done(Doing::Start, Err("bad configuration".into()));
    assert_eq!(notices(&effects), ["bad configuration"]);
    assert!(effects.contains(&Effect::AskFiles("default".into())));
    assert_eq!(scene.machine().look(), Look::Stopped);
}

#[test]
fn a_machine_that_was_never_made_leaves_nothing() {
    let mut scene = Scene {
        world: World::new("default".into()),
        socket: file_id(),
    };
    scene.doing(Doing::Start);
    assert_eq!(scene.apply(Update::Machines(Machines::new())), []);
    assert_eq!(scene.machine().look(), Look::Starting(0));
    let effects = scene.done(Doing::Start, Err("no".into()));
    assert_eq!(notices(&effects), ["no"]);
    assert!(scene.world.machine("default").is_none());
}

#[test]
fn a_killed_daemon_is_found_out_and_told_once_and_the_next_is_followed() {
    let mut scene = Scene::running();
    let containers = vec![Container::default()];
    scene.told(Told::Event(Event::Containers { containers }));
    assert_eq!(scene.told(Told::Gone), [Effect::AskFiles("default".into())]);
    assert!(scene.machine().containers().is_empty());
    let dead = Status {
        state: failed("its daemon ended without stopping it"),
        ..Status::default()
    };
    let effects = scene.facts(Source::Files, dead.clone());
    assert_eq!(
        notices(&effects),
        ["its daemon ended without stopping it\nStart it again with `berth start`"]
    );
    assert_eq!(notices(&scene.facts(Source::Files, dead)), [""; 0]);
    assert_eq!(scene.machine().look(), Look::Failed);

    let old = std::mem::replace(&mut scene.socket, file_id());
    let effects = scene.files(None, Some(scene.socket));
    assert!(matches!(&effects[..], [Effect::Follow { .. }]));
    // What the follower of the dead one still had to say does not count.
    let machine = "default".to_owned();
    let (socket, told) = (old, Told::Gone);
    assert_eq!(
        scene.apply(Update::Followed {
            machine,
            socket,
            told
        }),
        []
    );
    scene.told(Told::Began);
    scene.state(State::Running);
    assert_eq!(scene.machine().look(), Look::Running);
}

#[test]
fn a_failure_from_before_is_shown_and_not_told() {
    let mut scene = Scene {
        world: World::new("default".into()),
        socket: file_id(),
    };
    let record = file_id();
    assert_eq!(
        scene.files(Some(record), None),
        [Effect::AskFiles("default".into())]
    );
    let status = Status {
        state: failed("long ago"),
        ..Status::default()
    };
    assert_eq!(scene.facts(Source::Files, status), []);
    assert_eq!(scene.machine().look(), Look::Failed);
}

#[test]
fn a_warning_is_told_once_whatever_its_figures() {
    let mut scene = Scene::running();
    let with = |warnings: &[&str]| Status {
        state: State::Running,
        warnings: warnings.iter().map(|warning| (*warning).to_owned()).collect(),
        ..Status::default()
    };
    let full = "the host's disk is full: 9 MiB left";
    let unwatched = "1 directory of the shares cannot be watched";
    assert_eq!(notices(&scene.facts(Source::Daemon, with(&[full]))), [full]);
    assert_eq!(scene.machine().look(), Look::Warning);
    let effects = scene.facts(
        Source::Daemon,
        with(&["the host's disk is full: 8.5 MiB left", unwatched]),
    );
    assert_eq!(notices(&effects), [unwatched]);
    assert_eq!(scene.facts(Source::Daemon, with(&[])), []);
    assert_eq!(scene.machine().look(), Look::Running);
    assert_eq!(scene.facts(Source::Daemon, with(&[full])), []);
}

#[test]
fn a_daemon_that_does_not_answer_is_shown_and_not_asked() {
    let mut scene = Scene::running();
    assert!(scene.world.ask("default").is_some());
    assert_eq!(scene.told(Told::Silent), []);
    assert_eq!(scene.machine().state_text(), "does not answer");
    assert_eq!(scene.machine().look(), Look::Warning);
    assert_eq!(scene.world.ask("default"), None);
}

#[test]
fn answers_that_are_late_do_not_count() {
    let mut scene = Scene::running();
    let stopped = Status {
        settings: Settings {
            cpus: 3,
            ..Settings::default()
        },
        ..Status::default()
    };
    assert_eq!(scene.facts(Source::Files, stopped.clone()), []);
    assert_eq!(scene.machine().facts(), None);
    // The daemon's own answer has figures, and its events the state.
    scene.facts(Source::Daemon, stopped);
    assert_eq!(scene.machine().look(), Look::Running);
    assert_eq!(scene.machine().facts().unwrap().settings.cpus, 3);
}

#[test]
fn what_the_user_asked_for_shows_until_the_machine_does_it() {
    let mut scene = Scene::running();
    scene.doing(Doing::Stop);
    assert_eq!(scene.machine().state_text(), "stopping");
    scene.state(State::Stopping);
    assert_eq!(scene.machine().doing(), None);
    scene.state(State::Stopped);
    scene.told(Told::Gone);
    assert_eq!(scene.machine().look(), Look::Stopped);

    let mut scene = Scene::running();
    scene.doing(Doing::Profile("light".into()));
    let effects = scene.done(Doing::Profile("light".into()), Err("too busy".into()));
    assert_eq!(notices(&effects), ["too busy"]);
    assert_eq!(scene.machine().doing(), None);
}

#[test]
fn a_deleted_machine_is_forgotten() {
    let mut scene = Scene::running();
    let effects = scene.apply(Update::Machines(Machines::new()));
    assert_eq!(effects, [Effect::Leave("default".into())]);
    assert!(scene.world.machine("default").is_none());
    assert_eq!(scene.told(Told::Gone), []);
}
