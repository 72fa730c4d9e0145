//! The daemon's side and the command line's side of the interface, with each other.

use std::sync::Arc;
use std::time::Duration;

use fileshare::passthrough::coherence::{Change, Figures, NotCoherent};
use futures_util::FutureExt;
use hyper::StatusCode;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::client::{Client, ClientError};
use super::server;
use super::types::{ProfilesReport, SettingsRequest};
use crate::config::Config;
use crate::guest::{DialError, GuestDial};
use crate::host::Host;
use crate::machine::events::Event;
use crate::machine::handle::Handle;
use crate::machine::record::MachineRecord;
use crate::machine::settings::{Chosen, Settings};
use crate::machine::shares::FakeReplay;
use crate::machine::state::{Phase, Step};
use crate::paths::MachinePaths;
use crate::size::Size;

/// A machine without a guest, whose daemon serves its interface.
struct Scene {
    dir: tempfile::TempDir,
    machine: Arc<Handle>,
    client: Client,
    _stop: watch::Sender<bool>,
}

impl Scene {
    /// One with a share that is being started, and whose host changes are as `replay` says.
    fn new(replay: &Arc<FakeReplay>) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("home")).unwrap();
        let text = format!("shares:\n- path: {}/home\n", base.display());
        let config = Config::parse(&text, std::path::Path::new("c")).unwrap();
        let host = Host {
            cpus: 2,
            memory: Size::from_gib(4),
        };
        let settings = Settings::resolve(&Chosen::default(), &config, &host).unwrap();
        let paths = MachinePaths {
            data_dir: base.join("data/machines/x"),
            state_dir: base.clone(),
            runtime_dir: base.join("run"),
        };
        let socket = base.join("api.sock");
        let (mut machine, _) = Handle::new("x".parse().unwrap(), paths, settings, &config);
        machine.shares.set_replay(Arc::clone(replay));
        let machine = Arc::new(machine);
        let listener = UnixListener::bind(&socket).unwrap();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(server::serve(
            listener,
            Arc::clone(&machine),
            base.join("config.yaml"),
            Duration::ZERO,
            stopped,
        ));
        machine.step(Step::Enter(Phase::Prepare)).unwrap();
        Scene {
            dir,
            machine,
            client: Client::new(&socket),
            _stop: stop,
        }
    }

    /// One that runs, so far as can be told without asking the guest.
    fn running(replay: &Arc<FakeReplay>) -> Scene {
        let scene = Scene::new(replay);
        scene.machine.facts().dial = Some(GuestDial::new(|port| {
            async move { Err(DialError::Refused(port)) }.boxed()
        }));
        scene.machine.step(Step::Enter(Phase::Socket)).unwrap();
        scene.machine.step(Step::Ready).unwrap();
        scene
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (StatusCode, String) {
    match result.unwrap_err() {
        ClientError::Refused { status, message } => (status, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn sync_answers_when_the_guest_has_been_told() {
    let scene = Scene::running(&FakeReplay::answering(Ok(())));
    assert!(scene.client.sync().await.unwrap().milliseconds >= 0.0);
}

#[tokio::test]
async fn sync_says_why_it_cannot_be_waited_for() {
    let scene = Scene::running(&FakeReplay::answering(Err(NotCoherent)));
    let (status, message) = refusal(scene.client.sync().await);
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(message.contains("within a second"), "{message}");

    scene.machine.step(Step::Pause).unwrap();
    let (status, message) = refusal(scene.client.sync().await);
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(message.contains("paused"), "{message}");
    let scene = Scene::new(&FakeReplay::answering(Ok(())));
    assert_eq!(refusal(scene.client.sync().await).0, StatusCode::CONFLICT);
}

#[tokio::test]
async fn changes_come_as_they_happen_with_the_paths_of_the_host() {
    let replay = Arc::new(FakeReplay::default());
    let scene = Scene::running(&replay);
    let mut changes = scene.client.changes().await.unwrap();
    let watcher = replay.watcher.lock().unwrap().take().unwrap();
    let change = Change {
        kind: "rename",
        path: b"s0/a".to_vec(),
        new_path: Some(b"s0/b\xff".to_vec()),
        latency: Duration::from_micros(1500),
        error: libc::ESTALE,
    };
    watcher.send(change).unwrap();
    let heard = changes.next().await.unwrap().unwrap();
    let home = scene.dir.path().canonicalize().unwrap().join("home");
    assert_eq!(heard.kind, "rename");
    assert_eq!(heard.path.as_deref(), home.join("a").to_str());
    assert_eq!(heard.new_path.as_deref(), home.join("b\u{fffd}").to_str());
    assert_eq!((heard.latency_ms, heard.error.as_deref()), (1.5, Some("ESTALE")));
    assert!(heard.unix_time_ms > 1_600_000_000_000);

    let all = Change {
        kind: "overflow",
        path: Vec::new(),
        new_path: None,
        latency: Duration::ZERO,
        error: 0,
    };
    watcher.send(all).unwrap();
    let heard = changes.next().await.unwrap().unwrap();
    assert_eq!((heard.path, heard.new_path, heard.error), (None, None, None));

    // The end of the machine is the end of it, though its daemon may go on for a moment.
    scene.machine.step(Step::Stop).unwrap();
    assert!(changes.next().now_or_never().is_none());
    scene.machine.step(Step::Stopped).unwrap();
    assert_eq!(changes.next().await.unwrap(), None);
}

#[tokio::test]
async fn there_are_no_changes_to_be_told_before_there_is_a_guest() {
    let scene = Scene::new(&Arc::new(FakeReplay::default()));
    assert_eq!(refusal(scene.client.changes().await).0, StatusCode::CONFLICT);
}

#[tokio::test]
async fn status_has_the_figures_and_warns_when_they_are_bad() {
    let replay = Arc::new(FakeReplay::default());
    let scene = Scene::running(&replay);
    *replay.figures.lock().unwrap() = Figures {
        coherent: true,
        watched: 12,
        replayed: 340,
        overflows: 2,
        ..Figures::default()
    };
    let status = scene.client.status().await.unwrap();
    let figures = status.coherence.unwrap();
    assert_eq!((figures.watched, figures.replayed), (12, 340));
    let warns = |status: &super::types::Status, words: &str| {
        status.warnings.iter().any(|warning| warning.contains(words))
    };
    assert!(warns(&status, "2 times") && !warns(&status, "at the moment"));

    *replay.figures.lock().unwrap() = Figures::default();
    let status = scene.client.status().await.unwrap();
    assert!(!status.coherence.unwrap().coherent);
    assert!(warns(&status, "at the moment"));
    scene.machine.step(Step::Pause).unwrap();
    assert!(!warns(&scene.client.status().await.unwrap(), "at the moment"));
}

fn profile(name: &str) -> SettingsRequest {
    SettingsRequest {
        profile: Some(name.into()),
        ..SettingsRequest::default()
    }
}

#[tokio::test]
async fn profiles_are_those_of_the_configuration_as_it_is_now() {
    let scene = Scene::new(&FakeReplay::answering(Ok(())));
    let names = |report: ProfilesReport| -> Vec<String> {
        report.profiles.into_iter().map(|profile| profile.name).collect()
    };
    let report = scene.client.profiles().await.unwrap();
    assert_eq!(report.current, None);
    assert_eq!(names(report), ["light", "balanced", "heavy"]);
    let file = scene.dir.path().canonicalize().unwrap().join("config.yaml");
    std::fs::write(&file, "profiles:\n  mine:\n    cpus: 1\n").unwrap();
    assert_eq!(names(scene.client.profiles().await.unwrap())[3], "mine");
    std::fs::write(&file, "profiles:\n  mine:\n    cpus: 0\n").unwrap();
    let (status, message) = refusal(scene.client.profiles().await);
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(
        message.contains("config.yaml:3:11: profiles.mine.cpus"),
        "{message}"
    );
}

#[tokio::test]
async fn a_switch_that_cannot_be_is_refused_and_says_why() {
    let scene = Scene::new(&FakeReplay::answering(Ok(())));
    let asked = async |request: &SettingsRequest| refusal(scene.client.change_settings(request).await);
    let (status, message) = asked(&profile("nothing")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(message.contains("there are light, balanced, heavy"), "{message}");
    let (status, message) = asked(&profile("light")).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(message.contains("it is starting"), "{message}");
    let too_many = SettingsRequest {
        cpus: Some(200),
        ..SettingsRequest::default()
    };
    assert_eq!(asked(&too_many).await.0, StatusCode::BAD_REQUEST);
    let too_little = SettingsRequest {
        memory: Some(Size::from_mib(1)),
        ..SettingsRequest::default()
    };
    assert_eq!(asked(&too_little).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_switch_is_told_kept_and_says_what_needs_a_restart() {
    let scene = Scene::running(&FakeReplay::answering(Ok(())));
    let file = scene.dir.path().canonicalize().unwrap().join("config.yaml");
    std::fs::create_dir_all(&scene.machine.paths.data_dir).unwrap();
    // One CPU is all the machine has, so that there is nothing to ask its guest for.
    std::fs::write(
        &file,
        "profiles:\n  mine:\n    cpus: 2\n    memory: 1GiB\n    disk: 99GiB\n    shares: []\n",
    )
    .unwrap();

    let report = scene.client.change_settings(&profile("mine")).await.unwrap();

    assert_eq!((report.profile.as_deref(), report.cpus), (Some("mine"), 1));
    assert_eq!(report.memory, Size::from_gib(1));
    let told = report.needs_restart.join("\n");
    for part in [
        "2 CPUs: it was started with at most 1",
        "a disk of 99 GiB",
        "no shares",
    ] {
        assert!(told.contains(part), "{told}");
    }
    let status = scene.client.status().await.unwrap();
    assert_eq!(status.settings.profile.as_deref(), Some("mine"));
    assert_eq!(status.settings.memory, Size::from_gib(1));
    let kept = MachineRecord::load(&scene.machine.paths.record())
        .unwrap()
        .unwrap();
    assert_eq!(kept.chosen.profile.as_deref(), Some("mine"));
    scene.machine.events.close();
    let mut events = scene.machine.events.listen();
    let mut told = None;
    while let Some(event) = events.next().await {
        if let Event::Settings {
            profile,
            cpus,
            memory,
        } = event
        {
            told = Some((profile, cpus, memory));
        }
    }
    assert_eq!(told, Some((Some("mine".into()), 1, Size::from_gib(1))));
}

/// The description of the interface has what is served, and nothing else. The answers are held to it by the end-to-end tests.
#[test]
fn what_is_served_is_what_is_described() {
    let described: serde_json::Value =
        serde_yaml::from_str(include_str!("../../../docs/openapi.yaml")).unwrap();
    let mut described: Vec<String> = described["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, calls)| {
            calls
                .as_object()
                .unwrap()
                .keys()
                .map(move |call| format!("{call} {path}"))
        })
        .collect();
    let mut served: Vec<String> = include_str!("server.rs")
        .lines()
        .filter_map(|line| line.trim().strip_prefix(".route(\""))
        .flat_map(|route| {
            let (path, calls) = route.split_once("\", ").unwrap();
            ["get", "post", "delete", "put", "patch"]
                .into_iter()
                .filter(|call| calls.starts_with(&format!("{call}(")) || calls.contains(&format!(".{call}(")))
                .map(move |call| format!("{call} {path}"))
        })
        .collect();
    described.sort();
    served.sort();
    assert!(served.len() > 15, "{served:?}");
    assert_eq!(served, described);
}
