//! Reading directories.

use std::collections::{BTreeMap, BTreeSet};

use super::support::*;
use crate::filesystem::FileSystem;
use crate::passthrough::{CachePolicy, Passthrough, PassthroughConfig, ShareConfig};
use crate::wire::{FOPEN_CACHE_DIR, ROOT_ID};

#[test]
fn entries_come_once_each_however_they_are_asked_for() {
    let world = World::new();
    for at in 0..500 {
        std::fs::write(world.host(format!("file{at}")), "").unwrap();
    }
    std::fs::create_dir(world.host("dir")).unwrap();
    let whole = world.entries(ROOT_ID, usize::MAX);
    assert_eq!(whole.len(), 503, "with the dots");
    for at_once in [1, 7, 400] {
        assert_eq!(world.entries(ROOT_ID, at_once), whole);
    }
    let dots: Vec<_> = whole
        .iter()
        .filter(|entry| entry.name.starts_with(b"."))
        .collect();
    let own = world.attr(&ROOT, ROOT_ID).ino;
    assert!(
        dots.iter().all(|dot| dot.ino == own && dot.kind == libc::DT_DIR),
        "nothing above the root shows"
    );
    let dir = world.walk("dir").unwrap();
    let listed = whole.iter().find(|entry| entry.name == b"dir").unwrap();
    assert_eq!((listed.ino, listed.kind), (dir.attr.ino, libc::DT_DIR));
    let inner = world.entries(dir.node, 10);
    assert_eq!(inner.iter().find(|entry| entry.name == b"..").unwrap().ino, own);
}

#[test]
fn any_offset_that_was_handed_out_continues_there() {
    let world = World::new();
    for at in 0..300 {
        std::fs::write(world.host(format!("file{at}")), "").unwrap();
    }
    let whole = world.entries(ROOT_ID, usize::MAX);
    let handle = world.fs.opendir(&ROOT, ROOT_ID, 0).unwrap().handle;
    for handle in [handle, 0] {
        for from in [250, 3, 100, 0, 299, 100] {
            let mut sink = Sink {
                room: 5,
                ..Sink::default()
            };
            world
                .fs
                .readdir(&ROOT, ROOT_ID, handle, whole[from].next, &mut sink)
                .unwrap();
            let expected = &whole[from + 1..(from + 6).min(whole.len())];
            assert_eq!(sink.entries, expected);
        }
    }
    let nonsense = world
        .fs
        .readdir(&ROOT, ROOT_ID, handle, u64::MAX, &mut Sink::default());
    assert_eq!(nonsense.unwrap_err(), Errno(libc::EINVAL));
}

#[test]
fn removing_while_reading_leaves_nothing_out() {
    let world = World::new();
    let names: BTreeSet<String> = (0..2000).map(|at| format!("file{at}")).collect();
    for at in &names {
        std::fs::write(world.host(at), "").unwrap();
    }
    // As rm -r does it.
    let handle = world.fs.opendir(&ROOT, ROOT_ID, 0).unwrap().handle;
    let (mut offset, mut seen) = (0, BTreeSet::new());
    loop {
        let mut sink = Sink {
            room: 100,
            ..Sink::default()
        };
        world
            .fs
            .readdir(&ROOT, ROOT_ID, handle, offset, &mut sink)
            .unwrap();
        let Some(last) = sink.entries.last() else { break };
        offset = last.next;
        for entry in sink.entries {
            let file = String::from_utf8(entry.name).unwrap();
            if file.starts_with("file") {
                world.fs.unlink(&ROOT, ROOT_ID, &name(&file)).unwrap();
                seen.insert(file);
            }
        }
    }
    assert_eq!(seen, names);
    assert_eq!(world.list(ROOT_ID), [""; 0]);
}

#[test]
fn entries_with_attributes_are_lookups() {
    let world = World::new();
    for at in ["a", "b", "c"] {
        std::fs::write(world.host(at), at).unwrap();
    }
    std::fs::create_dir(world.host("d")).unwrap();
    let read = |room| {
        let mut sink = Sink {
            room,
            plus: true,
            ..Sink::default()
        };
        world.fs.readdir(&user(7), ROOT_ID, 0, 0, &mut sink).unwrap();
        sink.entries
    };
    let entries = read(100);
    assert_eq!(entries.len(), 6);
    assert_eq!(world.fs.node_count(), 5);
    let nodes: BTreeMap<_, _> = entries
        .iter()
        .filter_map(|entry| Some((entry.name.clone(), entry.entry?)))
        .collect();
    assert_eq!(nodes.len(), 4, "not the dots");
    assert_eq!(nodes[&b"a"[..]].node, world.node("a"));
    assert!(nodes.values().all(|entry| entry.attr.uid == 7));
    assert!(
        entries
            .iter()
            .all(|entry| entry.entry.is_none_or(|found| found.attr.ino == entry.ino))
    );
    // One that does not fit is not counted.
    world.fs.destroy();
    read(3);
    let counted = read(3).iter().filter(|entry| entry.entry.is_some()).count();
    assert_eq!(world.fs.node_count(), 1 + counted);
}

#[test]
fn a_hundred_thousand_entries() {
    // In memory where there is such a place: disks take their time over so many.
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    }
    .unwrap();
    let fs = Passthrough::single(ShareConfig::new(dir.path()), config()).unwrap();
    let world = World { dir, fs };
    let dir = world.host("dir");
    std::fs::create_dir(&dir).unwrap();
    let fd = rustix::fs::open(&dir, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    for at in 0..100_000 {
        let (file, mode) = (
            name(&format!("entry-{at}")),
            rustix::fs::Mode::from_raw_mode(0o644),
        );
        rustix::fs::mknodat(&fd, &file, rustix::fs::FileType::RegularFile, mode, 0).unwrap();
    }
    let node = world.node("dir");
    let entries = world.entries(node, 100);
    assert_eq!(entries.len(), 100_002);
    let names: BTreeSet<_> = entries.iter().map(|entry| &entry.name).collect();
    assert_eq!(names.len(), 100_002);
}

#[test]
fn directories_are_opened_synced_and_closed() {
    let world = World::new();
    let (file, _) = world.create(&ROOT, "file", 0o644);
    let fs = &world.fs;
    assert_eq!(fs.opendir(&ROOT, file, 0).unwrap_err(), Errno(libc::ENOTDIR));
    let handle = fs.opendir(&ROOT, ROOT_ID, 0).unwrap().handle;
    fs.fsyncdir(&ROOT, ROOT_ID, handle, false).unwrap();
    fs.fsyncdir(&ROOT, ROOT_ID, 0, true).unwrap();
    fs.syncfs(&ROOT, ROOT_ID).unwrap();
    fs.releasedir(&ROOT, ROOT_ID, handle).unwrap();
    assert_eq!(
        fs.releasedir(&ROOT, ROOT_ID, handle).unwrap_err(),
        Errno(libc::EBADF)
    );
    let always = World::with(
        PassthroughConfig {
            cache: CachePolicy::Always,
            ..config()
        },
        |_| {},
    );
    assert!(always.fs.opendir(&ROOT, ROOT_ID, 0).unwrap().flags & FOPEN_CACHE_DIR != 0);
}
