//! Several shares, read-only ones, exclusions.

use std::path::PathBuf;

use super::support::*;
use crate::filesystem::{FileSystem, SetAttr};
use crate::passthrough::{Passthrough, PassthroughConfig, ShareConfig};
use crate::wire::ROOT_ID;

struct Several {
    dirs: [tempfile::TempDir; 2],
    fs: Passthrough,
}

fn several() -> Several {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let fs = Passthrough::multiple(config());
    for (at, dir) in dirs.iter().enumerate() {
        std::fs::write(dir.path().join("file"), format!("share {at}")).unwrap();
        fs.add_share(&format!("s{at}"), ShareConfig::new(dir.path()))
            .unwrap();
    }
    Several { dirs, fs }
}

#[test]
fn shares_are_directories_of_the_root() {
    let Several { dirs, fs } = several();
    let mut sink = Sink {
        room: 10,
        plus: true,
        ..Sink::default()
    };
    let handle = fs.opendir(&ROOT, ROOT_ID, 0).unwrap().handle;
    fs.readdir(&ROOT, ROOT_ID, handle, 0, &mut sink).unwrap();
    let names: Vec<_> = sink.entries.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(names, [&b"."[..], b"..", b"s0", b"s1"]);
    assert!(sink.entries[2].entry.is_some());
    let mut rest = Sink {
        room: 10,
        ..Sink::default()
    };
    fs.readdir(&ROOT, ROOT_ID, handle, sink.entries[2].next, &mut rest)
        .unwrap();
    assert_eq!(rest.entries.len(), 1);
    fs.releasedir(&ROOT, ROOT_ID, handle).unwrap();

    let s0 = fs.lookup(&ROOT, ROOT_ID, c"s0").unwrap();
    let s1 = fs.lookup(&ROOT, ROOT_ID, c"s1").unwrap();
    assert_ne!(s0.node, s1.node);
    assert_eq!(fs.lookup(&ROOT, ROOT_ID, c"s2").unwrap_err(), Errno(libc::ENOENT));
    assert_eq!(fs.lookup_parent(&ROOT, s0.node).unwrap().node, ROOT_ID);
    assert_eq!(fs.lookup_self(&ROOT, ROOT_ID).unwrap().node, ROOT_ID);
    let file = fs.lookup(&ROOT, s1.node, c"file").unwrap();
    assert_eq!(file.attr.size, 7);
    let across = fs.rename(&ROOT, s0.node, c"file", s1.node, c"other", 0);
    assert_eq!(across.unwrap_err(), Errno(libc::EXDEV));
    assert_eq!(
        fs.link(&ROOT, file.node, s0.node, c"other").unwrap_err(),
        Errno(libc::EXDEV)
    );
    assert_eq!(fs.paths(), dirs.each_ref().map(|dir| dir.path().to_path_buf()));
    fs.forget(s0.node, 100);
    assert!(fs.getattr(&ROOT, s0.node, None).is_ok(), "a share's root stays");
}

#[test]
fn the_root_itself_cannot_be_changed() {
    let Several { fs, .. } = several();
    let read_only = Errno(libc::EROFS);
    let (attr, _) = fs.getattr(&user(5), ROOT_ID, None).unwrap();
    assert_eq!((attr.mode, attr.uid), (libc::S_IFDIR | 0o555, 0));
    assert_eq!(fs.mkdir(&ROOT, ROOT_ID, c"x", 0o755, 0).unwrap_err(), read_only);
    assert_eq!(
        fs.create(&ROOT, ROOT_ID, c"x", 0o644, 2, 0, false).unwrap_err(),
        read_only
    );
    assert_eq!(fs.unlink(&ROOT, ROOT_ID, c"s0").unwrap_err(), read_only);
    assert_eq!(fs.rmdir(&ROOT, ROOT_ID, c"s0").unwrap_err(), read_only);
    assert_eq!(
        fs.rename(&ROOT, ROOT_ID, c"s0", ROOT_ID, c"s5", 0).unwrap_err(),
        read_only
    );
    assert_eq!(
        fs.setattr(&ROOT, ROOT_ID, None, &SetAttr::default()).unwrap_err(),
        read_only
    );
    assert_eq!(
        fs.setxattr(&ROOT, ROOT_ID, c"user.x", b"", 0).unwrap_err(),
        read_only
    );
    assert_eq!(
        fs.getxattr(&ROOT, ROOT_ID, c"user.x").unwrap_err(),
        Errno(libc::ENODATA)
    );
    assert_eq!(fs.listxattr(&ROOT, ROOT_ID).unwrap(), b"");
    assert_eq!(fs.access(&ROOT, ROOT_ID, libc::R_OK as u32), Ok(()));
    assert_eq!(fs.access(&ROOT, ROOT_ID, libc::W_OK as u32), Err(read_only));
    assert_eq!(fs.statfs(&ROOT, ROOT_ID).unwrap().f_namemax, 255);
    assert!(fs.open(&ROOT, ROOT_ID, 0, false).is_err());
    fs.syncfs(&ROOT, ROOT_ID).unwrap();
    fs.fsyncdir(&ROOT, ROOT_ID, 0, false).unwrap();
}

#[test]
fn a_removed_share_is_stale_and_its_id_free() {
    let Several { dirs, fs } = several();
    let s0 = fs.lookup(&ROOT, ROOT_ID, c"s0").unwrap().node;
    let file = fs.lookup(&ROOT, s0, c"file").unwrap().node;
    let handle = fs.open(&ROOT, file, libc::O_RDWR as u32, false).unwrap().handle;
    let dir = fs.opendir(&ROOT, s0, 0).unwrap().handle;
    let lock = crate::filesystem::Lock {
        start: 0,
        end: i64::MAX as u64,
        kind: libc::F_WRLCK,
        pid: 1,
    };
    fs.setlk(&ROOT, file, handle, 1, &lock, false, None).unwrap();
    assert!(fs.remove_share("s0"));
    assert!(!fs.remove_share("s0"));
    let stale = Errno(libc::ESTALE);
    for node in [s0, file] {
        assert_eq!(fs.getattr(&ROOT, node, None).unwrap_err(), stale);
    }
    assert_eq!(fs.lookup(&ROOT, s0, c"file").unwrap_err(), stale);
    let mut room = [0; 10];
    let mut reply = crate::buffers::memory::MemoryReply::new(&mut room);
    assert!(fs.read(&ROOT, file, handle, 0, 10, &mut reply).is_err());
    assert!(fs.readdir(&ROOT, s0, dir, 0, &mut Sink::default()).is_err());
    assert_eq!(fs.locks.len(), 0, "nothing of it is held open");
    assert_eq!(fs.lookup(&ROOT, ROOT_ID, c"s0").unwrap_err(), Errno(libc::ENOENT));
    fs.forget(file, 1);
    // The other one does not notice; the id can be had again, for another node.
    let s1 = fs.lookup(&ROOT, ROOT_ID, c"s1").unwrap().node;
    assert!(fs.lookup(&ROOT, s1, c"file").is_ok());
    fs.add_share("s0", ShareConfig::new(dirs[0].path())).unwrap();
    let again = fs.lookup(&ROOT, ROOT_ID, c"s0").unwrap().node;
    assert_ne!(again, s0);
    assert_eq!(fs.getattr(&ROOT, s0, None).unwrap_err(), stale);
}

#[test]
fn shares_that_cannot_be() {
    let Several { dirs, fs } = several();
    let here = || ShareConfig::new(dirs[0].path());
    for id in ["", ".", "..", "a/b", "a\0b"] {
        assert!(fs.add_share(id, here()).is_err(), "{id:?}");
    }
    assert!(
        fs.add_share("s0", here())
            .unwrap_err()
            .to_string()
            .contains("taken")
    );
    let s0 = fs.lookup(&ROOT, ROOT_ID, c"s0").unwrap().node;
    assert!(
        fs.lookup(&ROOT, s0, c"file").is_ok(),
        "which leaves the first alone"
    );
    let missing = ShareConfig::new(dirs[0].path().join("missing"));
    assert!(
        fs.add_share("s2", missing)
            .unwrap_err()
            .to_string()
            .contains("missing")
    );
    let file = ShareConfig::new(dirs[0].path().join("file"));
    assert!(fs.add_share("s2", file).is_err());
    let bad = ShareConfig {
        exclude: vec![PathBuf::from("../x")],
        ..here()
    };
    assert!(fs.add_share("s2", bad).unwrap_err().to_string().contains("../x"));
    let single = Passthrough::single(here(), config()).unwrap();
    assert!(single.add_share("s1", here()).is_err());
}

#[test]
fn overlapping_shares_are_apart() {
    let Several { dirs, fs } = several();
    let share = ShareConfig {
        read_only: true,
        ..ShareConfig::new(dirs[0].path())
    };
    fs.add_share("ro", share).unwrap();
    let at = |share| {
        let root = fs.lookup(&ROOT, ROOT_ID, share).unwrap().node;
        fs.lookup(&ROOT, root, c"file").unwrap()
    };
    let (writable, read_only) = (at(c"s0"), at(c"ro"));
    assert_ne!(writable.node, read_only.node);
    assert_eq!(
        writable.attr.ino, read_only.attr.ino,
        "it is one file all the same"
    );
    assert!(fs.open(&ROOT, writable.node, libc::O_RDWR as u32, false).is_ok());
    assert_eq!(
        fs.open(&ROOT, read_only.node, libc::O_RDWR as u32, false)
            .unwrap_err(),
        Errno(libc::EROFS)
    );
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let world = World::with(config(), |share| share.read_only = true);
    std::fs::write(world.host("file"), "text").unwrap();
    let fs = &world.fs;
    let file = world.node("file");
    let refused = Err(Errno(libc::EROFS));
    assert_eq!(fs.mkdir(&ROOT, ROOT_ID, c"x", 0o755, 0).map(|_| ()), refused);
    assert_eq!(
        fs.mknod(&ROOT, ROOT_ID, c"x", libc::S_IFIFO, 0, 0).map(|_| ()),
        refused
    );
    assert_eq!(fs.symlink(&ROOT, ROOT_ID, c"x", c"y").map(|_| ()), refused);
    assert_eq!(fs.link(&ROOT, file, ROOT_ID, c"x").map(|_| ()), refused);
    assert_eq!(fs.unlink(&ROOT, ROOT_ID, c"file"), refused);
    assert_eq!(fs.rmdir(&ROOT, ROOT_ID, c"file"), refused);
    assert_eq!(fs.rename(&ROOT, ROOT_ID, c"file", ROOT_ID, c"x", 0), refused);
    assert_eq!(
        fs.create(&ROOT, ROOT_ID, c"x", 0o644, 2, 0, false).map(|_| ()),
        refused
    );
    assert_eq!(fs.tmpfile(&ROOT, ROOT_ID, 0o644, 2, 0).map(|_| ()), refused);
    assert_eq!(
        fs.setattr(&ROOT, file, None, &SetAttr::default()).map(|_| ()),
        refused
    );
    assert_eq!(fs.setxattr(&ROOT, file, c"user.x", b"", 0), refused);
    assert_eq!(fs.removexattr(&ROOT, file, c"user.x"), refused);
    for flags in [libc::O_RDWR, libc::O_WRONLY, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(world.open(file, flags).map(|_| ()), refused);
    }
    assert_eq!(world.write(file, 0, 0, b"x").map(|_| ()), refused);
    assert_eq!(fs.fallocate(&ROOT, file, 0, 0, 0, 10), refused);
    assert_eq!(
        fs.copy_file_range(&ROOT, (file, 0, 0), (file, 0, 2), 2, 0)
            .map(|_| ()),
        refused
    );
    assert_eq!(fs.access(&ROOT, file, libc::W_OK as u32), refused);
    assert!(fs.statfs(&ROOT, file).unwrap().f_flag & libc::ST_RDONLY != 0);
    // Reading is fine, and so are locks for it.
    let handle = world.open(file, libc::O_RDONLY).unwrap().handle;
    assert_eq!(world.read(file, handle, 0, 10).unwrap(), b"text");
    let lock = crate::filesystem::Lock {
        start: 0,
        end: 10,
        kind: libc::F_RDLCK,
        pid: 1,
    };
    fs.setlk(&ROOT, file, handle, 1, &lock, false, None).unwrap();
    assert_eq!(std::fs::read(world.host("file")).unwrap(), b"text");
}

fn with_exclusions() -> World {
    let world = World::with(config(), |share| {
        share.exclude = [".ssh", "a/b/secret"].map(PathBuf::from).into();
    });
    std::fs::create_dir_all(world.host("a/b/secret/deep")).unwrap();
    std::fs::create_dir(world.host(".ssh")).unwrap();
    std::fs::write(world.host(".ssh/id"), "key").unwrap();
    std::fs::write(world.host("plain"), "").unwrap();
    world
}

#[test]
fn what_is_excluded_is_not_there() {
    let world = with_exclusions();
    let fs = &world.fs;
    let absent = Errno(libc::ENOENT);
    for hidden in [".ssh", ".ssh/id", "a/b/secret", "a/b/secret/deep"] {
        assert_eq!(world.walk(hidden).unwrap_err(), absent, "{hidden}");
    }
    assert_eq!(world.list(ROOT_ID), ["a", "plain"]);
    let (a, b) = (world.node("a"), world.node("a/b"));
    assert_eq!(world.list(b), [""; 0]);
    let mut sink = Sink {
        room: 10,
        plus: true,
        ..Sink::default()
    };
    fs.readdir(&ROOT, ROOT_ID, 0, 0, &mut sink).unwrap();
    assert!(sink.entries.iter().all(|entry| entry.name != b".ssh"));
    assert_eq!(fs.rmdir(&ROOT, ROOT_ID, c".ssh").unwrap_err(), absent);
    assert_eq!(fs.unlink(&ROOT, b, c"secret").unwrap_err(), absent);
    assert_eq!(
        fs.rmdir(&ROOT, a, c"b").unwrap_err(),
        Errno(libc::ENOTEMPTY),
        "the host's word"
    );
}

#[test]
fn what_is_excluded_cannot_be_made_or_moved_into_sight() {
    let world = with_exclusions();
    let fs = &world.fs;
    let refused = Err(Errno(libc::EACCES));
    let (a, b, plain) = (world.node("a"), world.node("a/b"), world.node("plain"));
    for (parent, hidden) in [(ROOT_ID, c".ssh"), (b, c"secret")] {
        assert_eq!(fs.mkdir(&ROOT, parent, hidden, 0o755, 0).map(|_| ()), refused);
        assert_eq!(fs.symlink(&ROOT, parent, hidden, c"x").map(|_| ()), refused);
        assert_eq!(
            fs.mknod(&ROOT, parent, hidden, libc::S_IFREG, 0, 0).map(|_| ()),
            refused
        );
        assert_eq!(
            fs.create(&ROOT, parent, hidden, 0o644, 2, 0, false).map(|_| ()),
            refused
        );
        assert_eq!(fs.link(&ROOT, plain, parent, hidden).map(|_| ()), refused);
        assert_eq!(fs.rename(&ROOT, ROOT_ID, c"plain", parent, hidden, 0), refused);
        assert_eq!(fs.rename(&ROOT, parent, hidden, ROOT_ID, c"sight", 0), refused);
        let exchange = fs.rename(&ROOT, ROOT_ID, c"plain", parent, hidden, libc::RENAME_EXCHANGE);
        assert_eq!(exchange, refused);
    }
    // Nor what leads there.
    assert_eq!(fs.rename(&ROOT, ROOT_ID, c"a", ROOT_ID, c"x", 0), refused);
    assert_eq!(fs.rename(&ROOT, a, c"b", ROOT_ID, c"x", 0), refused);
    fs.mkdir(&ROOT, ROOT_ID, c"x", 0o755, 0).unwrap();
    assert_eq!(
        fs.rename(&ROOT, ROOT_ID, c"x", ROOT_ID, c"a", libc::RENAME_EXCHANGE),
        refused
    );
    assert_eq!(fs.rename(&ROOT, ROOT_ID, c"x", a, c"b", 0), refused);
    // Elsewhere the same names are names like any other.
    let x = world.node("x");
    fs.mkdir(&ROOT, x, c".ssh", 0o755, 0).unwrap();
    assert!(world.walk("x/.ssh").is_ok());
    fs.rename(&ROOT, ROOT_ID, c"x", a, c"y", 0).unwrap();
}

#[test]
fn exclusions_outlast_forgetting_and_appear_with_what_they_are_in() {
    let world = World::with(config(), |share| {
        share.exclude = vec![PathBuf::from("later/secret")];
    });
    let fs = &world.fs;
    let later = fs.mkdir(&ROOT, ROOT_ID, c"later", 0o755, 0).unwrap().node;
    assert_eq!(
        fs.mkdir(&ROOT, later, c"secret", 0o755, 0).unwrap_err(),
        Errno(libc::EACCES)
    );
    std::fs::create_dir(world.host("later/secret")).unwrap();
    fs.forget(later, 1);
    assert_eq!(world.walk("later/secret").unwrap_err(), Errno(libc::ENOENT));
    // A directory that the host moves away is another place.
    std::fs::rename(world.host("later"), world.host("other")).unwrap();
    assert!(world.walk("other/secret").is_ok());
}

/// Where upper and lower case are the same, other spellings name the same directory; a mount stands in for one here.
#[test]
fn another_name_of_something_hidden_is_hidden() {
    with_private_mounts(|| {
        let world = with_exclusions();
        std::fs::create_dir(world.host(".SSH")).unwrap();
        assert!(world.walk(".SSH").is_ok());
        mount(
            &c_path(&world.host(".ssh")),
            &c_path(&world.host(".SSH")),
            c"",
            libc::MS_BIND,
            c"",
        );
        assert_eq!(world.walk(".SSH").unwrap_err(), Errno(libc::ENOENT));
        assert_eq!(world.list(ROOT_ID), ["a", "plain"]);
        assert_eq!(
            world.fs.rmdir(&ROOT, ROOT_ID, c".SSH").unwrap_err(),
            Errno(libc::ENOENT)
        );
        let rename = world.fs.rename(&ROOT, ROOT_ID, c".SSH", ROOT_ID, c"x", 0);
        assert_eq!(rename.unwrap_err(), Errno(libc::EACCES));
    });
}

#[test]
fn submounts_can_be_kept_from_the_guest() {
    let world = World::with(
        PassthroughConfig {
            submounts: false,
            ..config()
        },
        |_| {},
    );
    assert_eq!(world.fs.init(u64::MAX) & crate::wire::SUBMOUNTS, 0);
    let world = World::new();
    assert_ne!(world.fs.init(u64::MAX) & crate::wire::SUBMOUNTS, 0);
    assert_eq!(world.fs.init(0), 0, "only what is offered");
}
