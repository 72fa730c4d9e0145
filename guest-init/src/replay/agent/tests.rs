//! Actions on an ordinary directory, and what watchers see of them.

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use protocol::replay::STAGING;
use rustix::fs::CWD;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tempfile::TempDir;

use super::*;
use crate::lock::lock;

/// Directories whose node ids are made up.
pub(crate) struct Tree {
    root: TempDir,
    nodes: Arc<Mutex<BTreeMap<u64, PathBuf>>>,
    seen: Arc<Mutex<Seen>>,
}

/// What was asked of the machine.
#[derive(Debug, Default)]
struct Seen {
    carried: Vec<u32>,
    opened: Vec<u64>,
    dropped: u32,
}

/// The machine as it is for the agent: requests carry nothing, and a node id is looked up in a table.
#[derive(Clone)]
pub(crate) struct TreeSystem {
    root: PathBuf,
    nodes: Arc<Mutex<BTreeMap<u64, PathBuf>>>,
    seen: Arc<Mutex<Seen>>,
}

impl Tree {
    /// The root's node id.
    pub(crate) const ROOT: u64 = 1;
    /// Opening this one breaks the agent down.
    pub(crate) const PANIC: u64 = u64::MAX;

    pub(crate) fn new() -> Tree {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(STAGING)).unwrap();
        let nodes = BTreeMap::from([(Tree::ROOT, root.path().to_owned())]);
        Tree {
            root,
            nodes: Arc::new(Mutex::new(nodes)),
            seen: Arc::default(),
        }
    }

    pub(crate) fn system(&self) -> TreeSystem {
        TreeSystem {
            root: self.root.path().to_owned(),
            nodes: self.nodes.clone(),
            seen: self.seen.clone(),
        }
    }

    fn agent(&self) -> Agent {
        Agent::new(Box::new(self.system()))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Gives what is at `name` a node id.
    fn node(&self, node: u64, name: &str) -> u64 {
        lock(&self.nodes).insert(node, self.path(name));
        node
    }

    fn directory(&self, node: u64, name: &str) -> u64 {
        fs::create_dir(self.path(name)).unwrap();
        self.node(node, name)
    }
}

impl System for TreeSystem {
    fn carry(&self, number: u32) -> Result<(), Errno> {
        lock(&self.seen).carried.push(number);
        Ok(())
    }

    fn open(&self, node: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        assert_ne!(node, Tree::PANIC, "an agent that breaks down");
        lock(&self.seen).opened.push(node);
        let path = lock(&self.nodes).get(&node).cloned().ok_or(Errno::STALE)?;
        openat(CWD, path, flags | OFlags::NOFOLLOW, Mode::empty())
    }

    fn staging(&self) -> Result<OwnedFd, Errno> {
        openat(CWD, self.root.join(STAGING), PATH, Mode::empty())
    }

    fn drop_caches(&self) -> Result<(), Errno> {
        lock(&self.seen).dropped += 1;
        Ok(())
    }
}

/// What watchers see: the events' names, with the name of the file where it is not the watched one itself.
struct Watch(OwnedFd);

impl Watch {
    fn new(paths: &[&Path]) -> Watch {
        let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        for path in paths {
            inotify::add_watch(&watch, *path, WatchFlags::ALL_EVENTS).unwrap();
        }
        Watch(watch)
    }

    fn raw(&self) -> Vec<(ReadFlags, String, u32)> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().unwrap_or_default();
                    events.push((event.events(), name.to_str().unwrap().to_owned(), event.cookie()));
                }
                Err(Errno::WOULDBLOCK) => return events,
                Err(e) => panic!("{e}"),
            }
        }
    }

    fn events(&self) -> Vec<(ReadFlags, String)> {
        let raw = self.raw().into_iter();
        raw.map(|(events, name, _)| (events, name)).collect()
    }
}

fn event(events: ReadFlags, name: &str) -> (ReadFlags, String) {
    (events, name.to_owned())
}

fn perform(agent: &mut Agent, actions: impl IntoIterator<Item = Action>) -> Vec<i32> {
    let actions: Vec<Numbered> = (1..)
        .zip(actions)
        .map(|(number, action)| Numbered { number, action })
        .collect();
    agent.perform_all(&actions, || true).unwrap()
}

fn make(parent: u64, name: &str, what: What) -> Action {
    Action::Make {
        parent,
        name: name.into(),
        what,
    }
}

/// An action that makes a file in the root.
pub(crate) fn make_file(name: &str) -> Action {
    make(Tree::ROOT, name, What::File)
}

fn remove(parent: u64, name: &str, directory: bool) -> Action {
    Action::Remove {
        parent,
        name: name.into(),
        directory,
    }
}

fn rename(from: u64, name: &str, to: u64, new_name: &str, exchange: bool) -> Action {
    Action::Rename {
        from,
        name: name.into(),
        to,
        new_name: new_name.into(),
        exchange,
    }
}

fn touch(parent: u64, name: Option<&str>, [open, modified, attributes]: [bool; 3]) -> Action {
    Action::Touch {
        parent,
        name: name.map(Name::from),
        open,
        modified,
        attributes,
    }
}

#[test]
fn everything_that_can_be_made_is_seen_as_made() {
    let tree = Tree::new();
    let mut agent = tree.agent();
    let watch = Watch::new(&[tree.root.path()]);
    let target = Name::from("../nowhere");
    let results = perform(
        &mut agent,
        [
            make(Tree::ROOT, "file", What::File),
            make(Tree::ROOT, "directory", What::Directory),
            make(Tree::ROOT, "fifo", What::Fifo),
            make(Tree::ROOT, "socket", What::Socket),
            make(Tree::ROOT, "link", What::Symlink { target }),
        ],
    );
    assert_eq!(results, [0; 5]);
    let created = ReadFlags::CREATE;
    assert_eq!(
        watch.events(),
        [
            event(created, "file"),
            event(created | ReadFlags::ISDIR, "directory"),
            event(created, "fifo"),
            event(created, "socket"),
            event(created, "link"),
        ]
    );
    let kind = |name: &str| fs::symlink_metadata(tree.path(name)).unwrap().file_type();
    assert!(kind("file").is_file() && kind("directory").is_dir());
    assert!(kind("fifo").is_fifo() && kind("socket").is_socket());
    assert_eq!(fs::read_link(tree.path("link")).unwrap(), Path::new("../nowhere"));
    assert_eq!(lock(&tree.seen).carried, [1, 2, 3, 4, 5]);
    assert_eq!(lock(&tree.seen).opened, [Tree::ROOT]);
}

#[test]
fn a_name_that_is_taken_is_confirmed_and_told() {
    let tree = Tree::new();
    fs::write(tree.path("taken"), "").unwrap();
    let mut agent = tree.agent();
    let exists = Errno::EXIST.raw_os_error();
    let confirm = Action::Confirm {
        parent: Tree::ROOT,
        name: "taken".into(),
    };
    assert_eq!(perform(&mut agent, [make_file("taken"), confirm]), [exists, 0]);
}

#[test]
fn a_file_that_is_written_to_is_seen_so() {
    let tree = Tree::new();
    fs::write(tree.path("file"), "contents").unwrap();
    let watch = Watch::new(&[tree.root.path(), &tree.path("file")]);
    let mut agent = tree.agent();
    let file = Some("file");
    // Each event comes twice: to who watches the directory, and to who watches the file.
    let both = |events: &[ReadFlags]| -> Vec<_> {
        let pairs = events.iter().map(|&flag| [event(flag, "file"), event(flag, "")]);
        pairs.flatten().collect()
    };
    for (what, seen) in [
        (
            [true, true, false],
            &[ReadFlags::OPEN, ReadFlags::MODIFY, ReadFlags::CLOSE_WRITE][..],
        ),
        ([true, false, false], &[ReadFlags::OPEN, ReadFlags::CLOSE_WRITE]),
        ([false, true, false], &[ReadFlags::MODIFY]),
        ([false, false, true], &[ReadFlags::ATTRIB]),
        (
            [true, true, true],
            &[
                ReadFlags::OPEN,
                ReadFlags::MODIFY,
                ReadFlags::ATTRIB,
                ReadFlags::CLOSE_WRITE,
            ],
        ),
        ([false, false, false], &[]),
    ] {
        assert_eq!(perform(&mut agent, [touch(Tree::ROOT, file, what)]), [0]);
        assert_eq!(watch.events(), both(seen), "{what:?}");
    }
    let touched = fs::metadata(tree.path("file")).unwrap();
    assert_eq!((touched.mtime(), touched.atime()), (1, 1));
    assert_eq!(fs::read(tree.path("file")).unwrap(), b"contents");
}

#[test]
fn what_cannot_be_opened_for_writing_is_touched_all_the_same() {
    let tree = Tree::new();
    tree.directory(2, "directory");
    std::os::unix::fs::symlink("nowhere", tree.path("link")).unwrap();
    let mut agent = tree.agent();
    assert_eq!(perform(&mut agent, [make(Tree::ROOT, "fifo", What::Fifo)]), [0]);
    let watch = Watch::new(&[tree.root.path()]);
    for (name, kind) in [
        ("directory", ReadFlags::ISDIR),
        // The link, not what it leads to.
        ("link", ReadFlags::empty()),
        // Nobody reads from it.
        ("fifo", ReadFlags::empty()),
    ] {
        let action = touch(Tree::ROOT, Some(name), [true, true, true]);
        assert_eq!(perform(&mut agent, [action]), [0], "{name}");
        assert_eq!(
            watch.events(),
            [
                event(ReadFlags::MODIFY | kind, name),
                event(ReadFlags::ATTRIB | kind, name)
            ]
        );
    }
}

#[test]
fn without_a_name_the_node_itself_is_touched() {
    let tree = Tree::new();
    let directory = tree.directory(2, "directory");
    fs::write(tree.path("file"), "").unwrap();
    let file = tree.node(3, "file");
    let watch = Watch::new(&[&tree.path("directory"), &tree.path("file")]);
    let mut agent = tree.agent();
    assert_eq!(
        perform(&mut agent, [touch(directory, None, [true, false, true])]),
        [0]
    );
    assert_eq!(watch.events(), [event(ReadFlags::ATTRIB | ReadFlags::ISDIR, "")]);
    assert_eq!(perform(&mut agent, [touch(file, None, [true, true, false])]), [0]);
    let seen = [ReadFlags::OPEN, ReadFlags::MODIFY, ReadFlags::CLOSE_WRITE];
    assert_eq!(watch.events(), seen.map(|flag| event(flag, "")));
}

#[test]
fn what_is_removed_is_seen_as_removed_at_once() {
    let tree = Tree::new();
    let directory = tree.directory(2, "directory");
    fs::write(tree.path("directory/file"), "").unwrap();
    let (above, inside) = (
        Watch::new(&[tree.root.path()]),
        Watch::new(&[&tree.path("directory")]),
    );
    let mut agent = tree.agent();
    let results = perform(
        &mut agent,
        [
            remove(Tree::ROOT, "directory", true),
            remove(directory, "file", false),
            remove(Tree::ROOT, "directory", true),
        ],
    );
    assert_eq!(results, [Errno::NOTEMPTY.raw_os_error(), 0, 0]);
    assert_eq!(
        above.events(),
        [event(ReadFlags::DELETE | ReadFlags::ISDIR, "directory")]
    );
    // The agent had the directory open, and does not keep its watchers from learning that it is gone.
    assert_eq!(
        inside.events(),
        [
            event(ReadFlags::DELETE, "file"),
            event(ReadFlags::DELETE_SELF, ""),
            event(ReadFlags::IGNORED, ""),
        ]
    );
}

#[test]
fn a_directory_that_the_guest_removed_itself_is_let_go_at_the_next_batch() {
    let tree = Tree::new();
    let directory = tree.directory(2, "directory");
    let mut agent = tree.agent();
    perform(
        &mut agent,
        [make(directory, "x", What::File), remove(directory, "x", false)],
    );
    let watch = Watch::new(&[&tree.path("directory")]);
    fs::remove_dir(tree.path("directory")).unwrap();
    assert_eq!(watch.events(), []);
    perform(&mut agent, []);
    assert_eq!(
        watch.events(),
        [event(ReadFlags::DELETE_SELF, ""), event(ReadFlags::IGNORED, "")]
    );
}

#[test]
fn a_rename_is_one_event_in_two_parts() {
    let tree = Tree::new();
    let (one, other) = (tree.directory(2, "one"), tree.directory(3, "other"));
    fs::write(tree.path("one/a"), "a").unwrap();
    let watch = Watch::new(&[&tree.path("one"), &tree.path("other")]);
    let mut agent = tree.agent();
    assert_eq!(perform(&mut agent, [rename(one, "a", other, "b", false)]), [0]);
    let [(from, a, cookie), (to, b, same)] = &watch.raw()[..] else {
        panic!("not two events")
    };
    assert_eq!((*from, *to), (ReadFlags::MOVED_FROM, ReadFlags::MOVED_TO));
    assert_eq!((&a[..], &b[..]), ("a", "b"));
    assert!(cookie == same && *cookie != 0);
}

#[test]
fn a_rename_over_a_file_and_an_exchange() {
    let tree = Tree::new();
    for name in ["new", "old", "third"] {
        fs::write(tree.path(name), name).unwrap();
    }
    let watch = Watch::new(&[tree.root.path(), &tree.path("old")]);
    let mut agent = tree.agent();
    let root = Tree::ROOT;
    let results = perform(
        &mut agent,
        [
            rename(root, "new", root, "old", false),
            rename(root, "old", root, "third", true),
        ],
    );
    assert_eq!(results, [0, 0]);
    let (from, to) = (ReadFlags::MOVED_FROM, ReadFlags::MOVED_TO);
    assert_eq!(
        watch.events(),
        [
            event(from, "new"),
            event(to, "old"),
            event(ReadFlags::ATTRIB, ""),
            event(ReadFlags::DELETE_SELF, ""),
            event(ReadFlags::IGNORED, ""),
            event(from, "old"),
            event(to, "third"),
            event(from, "third"),
            event(to, "old"),
        ]
    );
    assert_eq!(fs::read(tree.path("third")).unwrap(), b"new");
    assert_eq!(fs::read(tree.path("old")).unwrap(), b"third");
}

#[test]
fn what_comes_from_elsewhere_is_renamed_out_of_the_staging_directory() {
    let tree = Tree::new();
    fs::write(tree.path(STAGING).join("7"), "").unwrap();
    let watch = Watch::new(&[tree.root.path()]);
    let mut agent = tree.agent();
    let results = perform(
        &mut agent,
        [
            rename(STAGING_NODE, "7", Tree::ROOT, "came", false),
            rename(Tree::ROOT, "came", STAGING_NODE, "8", false),
        ],
    );
    assert_eq!(results, [0, 0]);
    assert_eq!(
        watch.events(),
        [
            event(ReadFlags::MOVED_TO, "came"),
            event(ReadFlags::MOVED_FROM, "came")
        ]
    );
    assert_eq!(lock(&tree.seen).opened, [Tree::ROOT]);
}

#[test]
fn refreshing_and_dropping_caches_is_seen_by_nobody() {
    let tree = Tree::new();
    fs::write(tree.path("file"), "").unwrap();
    let file = tree.node(2, "file");
    let watch = Watch::new(&[tree.root.path(), &tree.path("file")]);
    let mut agent = tree.agent();
    let actions = [
        make_file("a"),
        Action::Refresh { node: file },
        Action::DropCaches,
        make_file("b"),
    ];
    assert_eq!(perform(&mut agent, actions), [0; 4]);
    assert_eq!(
        watch.events(),
        [event(ReadFlags::CREATE, "a"), event(ReadFlags::CREATE, "b")]
    );
    let seen = lock(&tree.seen);
    assert_eq!(seen.dropped, 1);
    // The root a second time, because the first was let go.
    assert_eq!(seen.opened, [Tree::ROOT, file, Tree::ROOT]);
}

#[test]
fn a_node_nobody_knows_is_a_result_like_others() {
    let tree = Tree::new();
    let mut agent = tree.agent();
    let results = perform(
        &mut agent,
        [
            Action::Refresh { node: 9 },
            make(9, "a", What::File),
            rename(Tree::ROOT, "a", 9, "b", false),
            touch(9, None, [true, true, true]),
            make_file("a"),
        ],
    );
    let stale = Errno::STALE.raw_os_error();
    assert_eq!(results, [stale, stale, stale, stale, 0]);
}

#[test]
fn what_makes_no_sense_does_not_come_to_a_system_call() {
    let tree = Tree::new();
    fs::write(tree.path("file"), "").unwrap();
    let mut agent = tree.agent();
    let invalid = Errno::INVAL.raw_os_error();
    let root = Tree::ROOT;
    for name in ["", ".", "..", "a/b", "/", "a\0", &"x".repeat(256)] {
        let actions = [
            make(root, name, What::File),
            remove(root, name, false),
            rename(root, name, root, "new", false),
            rename(root, "file", root, name, false),
            touch(root, Some(name), [true; 3]),
        ];
        assert_eq!(perform(&mut agent, actions), [invalid; 5], "{name:?}");
    }
    for target in ["", "a\0", &"x".repeat(4096)] {
        let target = target.into();
        let action = make(root, "link", What::Symlink { target });
        assert_eq!(perform(&mut agent, [action]), [invalid]);
    }
    for number in [0, LARGEST_NUMBER + 1, u32::MAX] {
        let action = make_file("made");
        let results = agent.perform_all(&[Numbered { number, action }], || true);
        assert_eq!(results, Some(vec![invalid]));
    }
    let seen = lock(&tree.seen);
    assert_eq!((&seen.carried[..], &seen.opened[..]), (&[][..], &[][..]));
    let left: Vec<_> = fs::read_dir(tree.root.path()).unwrap().collect();
    assert_eq!(left.len(), 2);
}

#[test]
fn a_name_may_be_any_bytes() {
    use std::os::unix::ffi::OsStrExt;

    let tree = Tree::new();
    let mut agent = tree.agent();
    let name = Name::new(*b"\xff\n\\");
    let action = Action::Make {
        parent: Tree::ROOT,
        name: name.clone(),
        what: What::File,
    };
    assert_eq!(perform(&mut agent, [action]), [0]);
    let path = tree
        .root
        .path()
        .join(std::ffi::OsStr::from_bytes(name.as_bytes()));
    assert!(path.exists());
}

#[test]
fn a_batch_nobody_waits_for_ends_before_the_next_action() {
    let tree = Tree::new();
    let mut agent = tree.agent();
    let actions = ["a", "b", "c"].map(|name| Numbered {
        number: 1,
        action: make_file(name),
    });
    let left = std::cell::Cell::new(2);
    let wanted = || left.replace(left.get() - 1) > 0;
    assert_eq!(agent.perform_all(&actions, wanted), None);
    assert!(tree.path("b").exists() && !tree.path("c").exists());
}

#[test]
fn nothing_is_kept_for_longer_than_a_rest() {
    let tree = Tree::new();
    let mut agent = tree.agent();
    assert!(agent.is_idle());
    perform(&mut agent, [make_file("a")]);
    assert!(!agent.is_idle());
    agent.rest();
    assert!(agent.is_idle());
}
