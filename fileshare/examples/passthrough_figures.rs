//! What a node costs: memory for each inode the guest knows, and time for each request, without a guest.
//!
//! `cargo run --release -p fileshare --example passthrough_figures -- [DIRECTORY] [FILES]`: makes a tree of so many
//! files (200 000) in a temporary directory there (default: the system's), looks all of it up, prints one JSON object,
//! and removes it.

use std::ffi::CString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fileshare::buffers::memory::{MemoryReply, MemoryRequest};
use fileshare::filesystem::{Context, DirSink, Entry, FileSystem, NodeId};
use fileshare::passthrough::{Passthrough, PassthroughConfig, ShareConfig};
use fileshare::wire::ROOT_ID;

const CTX: Context = Context {
    uid: 0,
    gid: 0,
    pid: 1,
};
const FILES_PER_DIR: usize = 1000;

fn main() {
    let mut args = std::env::args().skip(1);
    let base = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let files: usize = args
        .next()
        .map_or(200_000, |number| number.parse().expect("FILES is a number"));
    let dirs = files.div_ceil(FILES_PER_DIR);
    let tree = tempfile::tempdir_in(base).expect("a temporary directory");
    for dir in 0..dirs {
        std::fs::create_dir(tree.path().join(format!("dir{dir}"))).expect("mkdir");
        for file in 0..FILES_PER_DIR {
            std::fs::File::create(tree.path().join(format!("dir{dir}/file-{file}.txt"))).expect("create");
        }
    }
    let config = PassthroughConfig {
        descriptors: Some(20_000),
        ..PassthroughConfig::default()
    };
    let fs = Passthrough::single(ShareConfig::new(tree.path()), config).expect("share");

    let before = resident();
    let start = Instant::now();
    let mut nodes: Vec<(NodeId, CString, NodeId)> = Vec::with_capacity(files);
    for dir in 0..dirs {
        let parent = fs
            .lookup(&CTX, ROOT_ID, &name(&format!("dir{dir}")))
            .expect("lookup")
            .node;
        for file in 0..FILES_PER_DIR {
            let file = name(&format!("file-{file}.txt"));
            let node = fs.lookup(&CTX, parent, &file).expect("lookup").node;
            if nodes.len() < 1000 {
                nodes.push((parent, file, node));
            }
        }
    }
    let count = fs.node_count();
    let cold = start.elapsed() / count as u32;
    let bytes = (resident() - before) as f64 / count as f64;

    let every = |each: &mut dyn FnMut(&(NodeId, CString, NodeId))| {
        time(nodes.len(), || nodes.iter().for_each(&mut *each))
    };
    // Once before, so that their descriptors are in the cache; fewer than it holds.
    let reopen = every(&mut |(_, _, node)| assert!(fs.getattr(&CTX, *node, None).is_ok()));
    let getattr = every(&mut |(_, _, node)| assert!(fs.getattr(&CTX, *node, None).is_ok()));
    let lookup = every(&mut |(parent, file, _)| assert!(fs.lookup(&CTX, *parent, file).is_ok()));
    let negative = every(&mut |(parent, _, _)| assert!(fs.lookup(&CTX, *parent, c"none").is_err()));
    let open = every(&mut |(_, _, node)| {
        let opened = fs.open(&CTX, *node, libc::O_RDONLY as u32, false).expect("open");
        fs.release(&CTX, *node, opened.handle, None).expect("release");
    });
    let made: Vec<CString> = (0..1000).map(|at| name(&format!("new{at}"))).collect();
    let create = time(made.len(), || {
        for file in &made {
            let (entry, opened) = fs
                .create(&CTX, ROOT_ID, file, 0o644, libc::O_RDWR as u32, 0, false)
                .expect("create");
            fs.release(&CTX, entry.node, opened.handle, None)
                .expect("release");
        }
    });
    let rename = time(made.len(), || {
        for file in &made {
            let to = CString::new([file.to_bytes(), b"x"].concat()).expect("a name");
            fs.rename(&CTX, ROOT_ID, file, ROOT_ID, &to, 0).expect("rename");
        }
    });
    let unlink = time(made.len(), || {
        for file in &made {
            let file = CString::new([file.to_bytes(), b"x"].concat()).expect("a name");
            fs.unlink(&CTX, ROOT_ID, &file).expect("unlink");
        }
    });
    let parent = nodes[0].0;
    let list = time(FILES_PER_DIR, || read_dir(&fs, parent, false));
    let plus = time(FILES_PER_DIR, || read_dir(&fs, parent, true));
    let (entry, opened) = fs
        .create(&CTX, ROOT_ID, c"data", 0o644, libc::O_RDWR as u32, 0, false)
        .expect("create");
    let mut block = vec![7; 4096];
    let write = time(10_000, || {
        for at in 0..10_000 {
            let mut from = MemoryRequest::new(&block);
            let offset = at % 256 * 4096;
            fs.write(
                &CTX,
                entry.node,
                opened.handle,
                offset,
                4096,
                &mut from,
                false,
                false,
                0,
            )
            .expect("write");
        }
    });
    let read = time(10_000, || {
        for at in 0..10_000 {
            let mut into = MemoryReply::new(&mut block);
            fs.read(&CTX, entry.node, opened.handle, at % 256 * 4096, 4096, &mut into)
                .expect("read");
        }
    });
    println!(
        "{{\"nodes\":{count},\"bytes_per_node\":{bytes:.0},\"nanoseconds\":{{\"lookup_first\":{},\"getattr_reopening\":{reopen},\
         \"getattr\":{getattr},\"lookup\":{lookup},\"lookup_negative\":{negative},\"open_release\":{open},\
         \"create_release\":{create},\"rename\":{rename},\"unlink\":{unlink},\"readdir_entry\":{list},\
         \"readdirplus_entry\":{plus},\"write_4k\":{write},\"read_4k\":{read}}}}}",
        cold.as_nanos()
    );
}

fn name(name: &str) -> CString {
    CString::new(name).expect("a name")
}

/// Nanoseconds for each of `count` steps; the best of three runs would not do for those that cannot be repeated.
fn time(count: usize, steps: impl FnOnce()) -> u128 {
    let start = Instant::now();
    steps();
    let elapsed: Duration = start.elapsed();
    elapsed.as_nanos() / count as u128
}

/// Bytes of memory this process uses.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    let pages: usize = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("a number");
    pages * 4096
}

/// Takes all there is and keeps nothing.
struct Everything {
    plus: bool,
    last: u64,
    looked_up: Vec<NodeId>,
}

impl DirSink for Everything {
    fn plus(&self) -> bool {
        self.plus
    }

    fn add(&mut self, _ino: u64, next: u64, _kind: u8, _name: &[u8]) -> bool {
        self.last = next;
        true
    }

    fn add_plus(&mut self, entry: Option<&Entry>, _ino: u64, next: u64, _kind: u8, _name: &[u8]) -> bool {
        self.looked_up.extend(entry.map(|entry| entry.node));
        self.last = next;
        true
    }
}

fn read_dir(fs: &Passthrough, node: NodeId, plus: bool) {
    let mut sink = Everything {
        plus,
        last: 0,
        looked_up: Vec::new(),
    };
    let handle = fs.opendir(&CTX, node, 0).expect("opendir").handle;
    fs.readdir(&CTX, node, handle, 0, &mut sink).expect("readdir");
    fs.releasedir(&CTX, node, handle).expect("releasedir");
    for node in sink.looked_up {
        fs.forget(node, 1);
    }
}
