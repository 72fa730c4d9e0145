//! The device with the real server and shares that come and go, seen from a driver that sends FUSE requests.

use std::fs;
use std::sync::mpsc;

use fileshare::passthrough::coherence::{Action, Agent, Numbered};
use fileshare::testing::request_bytes;
use fileshare::wire::{CreateIn, InitIn, InitInShort, Opcode, OpenIn, ROOT_ID, ReadIn, Wire};
use vmm::event_loop::EventLoop;
use vmm::virtio::test_driver::{TestMachine, TestQueue};

use super::*;

struct Guest {
    device: Box<dyn VirtioDevice>,
    requests: TestQueue,
    unique: u64,
    _queues: Vec<TestQueue>,
    _event_loop: EventLoop,
}

impl Guest {
    fn new(mut device: Box<dyn VirtioDevice>) -> Guest {
        let machine = TestMachine::new();
        let event_loop = EventLoop::spawn("test").unwrap();
        let mut queues: Vec<TestQueue> = (0..)
            .zip(device.queue_max_sizes())
            .map(|(index, size)| machine.queue(index, *size))
            .collect();
        let ends = queues
            .iter_mut()
            .map(|queue| Some(queue.device_queue_with(false)))
            .collect();
        device.activate(machine.activation(ends, 0, &event_loop)).unwrap();
        let mut guest = Guest {
            device,
            requests: queues.remove(1),
            unique: 0,
            _queues: queues,
            _event_loop: event_loop,
        };
        let init = InitIn {
            start: InitInShort {
                major: 7,
                minor: 41,
                ..InitInShort::default()
            },
            ..InitIn::default()
        };
        guest.call(Opcode::Init, 0, &init.to_vec()).unwrap();
        guest
    }

    /// The answer's body, or the error.
    fn call(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.unique += 2;
        let request = request_bytes(opcode as u32, self.unique, node, body);
        let head = self.requests.offer(&[&request], &[16, 4096]);
        self.requests.kick();
        let (used, length) = self.requests.wait_used();
        assert_eq!(used, head);
        let header = self.requests.buffer(head, 1);
        match i32::from_le_bytes(header[4..8].try_into().unwrap()) {
            0 => Ok(self.requests.buffer(head, 2)[..length as usize - 16].to_vec()),
            error => Err(-error),
        }
    }

    fn node(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let entry = self.call(Opcode::Lookup, parent, format!("{name}\0").as_bytes())?;
        Ok(u64::from_le_bytes(entry[..8].try_into().unwrap()))
    }

    fn read(&mut self, share: &str, name: &str) -> Result<Vec<u8>, i32> {
        let share = self.node(ROOT_ID, share)?;
        let file = self.node(share, name)?;
        let opened = self.call(Opcode::Open, file, &OpenIn::default().to_vec())?;
        let read = ReadIn {
            fh: u64::from_le_bytes(opened[..8].try_into().unwrap()),
            size: 100,
            ..ReadIn::default()
        };
        self.call(Opcode::Read, file, &read.to_vec())
    }

    fn create(&mut self, share: &str, name: &str) -> Result<(), i32> {
        let share = self.node(ROOT_ID, share)?;
        let arg = CreateIn {
            flags: libc::O_RDWR as u32,
            mode: 0o100_644,
            ..CreateIn::default()
        };
        let body = [arg.to_vec(), format!("{name}\0").into_bytes()].concat();
        self.call(Opcode::Create, share, &body).map(drop)
    }
}

/// Of each of the file server's threads, whether it is confined (which does not go without this flag).
fn threads() -> Vec<bool> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    tasks
        .filter_map(|task| status(task.unwrap()))
        .filter(|status| status.starts_with("Name:\tfs"))
        .map(|status| status.contains("NoNewPrivs:\t1"))
        .collect()
}

#[test]
fn the_threads_are_confined_to_the_shares_of_the_moment() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    for dir in &dirs {
        fs::write(dir.path().join("file"), "contents").unwrap();
    }
    let tree = Tree::new();
    let add =
        |at: usize, read_only| tree.add(&format!("s{at}"), dirs[at].path().into(), read_only, Vec::new());
    add(0, false).unwrap();
    let mut guest = Guest::new(tree.device(2).unwrap());
    assert_eq!(guest.read("s0", "file").unwrap(), b"contents");
    guest.create("s0", "new").unwrap();
    assert!(!threads().is_empty());
    assert!(threads().iter().all(|confined| *confined == can_confine()));

    add(1, false).unwrap();
    add(2, true).unwrap();
    for share in ["s0", "s1", "s2"] {
        assert_eq!(guest.read(share, "file").unwrap(), b"contents", "{share}");
    }
    guest.create("s1", "new").unwrap();
    assert_eq!(guest.create("s2", "new"), Err(libc::EROFS));
    assert!(dirs[1].path().join("new").exists());

    // One that has got another name goes on; what is not there is no obstacle to others.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(dirs[0].path(), elsewhere.path().join("moved")).unwrap();
    tree.remove("s1");
    assert_eq!(guest.read("s1", "file"), Err(libc::ENOENT));
    assert_eq!(guest.read("s0", "file").unwrap(), b"contents");
    assert_eq!(
        add(0, false).unwrap_err().kind(),
        io::ErrorKind::NotFound,
        "it is not there under its name"
    );
    assert_eq!(guest.read("s2", "file").unwrap(), b"contents");
    add(1, false).unwrap();
    assert_eq!(guest.read("s1", "file").unwrap(), b"contents");
    assert!(threads().iter().all(|confined| *confined == can_confine()));
    guest.device.deactivate();
}

/// An agent that does as if it did what it is told.
struct Recorder(mpsc::Sender<Action>);

impl Agent for Recorder {
    fn perform(&mut self, batch: &[Numbered]) -> io::Result<Vec<i32>> {
        for numbered in batch {
            self.0.send(numbered.action.clone()).unwrap();
        }
        Ok(vec![0; batch.len()])
    }
}

#[tokio::test]
async fn the_agent_is_told_of_host_changes_where_the_guest_has_looked() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["seen", "other"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("file"), "contents").unwrap();
    }
    let tree = Tree::new();
    let Ok(replay) = tree.changes().replay() else {
        return;
    };
    tree.add("s0", dir.path().into(), false, Vec::new()).unwrap();
    let mut guest = Guest::new(tree.device(2).unwrap());
    let (sender, told) = mpsc::channel();
    replay.connect(Box::new(Recorder(sender)));
    tree.changes().reached().await.unwrap();
    let share = guest.node(ROOT_ID, "s0").unwrap();
    let seen = guest.node(share, "seen").unwrap();
    guest.node(seen, "file").unwrap();
    // What the guest does itself it need not be told.
    guest.create("s0", "own").unwrap();
    // By another process: what this one does, it does for the guest.
    let script = "echo more > seen/file; echo more > other/file";
    let mut shell = std::process::Command::new("sh");
    let status = shell.args(["-c", script]).current_dir(dir.path()).status();
    assert!(status.unwrap().success());
    tree.changes().reached().await.unwrap();
    let figures = tree.changes().report().unwrap();
    assert!(figures.coherent && figures.watched == 2, "{figures:?}");
    guest.device.deactivate();
    let touched: Vec<_> = told
        .try_iter()
        .filter_map(|action| match action {
            Action::Touch { parent, name, .. } => Some((parent, name)),
            Action::Make { .. } | Action::Remove { .. } | Action::Rename { .. } => panic!("{action:?}"),
            Action::Refresh { .. } | Action::Confirm { .. } | Action::DropCaches => None,
        })
        .collect();
    assert!(!touched.is_empty());
    for (parent, name) in touched {
        assert_eq!((parent, name.as_deref()), (seen, Some(&b"file"[..])));
    }
}
