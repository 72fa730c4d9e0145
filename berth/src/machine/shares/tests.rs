//! Shares of a machine whose guest the test plays.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use fileshare::passthrough::coherence::{Action, Numbered};
use futures_util::FutureExt;
use protocol::control::{Reply, Request};
use protocol::replay::{Batch, Done};
use protocol::{frame, ports};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::*;
use crate::guest::{DialError, GuestDial};
use crate::host::Host;
use crate::machine::events::Event;
use crate::machine::record::MachineRecord;
use crate::machine::settings::{Chosen, Settings};
use crate::machine::state::{Phase, Step};
use crate::size::Size;

/// A machine, the directories it can share, and the guest's end of each control connection.
struct Scene {
    dir: tempfile::TempDir,
    machine: Arc<Handle>,
    calls: mpsc::UnboundedReceiver<UnixStream>,
}

impl Scene {
    /// A machine whose configuration shares the directory `home`, and `gone`, which is not there.
    fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        for name in ["home/src", "data", "data/machines/x", "run"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        let text = format!(
            "shares:\n- path: {0}/home\n  exclude: [.ssh]\n- path: {0}/gone\n",
            base.display()
        );
        let config = Config::parse(&text, Path::new("c")).unwrap();
        let paths = MachinePaths {
            data_dir: base.join("data/machines/x"),
            state_dir: base.clone(),
            runtime_dir: base.join("run"),
        };
        let host = Host {
            cpus: 2,
            memory: Size::from_gib(4),
        };
        let settings = Settings::resolve(&Chosen::default(), &config, &host).unwrap();
        MachineRecord::new(Chosen::default())
            .store(&paths.record())
            .unwrap();
        let (machine, _) = Handle::new("x".parse().unwrap(), paths, settings, &config);
        let (call, calls) = mpsc::unbounded_channel();
        machine.facts().dial = Some(GuestDial::new(move |_| {
            let call = call.clone();
            async move {
                let (host, guest) = std::os::unix::net::UnixStream::pair().map_err(DialError::Io)?;
                guest.set_nonblocking(true).map_err(DialError::Io)?;
                call.send(UnixStream::from_std(guest).map_err(DialError::Io)?)
                    .unwrap();
                Ok(host)
            }
            .boxed()
        }));
        Scene {
            dir,
            machine: Arc::new(machine),
            calls,
        }
    }

    /// One that has started.
    fn running() -> Scene {
        let scene = Scene::new();
        scene.machine.step(Step::Enter(Phase::Prepare)).unwrap();
        scene.machine.shares.offer(&scene.machine);
        for phase in [
            Phase::Engine,
            Phase::Kernel,
            Phase::Guest,
            Phase::Docker,
            Phase::Socket,
        ] {
            scene.machine.step(Step::Enter(phase)).unwrap();
        }
        scene.machine.step(Step::Ready).unwrap();
        scene.machine.shares.settled();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn share(&self, name: &str) -> Share {
        Share::new(&self.path(name), None, false, &[]).unwrap()
    }

    /// Plays the guest for one request; what was asked.
    async fn guest(calls: &mut mpsc::UnboundedReceiver<UnixStream>, reply: Reply) -> Request {
        let mut stream = calls.recv().await.unwrap();
        let request = frame::read_async(&mut stream).await.unwrap();
        frame::write_async(&mut stream, &reply).await.unwrap();
        request
    }

    /// Adds a share while the guest gives these replies; what came of it and what the guest was asked.
    async fn add(
        &mut self,
        share: Share,
        replies: Vec<Reply>,
    ) -> (Result<ShareReport, ChangeError>, Vec<Request>) {
        let guest = async {
            let mut requests = Vec::new();
            for reply in replies {
                requests.push(Scene::guest(&mut self.calls, reply).await);
            }
            requests
        };
        tokio::join!(self.machine.shares.add(&self.machine, share), guest)
    }

    async fn remove(&mut self, name: &str, replies: Vec<Reply>) -> (Result<(), ChangeError>, Vec<Request>) {
        let path = self.path(name);
        let guest = async {
            let mut requests = Vec::new();
            for reply in replies {
                requests.push(Scene::guest(&mut self.calls, reply).await);
            }
            requests
        };
        tokio::join!(self.machine.shares.remove(&self.machine, &path, false), guest)
    }

    fn finds(&self, name: &str) -> bool {
        let path = self.path(name);
        self.machine.shares.sources().find(path.to_str().unwrap()).is_ok()
    }

    fn state(&self, name: &str) -> Option<ShareState> {
        let path = self.path(name);
        let mut all = self.machine.shares.list().into_iter();
        all.find(|report| report.share.path == path)
            .map(|report| report.state)
    }

    fn kept(&self) -> crate::shares::choice::ShareChanges {
        MachineRecord::load(&self.machine.paths.record())
            .unwrap()
            .unwrap()
            .chosen
            .shares
    }
}

fn error(message: &str) -> Reply {
    Reply::Error {
        message: message.into(),
    }
}

#[tokio::test]
async fn a_share_without_its_directory_is_a_warning_and_the_others_are_offered() {
    let scene = Scene::new();
    let offered = scene.machine.shares.offer(&scene.machine);
    assert_eq!(offered.len(), 1);
    assert_eq!(offered[0].target, scene.path("home").to_str().unwrap());
    assert!(protocol::shares::is_id(&offered[0].id));
    let warnings = scene.machine.events.warnings();
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("gone is not there")),
        "{warnings:?}"
    );
    assert!(matches!(scene.state("gone"), Some(ShareState::Failed { .. })));
    assert_eq!(scene.state("home"), Some(ShareState::Configured));
    scene.machine.shares.settled();
    assert_eq!(scene.state("home"), Some(ShareState::Shared));
    assert!(scene.finds("home/src") && !scene.finds("gone") && !scene.finds("home/.ssh"));
}

#[tokio::test]
async fn a_share_the_guest_could_not_mount_is_no_source() {
    let scene = Scene::new();
    let offered = scene.machine.shares.offer(&scene.machine);
    scene
        .machine
        .shares
        .failed(&offered[0].id, "no room".into(), &scene.machine);
    scene.machine.shares.settled();
    assert!(!scene.finds("home"));
    assert_eq!(
        scene.state("home"),
        Some(ShareState::Failed {
            message: "no room".into()
        })
    );
    let status = scene.machine.status().await;
    assert!(
        status
            .warnings
            .iter()
            .any(|warning| warning.starts_with("no room")),
        "{:?}",
        status.warnings
    );
}

#[tokio::test]
async fn an_added_share_is_mounted_found_listed_and_kept() {
    let mut scene = Scene::running();
    fs::create_dir(scene.path("more")).unwrap();
    assert!(!scene.finds("more"));
    let share = scene.share("more");
    let (added, asked) = scene.add(share.clone(), vec![Reply::Done]).await;
    assert_eq!(added.unwrap().state, ShareState::Shared);
    let [Request::MountShare(mount)] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!(
        (mount.target.as_str(), mount.read_only),
        (share.path.to_str().unwrap(), false)
    );
    assert!(scene.finds("more/below"));
    assert_eq!(scene.kept().added, std::slice::from_ref(&share));
    // Once more changes nothing, and asks nobody.
    let (again, _) = scene.add(share.clone(), vec![]).await;
    assert_eq!(again.unwrap().state, ShareState::Shared);
    let other = Share {
        read_only: true,
        ..share
    };
    let (refused, _) = scene.add(other, vec![]).await;
    assert!(matches!(refused, Err(ChangeError::SharedOtherwise { .. })));

    let (removed, asked) = scene.remove("more", vec![Reply::Done]).await;
    removed.unwrap();
    assert_eq!(asked, [Request::UnmountShare { id: mount.id.clone() }]);
    assert!(!scene.finds("more") && scene.state("more").is_none());
    assert!(scene.kept().is_empty());
}

#[tokio::test]
async fn a_share_the_guest_refuses_leaves_nothing_behind() {
    let mut scene = Scene::running();
    fs::create_dir(scene.path("more")).unwrap();
    let share = scene.share("more");
    let (refused, asked) = scene
        .add(share.clone(), vec![error("no room"), Reply::Done])
        .await;
    assert!(refused.unwrap_err().to_string().contains("no room"));
    assert!(matches!(
        &asked[..],
        [Request::MountShare(_), Request::UnmountShare { .. }]
    ));
    assert!(!scene.finds("more") && scene.state("more").is_none() && scene.kept().is_empty());
    // The id is not given out again: the guest may still know something of it.
    let (added, again) = scene.add(share, vec![Reply::Done]).await;
    added.unwrap();
    let (Request::MountShare(first), Request::MountShare(second)) = (&asked[0], &again[0]) else {
        panic!("{asked:?} {again:?}")
    };
    assert_ne!(first.id, second.id);
}

#[tokio::test]
async fn a_share_that_came_back_takes_the_place_of_the_one_that_failed() {
    let mut scene = Scene::running();
    fs::create_dir(scene.path("gone")).unwrap();
    let share = scene.share("gone");
    let (added, _) = scene.add(share, vec![Reply::Done]).await;
    assert_eq!(added.unwrap().state, ShareState::Shared);
    assert_eq!(scene.machine.shares.list().len(), 2);
    assert!(scene.kept().is_empty(), "it is in the configuration");
    assert!(scene.finds("gone"));
}

#[tokio::test]
async fn what_overlaps_or_is_berths_own_is_refused() {
    let mut scene = Scene::running();
    std::os::unix::fs::symlink(scene.path("home"), scene.path("link")).unwrap();
    std::os::unix::fs::symlink("/proc/self", scene.path("system")).unwrap();
    for (name, words) in [
        ("home/src", "overlap"),
        ("link", "overlap"),
        ("data/machines/x", "where berth keeps"),
        ("data/machines", "where berth keeps"),
        ("none", "is not there"),
        ("system", "cannot be shared"),
    ] {
        let share = scene.share(name);
        let (refused, _) = scene.add(share, vec![]).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(words), "{name}: {refused}");
    }
    // A directory around it can be shared, without it.
    let share = scene.share("data");
    scene.add(share, vec![Reply::Done]).await.0.unwrap();
    fs::create_dir(scene.path("data/other")).unwrap();
    assert!(scene.finds("data/other") && !scene.finds("data/machines/x/data.img"));
}

#[tokio::test]
async fn a_share_that_stays_mounted_stays() {
    let mut scene = Scene::running();
    let (refused, _) = scene.remove("home", vec![error("busy")]).await;
    assert!(refused.unwrap_err().to_string().contains("busy"));
    assert_eq!(scene.state("home"), Some(ShareState::Shared));
    assert!(scene.finds("home") && scene.kept().is_empty());
    let (missing, _) = scene.remove("nothing", vec![]).await;
    assert!(matches!(missing, Err(ChangeError::NoSuchShare { .. })));
    // One that was never mounted is none of the guest's business.
    let (removed, _) = scene.remove("gone", vec![]).await;
    removed.unwrap();
    assert_eq!(scene.kept().removed, [scene.path("gone")]);
}

#[tokio::test]
async fn nothing_is_changed_while_the_machine_does_not_run() {
    let mut scene = Scene::new();
    scene.machine.step(Step::Enter(Phase::Prepare)).unwrap();
    let share = scene.share("data");
    let (refused, _) = scene.add(share, vec![]).await;
    assert!(matches!(refused, Err(ChangeError::NotRunning(_))));
    let (refused, _) = scene.remove("home", vec![]).await;
    assert!(matches!(refused, Err(ChangeError::NotRunning(_))));
}

#[tokio::test]
async fn changes_are_told_to_whoever_listens() {
    let mut scene = Scene::running();
    fs::create_dir(scene.path("more")).unwrap();
    let share = scene.share("more");
    scene.add(share, vec![Reply::Done]).await.0.unwrap();
    scene.machine.events.close();
    let mut listener = scene.machine.events.listen();
    let mut notes = Vec::new();
    while let Some(event) = listener.next().await {
        if let Event::Note { message } = event {
            notes.push(message);
        }
    }
    assert!(
        notes.iter().any(|note| note.ends_with("more is shared")),
        "{notes:?}"
    );
}

#[tokio::test]
async fn a_way_in_the_file_system_has_a_path_on_the_host() {
    let mut scene = Scene::running();
    let home = scene.path("home");
    let home = home.to_str().unwrap();
    let shares = &scene.machine.shares;
    assert_eq!(shares.host_path(b"s0"), home);
    assert_eq!(shares.host_path(b"s0/src/a b"), format!("{home}/src/a b"));
    assert_eq!(shares.host_path(b"s0/\xff"), format!("{home}/\u{fffd}"));
    for unknown in ["", "s", "s9/x", "s00/x", "/s0/x"] {
        assert_eq!(shares.host_path(unknown.as_bytes()), unknown);
    }
    fs::create_dir(scene.path("more")).unwrap();
    let share = scene.share("more");
    scene.add(share, vec![Reply::Done]).await.0.unwrap();
    let more = scene.path("more/x");
    assert_eq!(scene.machine.shares.host_path(b"s2/x"), more.to_str().unwrap());
}

/// A machine whose agent is dialled by `connect`, and what stands in for what uses it.
fn with_agent(
    connect: impl Fn() -> Result<std::os::unix::net::UnixStream, DialError> + Send + Sync + 'static,
) -> (Scene, Arc<FakeReplay>) {
    let mut scene = Scene::running();
    let fake = Arc::new(FakeReplay::default());
    let machine = Arc::get_mut(&mut scene.machine).unwrap();
    machine.shares.set_replay(Arc::clone(&fake));
    machine.facts().dial = Some(GuestDial::new(move |port| {
        assert_eq!(port, ports::REPLAY);
        std::future::ready(connect()).boxed()
    }));
    (scene, fake)
}

#[tokio::test]
async fn the_agent_is_connected_and_again_when_it_is_lost() {
    let (guests, mut agents) = mpsc::unbounded_channel();
    let (scene, fake) = with_agent(move || {
        let (host, guest) = std::os::unix::net::UnixStream::pair()?;
        guests.send(guest).unwrap();
        Ok(host)
    });
    let keeper = scene.machine.shares.connect_agent(&scene.machine).await;
    assert!(keeper.is_some());
    for _ in 0..2 {
        let mut guest = agents.recv().await.unwrap();
        let mut agent = loop {
            if let Some(agent) = fake.agent.lock().unwrap().take() {
                break agent;
            }
            tokio::task::yield_now().await;
        };
        let plays = std::thread::spawn(move || {
            let batch: Batch = frame::read(&mut guest).unwrap();
            let done = Done {
                number: batch.number,
                errors: vec![0],
            };
            frame::write(&mut guest, &done).unwrap();
        });
        let batch = [Numbered {
            number: 1,
            action: Action::DropCaches,
        }];
        assert_eq!(agent.perform(&batch).unwrap(), [0]);
        plays.join().unwrap();
        assert!(agent.perform(&batch).is_err(), "the guest's end is closed");
        fake.lose();
    }
    assert_eq!(scene.machine.events.warnings().len(), 1, "the share that is gone");
}

#[tokio::test]
async fn a_paused_guest_is_not_dialled() {
    let (dialled, mut dials) = mpsc::unbounded_channel();
    let (scene, fake) = with_agent(move || {
        dialled.send(()).unwrap();
        Ok(std::os::unix::net::UnixStream::pair()?.0)
    });
    let _keeper = scene.machine.shares.connect_agent(&scene.machine).await;
    dials.recv().await.unwrap();
    scene.machine.step(Step::Pause).unwrap();
    tokio::time::pause();
    fake.lose();
    let long = tokio::time::sleep(std::time::Duration::from_secs(600));
    tokio::select! {
        () = long => {}
        _ = dials.recv() => panic!("it was dialled"),
    }
    scene.machine.step(Step::Resume).unwrap();
    dials.recv().await.unwrap();
}

#[tokio::test]
async fn a_guest_without_an_agent_is_a_warning() {
    let (scene, _fake) = with_agent(|| Err(DialError::Refused(ports::REPLAY)));
    let keeper = scene.machine.shares.connect_agent(&scene.machine).await;
    assert!(keeper.is_some(), "it goes on trying");
    let warnings = scene.machine.events.warnings();
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("is not told of host changes yet")),
        "{warnings:?}"
    );
}
