//! Nodes: identity, lookups, descriptors.

use super::support::*;
use crate::filesystem::FileSystem;
use crate::passthrough::PassthroughConfig;
use crate::wire::ROOT_ID;

/// With file handles and without: root has both ways to reopen a node, everybody else one.
fn worlds(descriptors: u64) -> Vec<World> {
    let world = |file_handles| {
        World::with(
            PassthroughConfig {
                file_handles,
                descriptors: Some(descriptors),
                ..config()
            },
            |_| {},
        )
    };
    vec![world(true), world(false)]
}

#[test]
fn two_lookups_of_one_inode_are_one_node() {
    let world = World::new();
    std::fs::write(world.host("a"), "").unwrap();
    std::fs::hard_link(world.host("a"), world.host("b")).unwrap();
    std::fs::write(world.host("c"), "").unwrap();
    let a = world.node("a");
    assert_eq!(world.node("a"), a);
    assert_eq!(world.node("b"), a);
    assert_ne!(world.node("c"), a);
}

#[test]
fn a_reused_inode_number_is_another_node() {
    let world = World::new();
    std::fs::write(world.host("a"), "").unwrap();
    let mut before = world.walk("a").unwrap();
    // Which number a file gets is the file system's business, and other tests make files on it meanwhile.
    let mut numbers = std::collections::HashSet::from([before.attr.ino]);
    let mut reused = false;
    for round in 0..5000 {
        // Nothing holds the old one on the host but a cached descriptor.
        world.fs.close_cached();
        std::fs::remove_file(world.host("a")).unwrap();
        std::fs::write(world.host("a"), "").unwrap();
        let next = world.walk("a").unwrap();
        assert_ne!(next.node, before.node);
        assert_eq!(
            world.fs.getattr(&ROOT, before.node, None).unwrap_err(),
            Errno(libc::ESTALE)
        );
        reused |= !numbers.insert(next.attr.ino);
        before = next;
        if reused && round >= 20 {
            break;
        }
    }
    assert!(
        reused,
        "the file system never gave a number again, so this has shown nothing"
    );
}

#[test]
fn forgetting_takes_nodes_and_those_they_kept() {
    let world = World::new();
    std::fs::create_dir_all(world.host("a/b/c")).unwrap();
    std::fs::write(world.host("a/b/c/file"), "").unwrap();
    let fs = &world.fs;
    let ids: Vec<_> = ["a", "a/b", "a/b/c", "a/b/c/file"]
        .map(|path| world.node(path))
        .into();
    assert_eq!(fs.node_count(), 5);
    // Looked up 4, 3, 2 and 1 times on the way. Ancestors first: they stay as long as they lead to something.
    for (id, lookups) in ids.iter().zip([4, 3, 2]) {
        fs.forget(*id, lookups);
        assert_eq!(fs.node_count(), 5);
    }
    assert!(fs.getattr(&ROOT, ids[3], None).is_ok());
    fs.forget(ids[3], 1);
    assert_eq!(fs.node_count(), 1);
    assert_eq!(fs.getattr(&ROOT, ids[0], None).unwrap_err(), Errno(libc::ESTALE));
    assert_ne!(world.node("a"), ids[0], "ids are not used again");
}

#[test]
fn ending_the_session_forgets_everything_but_the_root() {
    let world = World::new();
    let (file, handle) = world.create(&ROOT, "file", 0o644);
    let dir = world.fs.opendir(&ROOT, ROOT_ID, 0).unwrap();
    world.fs.destroy();
    assert_eq!(world.fs.node_count(), 1);
    assert!(world.read(file, handle, 0, 1).is_err());
    let mut sink = Sink::default();
    assert!(
        world
            .fs
            .readdir(&ROOT, ROOT_ID, dir.handle, 0, &mut sink)
            .is_err()
    );
    assert!(world.walk("file").is_ok());
}

#[test]
fn few_descriptors_serve_many_nodes() {
    for world in worlds(32) {
        let mut nodes = Vec::new();
        for dir in 0..20 {
            std::fs::create_dir(world.host(format!("d{dir}"))).unwrap();
            for file in 0..20 {
                let path = format!("d{dir}/f{file}");
                std::fs::write(world.host(&path), path.as_bytes()).unwrap();
                nodes.push((world.node(&path), path));
            }
        }
        assert!(world.fs.paths.len() <= 4);
        for (node, path) in nodes.iter().chain(nodes.iter().rev()) {
            assert_eq!(world.read(*node, 0, 0, 100).unwrap(), path.as_bytes());
            assert_eq!(world.attr(&ROOT, *node).size, path.len() as u64);
        }
        assert!(world.fs.paths.len() <= 4);
        assert!(world.fs.transient_files.len() <= 2);
    }
}

#[test]
fn the_guests_renames_of_parents_are_followed() {
    for world in worlds(16) {
        let fs = &world.fs;
        std::fs::create_dir_all(world.host("a/b")).unwrap();
        std::fs::write(world.host("a/b/file"), "text").unwrap();
        let file = world.node("a/b/file");
        fs.rename(&ROOT, ROOT_ID, c"a", ROOT_ID, c"x", 0).unwrap();
        fs.close_cached();
        assert_eq!(world.read(file, 0, 0, 10).unwrap(), b"text");
        let (x, b) = (world.node("x"), world.node("x/b"));
        fs.rename(&ROOT, x, c"b", ROOT_ID, c"y", 0).unwrap();
        fs.rename(&ROOT, b, c"file", ROOT_ID, c"z", 0).unwrap();
        fs.close_cached();
        assert_eq!(world.read(file, 0, 0, 10).unwrap(), b"text");
        assert_eq!(world.node("z"), file);
        assert_eq!(world.node("y"), b);
    }
}

#[test]
fn exchanged_names_are_followed() {
    for world in worlds(16) {
        let fs = &world.fs;
        for at in ["a", "b"] {
            std::fs::create_dir(world.host(at)).unwrap();
            std::fs::write(world.host(at).join("file"), at).unwrap();
        }
        let (a, b) = (world.node("a/file"), world.node("b/file"));
        fs.rename(&ROOT, ROOT_ID, c"a", ROOT_ID, c"b", libc::RENAME_EXCHANGE)
            .unwrap();
        fs.close_cached();
        assert_eq!(world.read(a, 0, 0, 10).unwrap(), b"a");
        assert_eq!(world.read(b, 0, 0, 10).unwrap(), b"b");
        assert_eq!(world.node("b/file"), a);
    }
}

#[test]
fn any_known_link_will_do() {
    let world = World::with(
        PassthroughConfig {
            file_handles: false,
            ..config()
        },
        |_| {},
    );
    std::fs::write(world.host("link0"), "text").unwrap();
    for link in 1..20 {
        std::fs::hard_link(world.host("link0"), world.host(format!("link{link}"))).unwrap();
    }
    let node = world.node("link0");
    for link in 1..20 {
        assert_eq!(world.node(&format!("link{link}")), node);
    }
    for link in (15..20).rev() {
        std::fs::remove_file(world.host(format!("link{link}"))).unwrap();
        world.fs.close_cached();
        assert_eq!(world.read(node, 0, 0, 10).unwrap(), b"text");
    }
    // The guest removes what is left.
    for link in 0..15 {
        assert!(world.attr(&ROOT, node).nlink > 0);
        world
            .fs
            .unlink(&ROOT, ROOT_ID, &name(&format!("link{link}")))
            .unwrap();
    }
    world.fs.close_cached();
    assert_eq!(world.attr(&ROOT, node).nlink, 0);
    assert_eq!(world.read(node, 0, 0, 10).unwrap(), b"text");
}

#[test]
fn a_removed_file_or_directory_lives_until_it_is_forgotten() {
    for world in worlds(256) {
        let fs = &world.fs;
        let (file, handle) = world.create(&ROOT, "file", 0o644);
        world.write(file, handle, 0, b"text").unwrap();
        let dir = fs.mkdir(&ROOT, ROOT_ID, c"dir", 0o755, 0).unwrap().node;
        let (victim, _) = world.create(&ROOT, "victim", 0o600);
        fs.unlink(&ROOT, ROOT_ID, c"file").unwrap();
        fs.rmdir(&ROOT, ROOT_ID, c"dir").unwrap();
        world.create(&ROOT, "new", 0o644);
        fs.rename(&ROOT, ROOT_ID, c"new", ROOT_ID, c"victim", 0).unwrap();
        assert_eq!(fs.store.pins().count(), 3);
        fs.close_cached();
        for node in [file, dir, victim] {
            assert!(fs.getattr(&ROOT, node, None).is_ok());
        }
        assert_eq!(world.attr(&ROOT, file).nlink, 0);
        assert_eq!(world.read(file, handle, 0, 10).unwrap(), b"text");
        assert_eq!(world.chmod(&ROOT, file, 0o600).unwrap().mode & 0o777, 0o600);
        let opened = fs.opendir(&ROOT, dir, 0).unwrap();
        let read = fs.readdir(&ROOT, dir, opened.handle, 0, &mut Sink::default());
        assert_eq!(read.unwrap_err(), Errno(libc::ENOENT), "as on the host");
        fs.releasedir(&ROOT, dir, opened.handle).unwrap();
        assert!(world.create_in(&ROOT, dir, "x", 0o644).is_err());
        for node in [file, dir, victim] {
            fs.forget(node, 1);
        }
        assert_eq!(fs.store.pins().count(), 0);
        assert_eq!(fs.node_count(), 2, "the root, and what replaced the victim");
    }
}

#[test]
fn removed_nodes_hold_only_so_many_descriptors() {
    let world = World::with(
        PassthroughConfig {
            descriptors: Some(64),
            ..config()
        },
        |_| {},
    );
    let fs = &world.fs;
    let mut nodes = Vec::new();
    for at in 0..20 {
        nodes.push(
            fs.mknod(
                &ROOT,
                ROOT_ID,
                &name(&format!("f{at}")),
                libc::S_IFREG | 0o644,
                0,
                0,
            )
            .unwrap()
            .node,
        );
        fs.unlink(&ROOT, ROOT_ID, &name(&format!("f{at}"))).unwrap();
    }
    fs.close_cached();
    assert_eq!(fs.store.pins().count(), 8, "an eighth of them");
    let alive = nodes
        .iter()
        .filter(|node| fs.getattr(&ROOT, **node, None).is_ok())
        .count();
    assert_eq!(alive, 8, "the rest is stale");
}

#[test]
fn a_name_taken_away_by_the_host_is_looked_up_again() {
    let world = World::with(
        PassthroughConfig {
            file_handles: false,
            ..config()
        },
        |_| {},
    );
    std::fs::create_dir(world.host("dir")).unwrap();
    std::fs::write(world.host("dir/file"), "text").unwrap();
    let file = world.node("dir/file");
    std::fs::rename(world.host("dir"), world.host("elsewhere")).unwrap();
    assert!(world.fs.getattr(&ROOT, file, None).is_ok(), "while it is open");
    world.fs.close_cached();
    assert_eq!(
        world.fs.getattr(&ROOT, file, None).unwrap_err(),
        Errno(libc::ESTALE)
    );
    assert_eq!(world.node("elsewhere/file"), file);
    world.fs.close_cached();
    assert!(world.fs.getattr(&ROOT, file, None).is_ok());
}

#[test]
fn what_is_open_is_there_whatever_the_host_does_with_its_name() {
    let world = World::with(
        PassthroughConfig {
            file_handles: false,
            ..config()
        },
        |_| {},
    );
    let (file, _) = world.create(&ROOT, "file", 0o644);
    let dir = world.fs.mkdir(&ROOT, ROOT_ID, c"dir", 0o755, 0).unwrap().node;
    world.fs.opendir(&ROOT, dir, 0).unwrap();
    std::fs::remove_file(world.host("file")).unwrap();
    std::fs::rename(world.host("dir"), world.host("moved")).unwrap();
    world.fs.close_cached();
    // fchmod(2) in the guest does not say which open file it is about.
    assert_eq!(world.chmod(&ROOT, file, 0o600).unwrap().mode & 0o777, 0o600);
    assert_eq!(world.chmod(&ROOT, dir, 0o700).unwrap().mode & 0o777, 0o700);
}

#[test]
fn parents_are_found_from_below() {
    let world = World::new();
    std::fs::create_dir_all(world.host("a/b")).unwrap();
    let (a, b) = (world.node("a"), world.node("a/b"));
    assert_eq!(world.fs.lookup_parent(&ROOT, b).unwrap().node, a);
    assert_eq!(world.fs.lookup_parent(&ROOT, a).unwrap().node, ROOT_ID);
    assert_eq!(world.fs.lookup_parent(&ROOT, ROOT_ID).unwrap().node, ROOT_ID);
    assert_eq!(world.fs.lookup_self(&ROOT, b).unwrap().node, b);
    let (file, _) = world.create(&ROOT, "file", 0o644);
    assert_eq!(
        world.fs.lookup_parent(&ROOT, file).unwrap_err(),
        Errno(libc::ENOTDIR)
    );
    assert_eq!(world.fs.lookup_self(&ROOT, 999).unwrap_err(), Errno(libc::ESTALE));
}

/// Several threads look up, rename, remove and forget the same few names: in the end nothing is left over.
#[test]
fn concurrent_changes_leave_nothing_behind() {
    let world = World::with(
        PassthroughConfig {
            file_handles: false,
            descriptors: Some(64),
            ..config()
        },
        |_| {},
    );
    let fs = &world.fs;
    let names = ["a", "b", "c"].map(name);
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let names = &names;
            scope.spawn(move || {
                for step in 0..2000usize {
                    let at = &names[(step * 7 + thread) % 3];
                    let other = &names[(step * 5 + thread / 2) % 3];
                    match (step + thread) % 5 {
                        0 => {
                            if let Ok(entry) = fs.mkdir(&ROOT, ROOT_ID, at, 0o755, 0) {
                                fs.forget(entry.node, 1);
                            }
                        }
                        1 => {
                            let _ = fs.rename(&ROOT, ROOT_ID, at, ROOT_ID, other, 0);
                        }
                        2 => {
                            let _ = fs.rmdir(&ROOT, ROOT_ID, at);
                        }
                        _ => {
                            if let Ok(entry) = fs.lookup(&ROOT, ROOT_ID, at) {
                                if let Ok(inner) = fs.mkdir(&ROOT, entry.node, other, 0o755, 0) {
                                    fs.forget(inner.node, 1);
                                    let _ = fs.rmdir(&ROOT, entry.node, other);
                                }
                                fs.forget(entry.node, 1);
                            }
                        }
                    }
                }
            });
        }
    });
    assert_eq!(fs.node_count(), 1);
    assert_eq!(fs.store.pins().count(), 0);
}

#[test]
fn cached_descriptors_make_room_for_needed_ones() {
    let world = World::new();
    std::fs::write(world.host("file"), "").unwrap();
    let calls = std::cell::Cell::new(0);
    let fails_at_first = || {
        calls.set(calls.get() + 1);
        if calls.get() == 1 {
            Err(Errno(libc::EMFILE))
        } else {
            Ok(())
        }
    };
    world.node("file");
    assert_eq!(world.fs.with_descriptors(fails_at_first), Ok(()));
    assert_eq!(world.fs.paths.len(), 0);
    calls.set(0);
    assert_eq!(
        world.fs.with_descriptors(fails_at_first),
        Err(Errno(libc::EMFILE)),
        "nothing left to close"
    );
}
