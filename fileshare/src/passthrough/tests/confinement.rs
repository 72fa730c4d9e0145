//! Attempts to get out.

use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use super::support::*;
use crate::filesystem::{FileSystem, SetAttr};
use crate::wire::ROOT_ID;

/// A secret next to a share, which must stay out of it.
fn with_secret() -> (tempfile::TempDir, World) {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    (outside, World::new())
}

#[test]
fn names_that_are_paths_are_refused_everywhere() {
    let world = World::new();
    let (file, _) = world.create(&ROOT, "file", 0o644);
    let fs = &world.fs;
    for bad in ["..", ".", "", "a/b", "/etc", "../x"] {
        let bad = &name(bad);
        let refused = Err(Errno(libc::EINVAL));
        assert_eq!(fs.lookup(&ROOT, ROOT_ID, bad).map(|_| ()), refused, "{bad:?}");
        assert_eq!(fs.mkdir(&ROOT, ROOT_ID, bad, 0o755, 0).map(|_| ()), refused);
        assert_eq!(
            fs.mknod(&ROOT, ROOT_ID, bad, libc::S_IFREG, 0, 0).map(|_| ()),
            refused
        );
        assert_eq!(fs.symlink(&ROOT, ROOT_ID, bad, c"x").map(|_| ()), refused);
        assert_eq!(fs.link(&ROOT, file, ROOT_ID, bad).map(|_| ()), refused);
        assert_eq!(fs.unlink(&ROOT, ROOT_ID, bad), refused);
        assert_eq!(fs.rmdir(&ROOT, ROOT_ID, bad), refused);
        assert_eq!(fs.rename(&ROOT, ROOT_ID, bad, ROOT_ID, c"x", 0), refused);
        assert_eq!(fs.rename(&ROOT, ROOT_ID, c"file", ROOT_ID, bad, 0), refused);
        let flags = libc::O_RDWR as u32;
        assert_eq!(
            fs.create(&ROOT, ROOT_ID, bad, 0o644, flags, 0, false).map(|_| ()),
            refused
        );
    }
}

#[test]
fn a_symlink_is_never_followed() {
    let (outside, world) = with_secret();
    symlink(outside.path(), world.host("dir")).unwrap();
    symlink(outside.path().join("secret"), world.host("file")).unwrap();
    let fs = &world.fs;
    let dir = world.walk("dir").unwrap();
    assert_eq!(dir.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(world.walk("dir/secret").unwrap_err(), Errno(libc::ENOTDIR));
    assert_eq!(fs.opendir(&ROOT, dir.node, 0).unwrap_err(), Errno(libc::ENOTDIR));
    assert_eq!(
        fs.mkdir(&ROOT, dir.node, c"x", 0o755, 0).unwrap_err(),
        Errno(libc::ENOTDIR)
    );
    let file = world.node("file");
    assert_eq!(world.open(file, libc::O_RDWR).unwrap_err(), Errno(libc::ELOOP));
    assert!(world.write(file, 0, 0, b"x").is_err(), "neither without an open");
    let truncate = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    assert!(fs.setattr(&ROOT, file, None, &truncate).is_err());
    assert_eq!(
        world.chmod(&ROOT, file, 0o777).unwrap_err(),
        Errno(libc::EOPNOTSUPP)
    );
    let flags = (libc::O_RDWR | libc::O_TRUNC) as u32;
    let create = fs.create(&ROOT, ROOT_ID, c"file", 0o644, flags, 0, false);
    assert_eq!(
        create.unwrap_err(),
        Errno(libc::ESTALE),
        "looked up again by the guest"
    );
    // Times of the link, not of what it points to.
    let set = SetAttr {
        mtime: Some(crate::filesystem::SetTime::At(5, 6)),
        ..SetAttr::default()
    };
    let (attr, _) = fs.setattr(&ROOT, file, None, &set).unwrap();
    assert_eq!(attr.mtime, (5, 6));
    let secret = outside.path().join("secret");
    assert_ne!(std::fs::metadata(&secret).unwrap().mtime(), 5);
    assert_eq!(std::fs::read(secret).unwrap(), b"secret");
    assert_eq!(
        fs.readlink(&ROOT, dir.node).unwrap(),
        outside.path().as_os_str().as_encoded_bytes()
    );
}

/// The host swaps a name between a file, a directory and links out, as fast as it can, while the guest does everything
/// it can think of with it.
#[test]
fn a_symlink_swapped_in_wins_nothing() {
    let (outside, world) = with_secret();
    for at in ["file", "dir"] {
        symlink(
            outside.path().join(if at == "file" { "secret" } else { "" }),
            world.host(format!("{at}.l")),
        )
        .unwrap();
    }
    std::fs::write(world.host("file"), "inside").unwrap();
    std::fs::create_dir(world.host("dir")).unwrap();
    std::fs::write(world.host("dir/secret"), "inside").unwrap();
    let done = AtomicBool::new(false);
    let swap = |a: &str, b: &str| {
        let (a, b) = (world.host(a), world.host(b));
        let (at, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
        rustix::fs::renameat_with(at, a, at, b, flags).unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                swap("file", "file.l");
                swap("dir", "dir.l");
            }
        });
        let fs = &world.fs;
        let mut reached = 0;
        for _ in 0..3000 {
            for path in ["file", "dir/secret"] {
                let Ok(entry) = world.walk(path) else { continue };
                if let Ok(opened) = world.open(entry.node, libc::O_RDWR) {
                    let bytes = world.read(entry.node, opened.handle, 0, 100).unwrap();
                    assert_eq!(bytes, b"inside");
                    reached += 1;
                    fs.release(&ROOT, entry.node, opened.handle, None).unwrap();
                }
                let _ = world.chmod(&ROOT, entry.node, 0o666);
                fs.forget(entry.node, 1);
            }
            let flags = (libc::O_RDWR | libc::O_TRUNC) as u32;
            if let Ok((entry, opened)) = fs.create(&ROOT, ROOT_ID, c"file", 0o600, flags, 0, false) {
                world.write(entry.node, opened.handle, 0, b"inside").unwrap();
                fs.release(&ROOT, entry.node, opened.handle, None).unwrap();
                fs.forget(entry.node, 1);
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(reached > 0, "what is inside can be reached");
    });
    let secret = outside.path().join("secret");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "secret");
    assert_ne!(std::fs::metadata(secret).unwrap().mode() & 0o777, 0o666);
}

#[test]
fn a_parent_swapped_for_a_link_is_stale_and_not_followed() {
    let (outside, world) = {
        let (outside, _) = with_secret();
        let config = crate::passthrough::PassthroughConfig {
            file_handles: false,
            descriptors: Some(1),
            ..config()
        };
        (outside, World::with(config, |_| {}))
    };
    std::fs::create_dir(world.host("dir")).unwrap();
    std::fs::write(world.host("dir/secret"), "inside").unwrap();
    let node = world.node("dir/secret");
    std::fs::rename(world.host("dir"), world.host("moved")).unwrap();
    symlink(outside.path(), world.host("dir")).unwrap();
    world.fs.close_cached();
    assert_eq!(world.open(node, libc::O_RDONLY).unwrap_err(), Errno(libc::ESTALE));
    assert_eq!(
        world.fs.getattr(&ROOT, node, None).unwrap_err(),
        Errno(libc::ESTALE)
    );
    // Found again where it is now, as the same node.
    assert_eq!(world.node("moved/secret"), node);
    assert!(world.open(node, libc::O_RDONLY).is_ok());
}

#[test]
fn forged_nodes_and_handles_name_nothing() {
    let world = World::new();
    let (file, handle) = world.create(&ROOT, "a", 0o644);
    let (other, _) = world.create(&ROOT, "b", 0o644);
    let fs = &world.fs;
    for forged in [0, 2000, u64::MAX, 1 << 63] {
        let stale = Errno(libc::ESTALE);
        assert_eq!(fs.getattr(&ROOT, forged, None).unwrap_err(), stale);
        assert_eq!(fs.lookup(&ROOT, forged, c"a").unwrap_err(), stale);
        assert_eq!(world.open(forged, libc::O_RDONLY).unwrap_err(), stale);
        assert_eq!(world.read(forged, 0, 0, 1).unwrap_err(), stale);
        fs.forget(forged, u64::MAX);
        let bad = Errno(libc::EBADF);
        if forged != 0 {
            assert_eq!(world.read(file, forged, 0, 1).unwrap_err(), bad);
            assert_eq!(world.write(file, forged, 0, b"x").unwrap_err(), bad);
            assert_eq!(fs.release(&ROOT, file, forged, None).unwrap_err(), bad);
            assert_eq!(fs.fsync(&ROOT, file, forged, false).unwrap_err(), bad);
            let mut sink = Sink::default();
            assert_eq!(fs.readdir(&ROOT, ROOT_ID, forged, 0, &mut sink).unwrap_err(), bad);
        }
    }
    assert_eq!(
        world.read(other, handle, 0, 1).unwrap_err(),
        Errno(libc::EBADF),
        "another node's handle"
    );
    assert_eq!(
        fs.release(&ROOT, other, handle, None).unwrap_err(),
        Errno(libc::EBADF)
    );
    fs.forget(ROOT_ID, u64::MAX);
    assert!(fs.getattr(&ROOT, ROOT_ID, None).is_ok(), "the root stays");
    fs.forget(file, u64::MAX);
    assert!(fs.getattr(&ROOT, file, None).is_err());
    assert!(world.read(file, handle, 0, 1).is_ok(), "what is open stays open");
}

#[test]
fn nothing_but_files_and_directories_is_opened() {
    let world = World::new();
    for (at, kind) in [("fifo", libc::S_IFIFO), ("socket", libc::S_IFSOCK)] {
        let entry = world
            .fs
            .mknod(&ROOT, ROOT_ID, &name(at), kind | 0o644, 0, 0)
            .unwrap();
        assert_eq!(entry.attr.mode, kind | 0o644);
        assert_eq!(
            world.open(entry.node, libc::O_RDWR).unwrap_err(),
            Errno(libc::EPERM)
        );
        assert!(world.write(entry.node, 0, 0, b"x").is_err());
        assert!(world.read(entry.node, 0, 0, 1).is_err());
        assert!(
            world.chmod(&ROOT, entry.node, 0o600).is_ok(),
            "but it can be changed"
        );
    }
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        let refused = world.fs.mknod(&ROOT, ROOT_ID, c"dev", kind | 0o666, 0x103, 0);
        assert_eq!(refused.unwrap_err(), Errno(libc::EPERM));
    }
    if is_root() {
        let dev = rustix::fs::makedev(1, 3);
        let (at, mode) = (rustix::fs::CWD, rustix::fs::Mode::from_raw_mode(0o666));
        rustix::fs::mknodat(
            at,
            world.host("null"),
            rustix::fs::FileType::CharacterDevice,
            mode,
            dev,
        )
        .unwrap();
        let null = world.walk("null").unwrap();
        assert_eq!(
            (null.attr.mode & libc::S_IFMT, null.attr.rdev),
            (libc::S_IFCHR, 0x103)
        );
        assert_eq!(
            world.open(null.node, libc::O_RDWR).unwrap_err(),
            Errno(libc::EPERM)
        );
    }
}

#[test]
fn a_hard_link_to_something_outside_is_a_file_of_the_share() {
    let (outside, world) = with_secret();
    std::fs::hard_link(outside.path().join("secret"), world.host("link")).unwrap();
    let entry = world.walk("link").unwrap();
    assert_eq!(entry.attr.nlink, 2);
    assert_eq!(world.read(entry.node, 0, 0, 100).unwrap(), b"secret");
}

#[test]
fn a_mount_point_below_the_share_is_entered_and_marked() {
    with_private_mounts(|| {
        let world = World::new();
        world.fs.init(crate::wire::SUBMOUNTS);
        for at in ["mnt", "again"] {
            std::fs::create_dir(world.host(at)).unwrap();
        }
        mount(c"tmpfs", &c_path(&world.host("mnt")), c"tmpfs", 0, c"size=1m");
        mount(
            &c_path(world.dir.path()),
            &c_path(&world.host("again")),
            c"",
            libc::MS_BIND,
            c"",
        );
        std::fs::write(world.host("mnt/file"), "mounted").unwrap();
        let mnt = world.walk("mnt").unwrap();
        assert!(mnt.attr.submount && world.attr(&ROOT, mnt.node).submount);
        let file = world.walk("mnt/file").unwrap();
        assert!(!file.attr.submount);
        assert_eq!(world.read(file.node, 0, 0, 100).unwrap(), b"mounted");
        // Inode numbers of tmpfs are small; so are the root's files'. Here they are told apart.
        assert_ne!(
            file.attr.ino,
            std::fs::metadata(world.host("mnt/file")).unwrap().ino()
        );
        let listed = world.entries(mnt.node, 100);
        assert!(
            listed
                .iter()
                .any(|entry| entry.name == b"file" && entry.ino == file.attr.ino)
        );
        // The share mounted below itself: as deep as one likes, each level another node, and none is lost.
        let deep = world.node("again");
        assert_ne!(deep, ROOT_ID);
        let mirrored = world.fs.lookup(&ROOT, deep, c"mnt").unwrap();
        assert_ne!(mirrored.node, mnt.node);
        world.fs.close_cached();
        assert!(world.fs.getattr(&ROOT, mirrored.node, None).is_ok());
        assert!(world.fs.getattr(&ROOT, file.node, None).is_ok());
        // Across file systems as on the host.
        let rename = world.fs.rename(&ROOT, mnt.node, c"file", ROOT_ID, c"file", 0);
        assert_eq!(rename.unwrap_err(), Errno(libc::EXDEV));
        // Without FUSE_SUBMOUNTS the guest would not understand the mark.
        world.fs.init(0);
        assert!(!world.attr(&ROOT, mnt.node).submount);
    });
}

#[test]
fn proc_below_the_share_stays_closed() {
    with_private_mounts(|| {
        let world = World::new();
        std::fs::create_dir(world.host("proc")).unwrap();
        assert!(world.walk("proc").is_ok());
        mount(c"proc", &c_path(&world.host("proc")), c"proc", 0, c"");
        assert_eq!(world.walk("proc").unwrap_err(), Errno(libc::EACCES));
        assert!(
            world.list(ROOT_ID).contains(&"proc".to_owned()),
            "it is seen, as on the host"
        );
        let mut sink = Sink {
            room: 10,
            plus: true,
            ..Sink::default()
        };
        world.fs.readdir(&ROOT, ROOT_ID, 0, 0, &mut sink).unwrap();
        assert!(
            sink.entries
                .iter()
                .any(|entry| entry.name == b"proc" && entry.entry.is_none())
        );
        let why = crate::passthrough::Passthrough::single(
            crate::passthrough::ShareConfig::new(world.host("proc")),
            config(),
        );
        assert!(why.unwrap_err().to_string().contains("interface of the kernel"));
    });
}
