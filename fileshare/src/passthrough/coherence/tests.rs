//! A share that is watched, with an agent that plays the guest's requests.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::*;
use crate::filesystem::{Context, Entry, Errno, FileSystem, NodeId, SetAttr, SetTime};
use crate::passthrough::{CachePolicy, PassthroughConfig, ShareConfig};
use crate::wire::ROOT_ID;

const AGENT: u32 = 0xffb3_27e1;
const ROOT: Context = Context {
    uid: 0,
    gid: 0,
    pid: 1,
};

/// A program that is being started has all open files of this process for a moment, and closes them: whoever must not see that
/// keeps others from starting any.
static STARTING: RwLock<()> = RwLock::new(());

/// What the agent has done: every action, and what its requests were answered.
type Log = Arc<Mutex<Vec<(Action, i32)>>>;

struct World {
    dir: tempfile::TempDir,
    fs: Arc<Passthrough>,
    coherence: Coherence,
    log: Log,
    lost: Receiver<()>,
}

/// Performs actions as the guest's kernel would for an agent that has nothing cached.
struct Guest {
    fs: Arc<Passthrough>,
    log: Log,
    /// From then on the connection is broken.
    broken: Arc<std::sync::atomic::AtomicBool>,
}

impl Agent for Guest {
    fn perform(&mut self, batch: &[Numbered]) -> io::Result<Vec<i32>> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(batch
            .iter()
            .map(|numbered| {
                let error = match self.act(numbered) {
                    Ok(()) => 0,
                    Err(Errno(error)) => error,
                };
                self.log.lock().unwrap().push((numbered.action.clone(), error));
                error
            })
            .collect())
    }
}

fn c(name: &[u8]) -> CString {
    CString::new(name).unwrap()
}

impl Guest {
    fn act(&self, Numbered { number, action }: &Numbered) -> Result<(), Errno> {
        let ctx = as_agent(*number);
        let fs = &*self.fs;
        match action {
            Action::Make {
                parent, name, what, ..
            } => {
                let name = c(name);
                assert_eq!(
                    fs.lookup(&ctx, *parent, &name),
                    Err(Errno(libc::ENOENT)),
                    "hidden"
                );
                let made = match what {
                    What::Directory => fs.mkdir(&ctx, *parent, &name, 0o700, 0),
                    What::Symlink { target } => fs.symlink(&ctx, *parent, &name, &c(target)),
                    _ => fs.mknod(&ctx, *parent, &name, what.kind(), 0, 0),
                }?;
                assert_eq!(made.attr.mode & libc::S_IFMT, what.kind());
            }
            Action::Remove {
                parent,
                name,
                directory,
            } => {
                fs.lookup(&ctx, *parent, &c(name))?;
                if *directory {
                    fs.rmdir(&ctx, *parent, &c(name))?;
                } else {
                    fs.unlink(&ctx, *parent, &c(name))?;
                }
            }
            Action::Rename {
                from,
                name,
                to,
                new_name,
                ..
            } => {
                let at = |id: NodeId| match id {
                    STAGING_PARENT => fs.lookup(&ctx, ROOT_ID, &c(STAGING.as_bytes())).unwrap().node,
                    id => id,
                };
                fs.lookup(&ctx, at(*from), &c(name))?;
                fs.rename(&ctx, at(*from), &c(name), at(*to), &c(new_name), 0)?;
            }
            Action::Touch { parent, name, .. } => {
                let node = match name {
                    Some(name) => fs.lookup(&ctx, *parent, &c(name))?.node,
                    None => *parent,
                };
                let set = SetAttr {
                    mtime: Some(SetTime::At(1, 0)),
                    ..SetAttr::default()
                };
                let (before, timeout) = fs.setattr(&ctx, node, None, &set)?;
                let (after, _) = fs.getattr(&ctx, node, None)?;
                if let Action::Touch { modified: true, .. } = action
                    && after.nlink > 0
                    && node < 1 << 62
                {
                    assert_ne!(
                        before.mtime, after.mtime,
                        "the guest sees that something has changed"
                    );
                    assert_eq!(timeout, Duration::ZERO);
                }
            }
            Action::Refresh { node } => {
                let (first, _) = fs.getattr(&ctx, *node, None)?;
                let (second, _) = fs.getattr(&ctx, *node, None)?;
                assert_ne!(first.mtime, second.mtime);
            }
            Action::Confirm { parent, name } => {
                let name = c(name);
                let found = fs.lookup(&ctx, *parent, &name);
                assert_eq!(fs.mkdir(&ctx, *parent, &name, 0o700, 0), Err(Errno(libc::EPERM)));
                assert!(matches!(found, Ok(_) | Err(Errno(libc::ENOENT))));
            }
            Action::DropCaches => {}
        }
        Ok(())
    }
}

impl World {
    /// Without an agent.
    fn alone() -> World {
        World::watched_by(Group::new())
    }

    /// On a host without fanotify.
    fn by_inotify() -> World {
        let world = World::watched_by(Err(io::ErrorKind::Unsupported.into()));
        world.connect();
        world.sync().unwrap();
        world
    }

    fn watched_by(fanotify: io::Result<Group>) -> World {
        let dir = tempfile::tempdir().unwrap();
        let config = PassthroughConfig::with_cache(CachePolicy::Auto);
        let fs = Arc::new(Passthrough::single(ShareConfig::new(dir.path()), config).unwrap());
        let coherence = Coherence::start_with(&fs, AGENT, fanotify).unwrap();
        let (sender, lost) = channel();
        coherence.on_lost(Box::new(move || sender.send(()).unwrap()));
        fs.init(u64::MAX);
        World {
            dir,
            fs,
            coherence,
            log: Log::default(),
            lost,
        }
    }

    fn new() -> World {
        let world = World::alone();
        world.connect();
        world.sync().unwrap();
        world
    }

    /// Returns what breaks the connection.
    fn connect(&self) -> Arc<std::sync::atomic::AtomicBool> {
        let broken = Arc::default();
        self.coherence.connect(Box::new(Guest {
            fs: self.fs.clone(),
            log: self.log.clone(),
            broken: Arc::clone(&broken),
        }));
        broken
    }

    fn sync(&self) -> Result<(), NotCoherent> {
        let (sender, reached): (Sender<_>, _) = channel();
        self.coherence
            .barrier(Box::new(move |result| sender.send(result).unwrap()));
        reached.recv().unwrap()
    }

    /// Another process changes the host; then what the agent did.
    fn after(&self, script: &str) -> Vec<Action> {
        self.log.lock().unwrap().clear();
        self.host(script);
        self.sync().unwrap();
        let log = self.log.lock().unwrap();
        log.iter()
            .map(|(action, error)| {
                assert_eq!(*error, 0, "{action:?}");
                action.clone()
            })
            .collect()
    }

    /// The same, when all of it has happened by the time it is read.
    fn after_at_once(&self, script: &str) -> Vec<Action> {
        // The agent cannot end what it does without the log.
        let log = self.log.lock().unwrap();
        let seen = self.coherence.figures().seen;
        self.host("touch busy");
        while self.coherence.figures().seen == seen {
            std::thread::yield_now();
        }
        self.host(script);
        drop(log);
        self.sync().unwrap();
        let log = self.log.lock().unwrap();
        log.iter().map(|(action, _)| action.clone()).collect()
    }

    fn host(&self, script: &str) {
        let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
        let status = Command::new("sh")
            .args(["-ec", script])
            .current_dir(&self.dir)
            .status();
        assert!(status.unwrap().success(), "{script}");
    }

    /// Permits one action, as if a batch of it were under way. Returns who may ask for it.
    fn permit(&self, action: Action) -> Context {
        let number = 9;
        self.coherence
            .running
            .watcher
            .board
            .arm(&[Numbered { number, action }]);
        as_agent(number)
    }

    fn look(&self, parent: NodeId, name: &CStr) -> Entry {
        self.fs.lookup(&ROOT, parent, name).unwrap()
    }
}

/// A rename in the root.
fn rename(name: &[u8], new_name: &[u8]) -> Action {
    Action::Rename {
        from: ROOT_ID,
        name: name.into(),
        to: ROOT_ID,
        new_name: new_name.into(),
        exchange: false,
    }
}

/// Who asks while the action of that number is performed.
fn as_agent(number: u32) -> Context {
    Context {
        uid: AGENT,
        gid: number,
        pid: 7,
    }
}

/// The names of actions, for comparing.
fn words(actions: &[Action]) -> Vec<String> {
    let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Make { name, what, .. } => Some(format!("make {} {what:?}", text(name))),
            Action::Remove { name, .. } => Some(format!("remove {}", text(name))),
            Action::Rename {
                from,
                name,
                to,
                new_name,
                ..
            } => Some(match (*from, *to) {
                (STAGING_PARENT, _) => format!("in {}", text(new_name)),
                (_, STAGING_PARENT) => format!("out {}", text(name)),
                _ => format!("rename {} {}", text(name), text(new_name)),
            }),
            Action::Touch {
                name,
                open,
                modified,
                attributes,
                ..
            } => {
                let flag = |on: bool, letter: &'static str| if on { letter } else { "" };
                let name = name.as_deref().map_or(".".into(), text);
                let (open, modified) = (flag(*open, "w"), flag(*modified, "m"));
                Some(format!("touch {name} {modified}{}{open}", flag(*attributes, "a")))
            }
            Action::Refresh { .. } | Action::Confirm { .. } => None,
            Action::DropCaches => Some("drop".into()),
        })
        .collect()
}

#[test]
fn what_another_process_does_is_replayed_in_its_order() {
    for world in [World::new(), World::by_inotify()] {
        is_replayed_in_its_order(&world);
    }
}

fn is_replayed_in_its_order(world: &World) {
    let done = words(&world.after("echo x > f; chmod 600 f; mv f g; ln -s g l; mkdir d; rm g"));
    // The file was gone before the events were read, or was not: its life is the same.
    let of_file: Vec<_> = done
        .iter()
        .filter(|word| !word.contains(" d") && !word.contains(" l "))
        .collect();
    assert_eq!(of_file.first().unwrap().as_str(), "make f File");
    assert!(
        of_file
            .iter()
            .any(|word| word.starts_with("touch f") && word.contains('m')),
        "{done:?}"
    );
    assert!(
        of_file
            .iter()
            .any(|word| word.starts_with("touch f") && word.ends_with('w')),
        "{done:?}"
    );
    assert!(of_file.contains(&&"rename f g".to_owned()), "{done:?}");
    assert_eq!(of_file.last().unwrap().as_str(), "remove g");
    let symlink = What::Symlink {
        target: b"g"[..].into(),
    };
    assert!(done.contains(&format!("make l {symlink:?}")), "{done:?}");
    assert!(done.contains(&"make d Directory".to_owned()), "{done:?}");
}

#[test]
fn what_the_guest_does_itself_is_not_replayed() {
    for world in [World::new(), World::by_inotify()] {
        let nobody_starts = STARTING.write().unwrap_or_else(PoisonError::into_inner);
        let fs = &*world.fs;
        let flags = libc::O_RDWR as u32;
        let (entry, opened) = fs
            .create(&ROOT, ROOT_ID, c"mine", 0o644, flags, 0, false)
            .unwrap();
        let (file, dir) = (
            entry.node,
            fs.mkdir(&ROOT, ROOT_ID, c"dir", 0o755, 0).unwrap().node,
        );
        let set = SetAttr {
            mode: Some(0o600),
            uid: Some(5),
            size: Some(10),
            mtime: Some(SetTime::At(5, 6)),
            ..SetAttr::default()
        };
        let mut text = crate::buffers::memory::MemoryRequest::new(b"text");
        fs.write(&ROOT, file, opened.handle, 0, 4, &mut text, false, true, 0)
            .unwrap();
        fs.setattr(&ROOT, file, Some(opened.handle), &set).unwrap();
        fs.setattr(&ROOT, file, None, &set).unwrap();
        fs.setattr(&ROOT, dir, None, &SetAttr { size: None, ..set })
            .unwrap();
        fs.setxattr(&ROOT, file, c"user.x", b"y", 0).unwrap();
        fs.link(&ROOT, file, dir, c"link").unwrap();
        world.sync().unwrap();
        // Closed when its events before have long been read.
        fs.release(&ROOT, file, opened.handle, None).unwrap();
        world.sync().unwrap();
        fs.rename(&ROOT, ROOT_ID, c"mine", dir, c"moved", 0).unwrap();
        fs.symlink(&ROOT, dir, c"symlink", c"moved").unwrap();
        fs.mknod(&ROOT, dir, c"fifo", libc::S_IFIFO | 0o600, 0, 0)
            .unwrap();
        let again = fs
            .open(&ROOT, file, (libc::O_WRONLY | libc::O_TRUNC) as u32, false)
            .unwrap();
        fs.release(&ROOT, file, again.handle, None).unwrap();
        for name in [c"moved", c"link", c"symlink", c"fifo"] {
            fs.unlink(&ROOT, dir, name).unwrap();
        }
        fs.rmdir(&ROOT, ROOT_ID, c"dir").unwrap();
        world.sync().unwrap();
        assert_eq!(*world.log.lock().unwrap(), []);
        assert_eq!(world.coherence.figures().seen, 0);
        drop(nobody_starts);
        // And what others do right afterwards is.
        assert_eq!(
            words(&world.after("mkdir dir mine")),
            ["make dir Directory", "make mine Directory"]
        );
    }
}

#[test]
fn what_inotify_watches_is_told_and_cached_for_a_second() {
    let world = World::by_inotify();
    world.host("mkdir d; echo x > d/f");
    world.sync().unwrap();
    let second = Duration::from_secs(1);
    let dir = world.look(ROOT_ID, c"d");
    assert_eq!((dir.entry_timeout, dir.attr_timeout), (second, second));
    let file = world.look(dir.node, c"f");
    assert_eq!((file.entry_timeout, file.attr_timeout), (second, second));
    assert!(!file.attr.local_open);
    let figures = world.coherence.figures();
    assert_eq!(
        (figures.watched, figures.by_inotify, figures.unwatched),
        (2, 2, 0)
    );
    assert!(
        world.fs.warnings()[0].contains("inotify"),
        "{:?}",
        world.fs.warnings()
    );

    // One action or two, as they come.
    let written = words(&world.after("echo y >> d/f")).concat();
    assert!(written.contains('m') && written.ends_with('w'), "{written}");
    assert_eq!(words(&world.after("mv d/f d/g")), ["rename f g"]);
    assert_eq!(
        words(&world.after("chmod 700 d; chmod 700 .")),
        ["touch d a", "touch . a"]
    );
    let unknown = tempfile::tempdir().unwrap();
    let unknown = unknown.path().display();
    assert_eq!(words(&world.after(&format!("mv d/g {unknown}/g"))), ["out g"]);
    assert_eq!(words(&world.after(&format!("mv {unknown}/g d/g"))), ["in g"]);

    world.fs.close_cached();
    world.fs.forget(file.node, 100);
    world.fs.forget(dir.node, 100);
    let figures = world.coherence.figures();
    assert_eq!((figures.watched, figures.by_inotify), (1, 1));
    let seen = figures.seen;
    assert_eq!(words(&world.after("touch d/h")), Vec::<String>::new());
    assert_eq!(world.coherence.figures().seen, seen, "not even told");
}

#[test]
fn what_fanotify_has_no_more_marks_for_inotify_watches() {
    let starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    // A user namespace may have a limit of its own, and this process's threads must not be in it.
    let probe = Command::new("unshare")
        .args(["-Ur", "sh", "-ec", "echo 2 > /proc/sys/user/max_fanotify_marks"])
        .output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!("skipped: no user namespaces here");
        return;
    }
    if std::env::var_os("BERTH_FEW_MARKS").is_none() {
        let test = std::thread::current().name().unwrap().to_owned();
        let status = Command::new("unshare")
            .args(["-Ur", "sh", "-ec"])
            .arg("echo 2 > /proc/sys/user/max_fanotify_marks; exec \"$0\" --exact \"$1\" --nocapture")
            .arg(std::env::current_exe().unwrap())
            .arg(test)
            .env("BERTH_FEW_MARKS", "yes")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    drop(starting);
    let world = World::new();
    world.host("mkdir a b c");
    world.sync().unwrap();
    let nodes = [c"a", c"b", c"c"].map(|name| world.look(ROOT_ID, name));
    let figures = world.coherence.figures();
    assert_eq!(
        (figures.watched, figures.by_inotify, figures.unwatched),
        (4, 2, 0)
    );
    assert!(nodes[0].attr_timeout > nodes[1].attr_timeout);
    assert!(
        world.fs.warnings()[0].contains("max_user_marks"),
        "{:?}",
        world.fs.warnings()
    );
    assert_eq!(words(&world.after("mkdir b/x")), ["make x Directory"]);
    // Whoever tells of it first.
    let mut moved = words(&world.after("mv b/x a/x"));
    moved.sort();
    assert_eq!(moved, ["in x", "out x"]);
}

#[test]
fn the_guest_may_cache_without_limit_what_is_watched_while_there_is_an_agent() {
    let world = World::alone();
    world.host("mkdir d; echo x > d/f; echo y > d/two; ln d/two d/links");
    let second = Duration::from_secs(1);
    let dir = world.look(ROOT_ID, c"d");
    assert_eq!((dir.entry_timeout, dir.attr_timeout), (second, second));
    assert_eq!(world.sync(), Err(NotCoherent));

    let broken = world.connect();
    world.sync().unwrap();
    let dir = world.look(ROOT_ID, c"d");
    assert!(dir.entry_timeout > 1000 * second && dir.attr_timeout > 1000 * second);
    assert!(dir.attr.local_open && dir.attr.caller_owns);
    let file = world.look(dir.node, c"f");
    assert!(file.entry_timeout > 1000 * second && file.attr_timeout > 1000 * second);
    let nothing = world.look(dir.node, c"nothing");
    assert_eq!(nothing.node, 0);
    assert!(nothing.entry_timeout > 1000 * second);
    // Another name of it may be anywhere.
    let linked = world.look(dir.node, c"links");
    assert!(linked.entry_timeout > 1000 * second);
    assert_eq!(linked.attr_timeout, second);
    assert!(!linked.attr.local_open);

    broken.store(true, Ordering::Relaxed);
    world.host("echo z > d/f");
    assert_eq!(world.sync(), Err(NotCoherent));
    world.lost.recv().unwrap();
    let file = world.look(dir.node, c"f");
    assert_eq!((file.entry_timeout, file.attr_timeout), (second, second));

    // The next one makes the guest forget first.
    world.connect();
    world.sync().unwrap();
    let done: Vec<Action> = world
        .log
        .lock()
        .unwrap()
        .iter()
        .map(|(action, _)| action.clone())
        .collect();
    assert_eq!(done[0], Action::DropCaches);
    assert!(done.contains(&Action::Refresh { node: file.node }), "{done:?}");
    assert!(world.look(dir.node, c"f").attr_timeout > 1000 * second);
    assert_eq!(world.coherence.figures().invalidations, 1);
}

#[test]
fn the_guest_knows_all_names_of_a_directory_that_it_makes_and_is_told_of() {
    let world = World::alone();
    let make = |name| world.fs.mkdir(&ROOT, ROOT_ID, name, 0o755, 0).unwrap();
    assert!(!make(c"before").attr.no_names, "there is no agent yet");
    world.connect();
    world.sync().unwrap();
    // The root has been known for longer, and so has been cached.
    world.look(ROOT_ID, c"before");
    let made = make(c"made");
    assert!(made.attr.no_names && made.attr.local_open);
    // Only whoever makes it knows that there was nothing before.
    assert!(!world.look(ROOT_ID, c"made").attr.no_names);
    assert!(!world.fs.getattr(&ROOT, made.node, None).unwrap().0.no_names);
    // And of more than that, as it comes.
    let told = words(&world.after("echo x > made/f"));
    let (made, rest) = told.split_first().unwrap();
    assert!(made.starts_with("make f"), "{told:?}");
    assert!(
        !rest.is_empty() && rest.iter().all(|word| word.starts_with("touch f ")),
        "{told:?}"
    );
    let world = World::by_inotify();
    assert!(
        !world
            .fs
            .mkdir(&ROOT, ROOT_ID, c"d", 0o755, 0)
            .unwrap()
            .attr
            .no_names
    );
}

#[test]
fn the_agent_gets_into_a_directory_that_the_host_has_removed() {
    let world = World::new();
    world.host("mkdir d; echo x > d/f; echo x > file");
    world.sync().unwrap();
    let dir = world.look(ROOT_ID, c"d");
    let file = world.look(ROOT_ID, c"file");
    world.look(dir.node, c"f");
    world.fs.close_cached();
    assert_eq!(
        words(&world.after("mv d/f g; rmdir d; rm file")),
        ["rename f g", "remove d", "remove file"]
    );
    world.fs.close_cached();

    let stale = Errno(libc::ESTALE);
    let agent = as_agent(0);
    assert_eq!(world.fs.lookup_self(&ROOT, dir.node).unwrap_err(), stale);
    let there = world.fs.lookup_self(&agent, dir.node).unwrap();
    assert_eq!(
        (there.node, there.attr.mode & libc::S_IFMT),
        (dir.node, libc::S_IFDIR)
    );
    assert!(there.entry_timeout.is_zero() && there.attr_timeout.is_zero());
    let (attr, _) = world.fs.getattr(&agent, dir.node, None).unwrap();
    assert_eq!(attr.mode & libc::S_IFMT, libc::S_IFDIR);
    assert_eq!(world.fs.lookup_self(&agent, file.node).unwrap_err(), stale);
    // What it has been counted for is given back like any other.
    world.fs.forget(dir.node, 100);
    assert_eq!(world.fs.lookup_self(&agent, dir.node).unwrap_err(), stale);
}

#[test]
fn what_is_watched_is_closed_without_asking() {
    use crate::wire::FOPEN_NOFLUSH;
    let world = World::new();
    let flags = (libc::O_RDWR | libc::O_CREAT) as u32;
    let create = |world: &World| {
        let (entry, opened) = world
            .fs
            .create(&ROOT, ROOT_ID, c"f", 0o644, flags, 0, false)
            .unwrap();
        let again = world
            .fs
            .open(&ROOT, entry.node, libc::O_WRONLY as u32, false)
            .unwrap();
        [opened, again].map(|opened| opened.flags & FOPEN_NOFLUSH != 0)
    };
    assert_eq!(create(&world), [true; 2]);
    assert_eq!(create(&World::by_inotify()), [false; 2]);
    assert_eq!(create(&World::alone()), [false; 2]);
}

#[test]
fn a_new_file_is_what_it_is_on_the_host_and_nothing_is_done_there() {
    let world = World::new();
    world.after("echo hello > f");
    let host = std::fs::metadata(world.dir.path().join("f")).unwrap();
    use std::os::unix::fs::MetadataExt;
    let entry = world.look(ROOT_ID, c"f");
    assert_eq!(entry.attr.size, 6);
    assert_eq!(
        entry.attr.mtime,
        (host.mtime(), host.mtime_nsec() as u32),
        "not the agent's time"
    );
}

#[test]
fn a_moved_file_is_found_at_its_new_place_without_a_lookup() {
    let world = World::new();
    world.host("mkdir a b; echo one > a/f");
    world.sync().unwrap();
    let (a, b) = (world.look(ROOT_ID, c"a"), world.look(ROOT_ID, c"b"));
    let file = world.look(a.node, c"f");
    let done = world.after("mv a/f b/g");
    assert_eq!(words(&done), ["rename f g"]);
    world.fs.close_cached();
    let (attr, _) = world.fs.getattr(&ROOT, file.node, None).unwrap();
    assert_eq!(attr.size, 4);
    assert_eq!(world.look(b.node, c"g").node, file.node);
}

#[test]
fn what_a_rename_replaces_is_what_the_guest_knew() {
    let world = World::alone();
    world.host("echo old > f");
    let broken = world.connect();
    world.sync().unwrap();
    let old = world.look(ROOT_ID, c"f");
    let root = world.fs.store.get(ROOT_ID).unwrap();
    assert_eq!(world.fs.store.named(ROOT_ID, b"f").unwrap().id, old.node);
    // Not told to the guest, so that its picture is the one from before.
    broken.store(true, Ordering::Relaxed);
    world.host("echo longer > new; mv new f");
    world.lost.recv().unwrap();
    let agent = world.permit(rename(b"new", b"f"));
    let source = world.fs.lookup(&agent, ROOT_ID, c"new").unwrap();
    assert_eq!(source.attr.size, 7, "it is where it came to");
    let target = world.fs.lookup(&agent, ROOT_ID, c"f").unwrap();
    assert_eq!((target.node, target.attr.size), (old.node, 4));
    world
        .fs
        .rename(&agent, ROOT_ID, c"new", ROOT_ID, c"f", 0)
        .unwrap();
    assert_eq!(world.fs.store.named(root.id, b"f").unwrap().id, source.node);
}

#[test]
fn every_rename_is_one_in_the_guest_however_late_it_comes() {
    let world = World::alone();
    let broken = world.connect();
    world.sync().unwrap();
    broken.store(true, Ordering::Relaxed);
    world.host("echo one > new; mv new f");
    world.lost.recv().unwrap();
    // The guest has seen it at its new place already.
    let seen = world.look(ROOT_ID, c"f");
    let agent = world.permit(rename(b"new", b"f"));
    let source = world.fs.lookup(&agent, ROOT_ID, c"new").unwrap();
    let target = world.fs.lookup(&agent, ROOT_ID, c"f").unwrap();
    assert_eq!(target.node, seen.node);
    assert_ne!(source.node, target.node, "Linux would do nothing");
    assert_eq!(source.entry_timeout, Duration::ZERO);
}

#[test]
fn what_the_guest_does_not_know_yet_is_not_moved_in_place_of_what_it_knows() {
    let world = World::alone();
    world.host("echo old > f; echo other > g");
    let broken = world.connect();
    world.sync().unwrap();
    let old = world.look(ROOT_ID, c"f");
    let other = world.look(ROOT_ID, c"g");
    broken.store(true, Ordering::Relaxed);
    world.host("mv f away; echo new > f");
    world.lost.recv().unwrap();

    let rename = |flags| {
        world
            .fs
            .rename(&ROOT, ROOT_ID, c"f", ROOT_ID, c"g", flags)
            .map_err(|Errno(error)| error)
    };
    let exchange_back = || {
        world
            .fs
            .rename(&ROOT, ROOT_ID, c"g", ROOT_ID, c"f", libc::RENAME_EXCHANGE)
    };
    for flags in [0, libc::RENAME_EXCHANGE] {
        assert_eq!(rename(flags), Err(libc::ESTALE));
    }
    assert_eq!(exchange_back(), Err(Errno(libc::ESTALE)));
    world.host("grep -q new f; grep -q other g");

    let new = world.look(ROOT_ID, c"f");
    assert_ne!(new.node, old.node);
    rename(libc::RENAME_EXCHANGE).unwrap();
    exchange_back().unwrap();
    rename(0).unwrap();
    assert_eq!(world.look(ROOT_ID, c"g").node, new.node);
    assert_ne!(other.node, new.node);
    world.host("grep -q new g; grep -q old away");
}

#[test]
fn what_the_guest_has_moved_away_before_it_is_told_is_refreshed_where_it_is() {
    let world = World::new();
    world.host("echo old > f");
    world.sync().unwrap();
    let node = world.look(ROOT_ID, c"f").node;
    let root = world.fs.store.get(ROOT_ID).unwrap();
    let known = world.fs.store.get(node).unwrap();

    let dir = std::fs::File::open(world.dir.path()).unwrap();
    let told = || {
        let event = event::Event {
            mask: libc::FAN_MODIFY,
            at: Some((fanotify::key_of(dir.as_fd()).unwrap(), b"f"[..].into())),
            ..event::Event::default()
        };
        let mut actions = Vec::new();
        let mut translator = translate::Translator::default();
        translator.translate(&world.fs, &mut [event].into(), &mut actions);
        actions
    };
    let failed = world.fs.leaving(&[(&root, c"f", Some(&known))], || {
        assert_eq!(told()[1..], [Action::Refresh { node }]);
        Err::<(), _>(Errno(libc::EIO))
    });
    assert_eq!(failed, Err(Errno(libc::EIO)));
    assert_eq!(told().len(), 1, "it has not been moved");
    world.fs.rename(&ROOT, ROOT_ID, c"f", ROOT_ID, c"g", 0).unwrap();
    world.sync().unwrap();
    assert_eq!(told().len(), 1, "what was before has been told");
}

#[test]
fn what_is_elsewhere_when_the_guest_is_told_of_a_change_is_refreshed() {
    let world = World::new();
    world.host("echo old > f; mkdir d");
    world.sync().unwrap();
    let (file, dir) = (world.look(ROOT_ID, c"f").node, world.look(ROOT_ID, c"d").node);
    let refreshed = |script| {
        let done = world.after_at_once(script);
        world.log.lock().unwrap().clear();
        [file, dir].map(|node| done.contains(&Action::Refresh { node }))
    };
    assert_eq!(refreshed("echo more >> f; chmod 700 d"), [false, false]);
    assert_eq!(refreshed("echo more >> f; mv f g"), [true, false]);
    assert_eq!(refreshed("chmod 750 d; mv d e"), [false, true]);
}

#[test]
fn only_the_node_that_is_refreshed_is_shown_another_time_first() {
    let world = World::new();
    world.host("echo x > f; echo y > other");
    world.sync().unwrap();
    let (file, other) = (world.look(ROOT_ID, c"f"), world.look(ROOT_ID, c"other"));
    let agent = world.permit(Action::Refresh { node: file.node });
    let mtime = |node| world.fs.getattr(&agent, node, None).unwrap().0.mtime;
    assert_eq!(mtime(other.node), other.attr.mtime);
    assert_ne!(mtime(file.node), file.attr.mtime);
    assert_eq!(mtime(file.node), file.attr.mtime);
}

#[test]
fn what_happens_to_a_directory_is_told_by_its_name() {
    let world = World::new();
    world.host("mkdir d");
    world.sync().unwrap();
    world.look(ROOT_ID, c"d");
    assert_eq!(
        words(&world.after("chmod 700 d; chmod 700 .")),
        ["touch d a", "touch . a"]
    );
}

#[test]
fn what_comes_from_or_goes_to_where_the_guest_has_not_been_passes_through_the_staging_directory() {
    let world = World::alone();
    world.host("mkdir known unknown; echo x > unknown/f");
    world.sync().unwrap_err();
    world.connect();
    world.sync().unwrap();
    world.look(ROOT_ID, c"known");
    assert_eq!(words(&world.after("mv unknown/f known/f")), ["in f"]);
    assert_eq!(words(&world.after("mv known/f unknown/g")), ["out f"]);
}

#[test]
fn the_guest_forgets_what_was_in_a_share_that_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let config = PassthroughConfig::with_cache(CachePolicy::Auto);
    let fs = Arc::new(Passthrough::multiple(config));
    let coherence = Coherence::start(&fs, AGENT).unwrap();
    let log = Log::default();
    coherence.connect(Box::new(Guest {
        fs: fs.clone(),
        log: log.clone(),
        broken: Arc::default(),
    }));
    fs.add_share("s0", ShareConfig::new(dir.path())).unwrap();
    assert_eq!(coherence.figures().watched, 1);
    fs.remove_share("s0");
    let (sender, reached) = channel();
    coherence.barrier(Box::new(move |result| sender.send(result).unwrap()));
    reached.recv().unwrap().unwrap();
    assert_eq!(log.lock().unwrap()[0], (Action::DropCaches, 0));
    assert_eq!(coherence.figures().watched, 0);
}

#[test]
fn a_forgotten_directory_is_no_longer_watched() {
    let world = World::new();
    world.host("mkdir d");
    world.sync().unwrap();
    let dir = world.look(ROOT_ID, c"d");
    assert_eq!(world.coherence.figures().watched, 2);
    world.fs.close_cached();
    world.fs.forget(dir.node, 100);
    assert_eq!(world.coherence.figures().watched, 1);
    assert_eq!(words(&world.after("touch d/f")), Vec::<String>::new());
    assert_eq!(world.coherence.figures().dropped, 0, "not even told");
}

#[test]
fn the_agent_may_do_nothing_but_its_actions() {
    let world = World::new();
    world.host("echo x > f");
    world.sync().unwrap();
    let file = world.look(ROOT_ID, c"f");
    for number in [0, 1, 77] {
        let ctx = as_agent(number);
        let refused = Errno(libc::EPERM);
        let fs = &*world.fs;
        assert_eq!(fs.unlink(&ctx, ROOT_ID, c"f"), Err(refused));
        assert_eq!(fs.mkdir(&ctx, ROOT_ID, c"d", 0o755, 0), Err(refused));
        assert_eq!(fs.open(&ctx, file.node, libc::O_RDWR as u32, false), Err(refused));
        assert_eq!(
            fs.setattr(&ctx, file.node, None, &SetAttr::default()),
            Err(refused)
        );
        assert_eq!(fs.link(&ctx, file.node, ROOT_ID, c"g"), Err(refused));
        assert_eq!(fs.rename(&ctx, ROOT_ID, c"f", ROOT_ID, c"g", 0), Err(refused));
    }
    assert!(world.dir.path().join("f").exists());
    assert_eq!(
        world
            .fs
            .lookup(&ROOT, ROOT_ID, &c(STAGING.as_bytes()))
            .map(|entry| entry.node),
        Ok(0),
        "nobody else sees the staging directory"
    );
}

#[test]
fn an_exchange_is_one_action() {
    let world = World::new();
    world.host("echo a > a; echo b > b");
    world.sync().unwrap();
    let root = fanotify::key_of(std::os::fd::AsFd::as_fd(
        &std::fs::File::open(world.dir.path()).unwrap(),
    ))
    .unwrap();
    let event = |from: &[u8], to: &[u8], target: &[u8]| event::Event {
        mask: libc::FAN_RENAME,
        pid: 0,
        at: Some((root.clone(), from.into())),
        to: Some((root.clone(), to.into())),
        target: Some(target.into()),
    };
    let events = [
        event(b"a", b"b", b"1"),
        event(b"b", b"a", b"2"),
        event(b"b", b"c", b"1"),
    ];
    let mut actions = Vec::new();
    translate::Translator::default().translate(&world.fs, &mut events.into(), &mut actions);
    let exchanged: Vec<bool> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Rename { exchange, .. } => Some(*exchange),
            _ => None,
        })
        .collect();
    assert_eq!(exchanged, [true, false]);
}
