//! Who owns what, as programs in the guest find it.

use std::ffi::CStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use super::support::*;
use crate::filesystem::{Context, FileSystem, SetAttr};
use crate::passthrough::ownership::RECORD_XATTR;
use crate::passthrough::{PassthroughConfig, Unowned};
use crate::wire::ROOT_ID;

fn owner(world: &World, ctx: &Context, path: &str) -> (u32, u32) {
    let attr = world.attr(ctx, world.node(path));
    (attr.uid, attr.gid)
}

fn record(path: &Path) -> Option<String> {
    let mut text = [0; 100];
    let length = rustix::fs::getxattr(path, RECORD_XATTR, &mut text[..]).ok()?;
    Some(String::from_utf8(text[..length].into()).unwrap())
}

fn host_mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_host_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_nobody_owns_is_the_askers() {
    let world = World::new();
    std::fs::create_dir(world.host("repository")).unwrap();
    std::fs::write(world.host("repository/file"), "").unwrap();
    for uid in [0, 1000, 33, 0] {
        for path in ["", "repository", "repository/file"] {
            assert_eq!(
                owner(&world, &user(uid), path),
                (uid, uid),
                "git compares this with its own uid"
            );
        }
    }
}

/// What PostgreSQL's image does with a bind mount, and what PostgreSQL checks.
#[test]
fn a_database_takes_its_directory() {
    let world = World::new();
    let postgres = user(999);
    std::fs::create_dir(world.host("data")).unwrap();
    set_host_mode(&world.host("data"), 0o755);
    let data = world.node("data");
    world.chown(data, 999, 999).unwrap();
    world.chmod(&ROOT, data, 0o700).unwrap();
    for ctx in [ROOT, postgres] {
        let attr = world.attr(&ctx, data);
        assert_eq!((attr.uid, attr.gid, attr.mode & 0o7777), (999, 999, 0o700));
    }
    assert_eq!(host_mode(&world.host("data")), 0o700, "the host's agrees");
    // initdb, as the user; and something that root leaves there.
    let base = world.fs.mkdir(&postgres, data, c"base", 0o700, 0).unwrap();
    assert_eq!((base.attr.uid, base.attr.mode & 0o7777), (999, 0o700));
    world.create_in(&postgres, base.node, "1", 0o600).unwrap();
    world.create_in(&ROOT, data, "pg_hba.conf", 0o640).unwrap();
    // Stopped and started: everything is still so.
    world.fs.destroy();
    for ctx in [ROOT, postgres, user(5)] {
        assert_eq!(owner(&world, &ctx, "data"), (999, 999));
        assert_eq!(owner(&world, &ctx, "data/base/1"), (999, 999));
        assert_eq!(
            owner(&world, &ctx, "data/pg_hba.conf"),
            (0, 0),
            "root's, not the asker's"
        );
    }
    let mine = world.attr(&postgres, world.node("data/base/1"));
    assert_eq!(mine.mode & 0o7777, 0o600);
}

#[test]
fn what_a_user_makes_is_its_own_and_what_root_makes_is_nobodys() {
    let world = World::new();
    let node = user(1000);
    world.create(&node, "users", 0o644);
    world.create(&ROOT, "roots", 0o644);
    world.fs.symlink(&node, ROOT_ID, c"link", c"users").unwrap();
    world
        .fs
        .mknod(&node, ROOT_ID, c"fifo", libc::S_IFIFO | 0o600, 0, 0)
        .unwrap();
    world.fs.mkdir(&node, ROOT_ID, c"dir", 0o755, 0).unwrap();
    for at in ["users", "dir", "link", "fifo"] {
        assert_eq!(owner(&world, &ROOT, at), (1000, 1000), "{at}");
    }
    assert_eq!(owner(&world, &user(5), "roots"), (5, 5));
    assert_eq!(record(&world.host("users")).as_deref(), Some("1:1000:1000::"));
    assert_eq!(record(&world.host("roots")), None);
    // Of links and FIFOs it is forgotten with them.
    world.fs.unlink(&ROOT, ROOT_ID, c"link").unwrap();
    let link = world.fs.symlink(&ROOT, ROOT_ID, c"link", c"roots").unwrap();
    assert_eq!(link.attr.uid, 0);
}

#[test]
fn the_host_users_access_is_never_taken() {
    let world = World::new();
    for (dir, mode) in [
        (false, 0o000),
        (false, 0o444),
        (false, 0o6711),
        (true, 0o000),
        (true, 0o1777),
    ] {
        let at = format!("{dir}{mode:o}");
        let node = if dir {
            world.fs.mkdir(&ROOT, ROOT_ID, &name(&at), mode, 0).unwrap().node
        } else {
            world.create(&ROOT, &at, mode).0
        };
        let always = if dir { 0o700 } else { 0o600 };
        for _ in 0..2 {
            assert_eq!(world.attr(&ROOT, node).mode & 0o7777, mode, "{at}");
            let host = host_mode(&world.host(&at));
            assert_eq!(host & always, always, "{at}");
            assert_eq!(host & 0o7000, 0, "{at}");
            // The second time set by chmod.
            world.chmod(&ROOT, node, 0o755).unwrap();
            world.chmod(&ROOT, node, mode).unwrap();
        }
    }
    let (plain, _) = world.create(&ROOT, "plain", 0o640);
    world.chmod(&ROOT, plain, 0o400).unwrap();
    assert!(record(&world.host("plain")).is_some());
    world.chmod(&ROOT, plain, 0o600).unwrap();
    assert_eq!(record(&world.host("plain")), None, "nothing is left to say");
}

#[test]
fn a_chmod_on_the_host_wins_and_the_owner_stays() {
    let world = World::new();
    let (file, _) = world.create(&user(7), "file", 0o4751);
    assert_eq!(world.attr(&ROOT, file).mode & 0o7777, 0o4751);
    set_host_mode(&world.host("file"), 0o640);
    let attr = world.attr(&ROOT, file);
    assert_eq!((attr.mode & 0o7777, attr.uid), (0o640, 7));
    // What the guest does next starts from there.
    world.chown(file, 8, 8).unwrap();
    set_host_mode(&world.host("file"), 0o751);
    let attr = world.attr(&ROOT, file);
    assert_eq!(
        (attr.mode & 0o7777, attr.uid),
        (0o751, 8),
        "the old record does not come back"
    );
}

#[test]
fn setuid_needs_an_owner_and_the_hosts_does_not_count() {
    let world = World::new();
    std::fs::write(world.host("hosts"), "").unwrap();
    set_host_mode(&world.host("hosts"), 0o4755);
    let hosts = world.node("hosts");
    assert_eq!(world.attr(&ROOT, hosts).mode & 0o7777, 0o755);
    let (file, _) = world.create(&ROOT, "file", 0o755);
    world.chmod(&ROOT, file, 0o4755).unwrap();
    let attr = world.attr(&user(5), file);
    assert_eq!(
        (attr.uid, attr.mode & 0o7777),
        (0, 0o4755),
        "not the asker's: whoever runs it becomes the owner"
    );
    assert_eq!(host_mode(&world.host("file")), 0o755);
}

#[test]
fn writing_takes_setuid_and_capabilities() {
    let world = World::new();
    let capability = c"security.capability";
    let fs = &world.fs;
    let armed = |at: &str| {
        let (node, handle) = world.create(&user(7), at, 0o755);
        world.chmod(&user(7), node, 0o6755).unwrap();
        fs.setxattr(&ROOT, node, capability, b"caps", 0).unwrap();
        (node, handle)
    };
    let state = |node| {
        (
            world.attr(&ROOT, node).mode & 0o7777,
            fs.getxattr(&ROOT, node, capability).is_ok(),
        )
    };

    let (node, handle) = armed("written");
    assert_eq!(state(node), (0o6755, true));
    world.write(node, handle, 0, b"x").unwrap();
    assert_eq!(state(node), (0o6755, false), "a privileged writer keeps setuid");
    world.write_with(node, handle, 0, b"x", 0, true).unwrap();
    assert_eq!(state(node), (0o755, false));
    world.chmod(&user(7), node, 0o2755).unwrap();
    world.write_with(node, handle, 0, b"x", 0, true).unwrap();
    assert_eq!(state(node).0, 0o755, "again");

    let (node, _) = armed("truncated");
    let set = SetAttr {
        size: Some(0),
        kill_suidgid: true,
        ..SetAttr::default()
    };
    fs.setattr(&user(7), node, None, &set).unwrap();
    assert_eq!(state(node), (0o755, false));

    let (node, _) = armed("opened");
    fs.open(&user(7), node, (libc::O_WRONLY | libc::O_TRUNC) as u32, true)
        .unwrap();
    assert_eq!(state(node), (0o755, false));

    let (node, _) = armed("chowned");
    world.chown(node, 3, 3).unwrap();
    assert_eq!(state(node), (0o755, false));

    // Known only from the host, by another session.
    let (node, _) = armed("old");
    fs.forget(node, 1);
    let node = world.node("old");
    let opened = world.open(node, libc::O_WRONLY).unwrap();
    world.write_with(node, opened.handle, 0, b"x", 0, true).unwrap();
    assert_eq!(state(node), (0o755, false));
}

#[test]
fn a_setgid_directory_hands_down_its_group() {
    let world = World::new();
    let dir = world.fs.mkdir(&ROOT, ROOT_ID, c"dir", 0o755, 0).unwrap().node;
    world.chown(dir, 0, 50).unwrap();
    world.chmod(&ROOT, dir, 0o2775).unwrap();
    let (file, _) = world.create_in(&user(7), dir, "file", 0o664).unwrap();
    assert_eq!(owner(&world, &ROOT, "dir/file"), (7, 50));
    assert_eq!(world.attr(&ROOT, file).mode & 0o7777, 0o664);
    let inner = world.fs.mkdir(&user(7), dir, c"inner", 0o755, 0).unwrap();
    assert_eq!((inner.attr.gid, inner.attr.mode & 0o7777), (50, 0o2755));
}

#[test]
fn a_read_only_file_of_the_hosts_can_be_chowned() {
    let world = World::new();
    std::fs::write(world.host("object"), "").unwrap();
    set_host_mode(&world.host("object"), 0o444);
    let node = world.node("object");
    world.chown(node, 999, 999).unwrap();
    assert_eq!(owner(&world, &ROOT, "object"), (999, 999));
    assert_eq!(host_mode(&world.host("object")), 0o444, "as it was");
    assert_eq!(world.attr(&ROOT, node).mode & 0o7777, 0o444);
}

#[test]
fn nonsense_in_the_record_is_as_good_as_none() {
    let world = World::new();
    for (at, text) in [
        ("a", &b"2:0:0::"[..]),
        ("b", &[0xff; 300]),
        ("c", b""),
        ("d", b"1:0:0:4777:"),
    ] {
        std::fs::write(world.host(at), "").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(world.host(at), RECORD_XATTR, text, flags).unwrap();
        assert_eq!(owner(&world, &user(5), at), (5, 5), "{at}");
        world.chown(world.node(at), 6, 6).unwrap();
        assert_eq!(owner(&world, &user(5), at), (6, 6), "{at}");
    }
}

#[test]
fn ownership_moves_with_the_file() {
    let world = World::new();
    world.create(&user(7), "a", 0o644);
    world.fs.rename(&ROOT, ROOT_ID, c"a", ROOT_ID, c"b", 0).unwrap();
    let b = world.node("b");
    world.fs.link(&ROOT, b, ROOT_ID, c"c").unwrap();
    assert_eq!(owner(&world, &ROOT, "b"), (7, 7));
    assert_eq!(owner(&world, &ROOT, "c"), (7, 7));
    // A file that the host puts in its place is a new one.
    std::fs::write(world.host("new"), "").unwrap();
    std::fs::rename(world.host("new"), world.host("b")).unwrap();
    assert_eq!(owner(&world, &ROOT, "b"), (0, 0));
}

#[test]
fn other_ways_of_showing_what_nobody_owns() {
    let fixed = Unowned::As { uid: 11, gid: 12 };
    let world = World::with(
        PassthroughConfig {
            unowned: fixed,
            ..config()
        },
        |_| {},
    );
    std::fs::write(world.host("file"), "").unwrap();
    assert_eq!(owner(&world, &user(5), "file"), (11, 12));
    world.create(&ROOT, "roots", 0o644);
    assert_eq!(
        owner(&world, &user(5), "roots"),
        (0, 0),
        "or it would appear as somebody else's"
    );
    let world = World::with(
        PassthroughConfig {
            unowned: Unowned::Host,
            ..config()
        },
        |_| {},
    );
    std::fs::write(world.host("file"), "").unwrap();
    let host = std::fs::metadata(world.host("file")).unwrap();
    assert_eq!(owner(&world, &user(5), "file"), (host.uid(), host.gid()));
}

/// Runs on a file system without user xattrs: ramfs has none.
#[test]
fn without_xattrs_ownership_lasts_as_long_as_the_session() {
    with_private_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        mount(c"ramfs", &c_path(dir.path()), c"ramfs", 0, c"");
        let share = crate::passthrough::ShareConfig::new(dir.path());
        let fs = crate::passthrough::Passthrough::single(share, config()).unwrap();
        let world = World { dir, fs };
        assert_eq!(world.fs.warnings(), [""; 0], "nothing has been lost yet");
        let (file, handle) = world.create(&user(7), "file", 0o4755);
        let attr = world.attr(&ROOT, file);
        assert_eq!((attr.uid, attr.mode & 0o7777), (7, 0o4755));
        world.write_with(file, handle, 0, b"x", 0, true).unwrap();
        assert_eq!(world.attr(&ROOT, file).mode & 0o7777, 0o755);
        world.chown(file, 8, 9).unwrap();
        world.fs.release(&ROOT, file, handle, None).unwrap();
        world.fs.forget(file, 1);
        assert_eq!(
            owner(&world, &ROOT, "file"),
            (8, 9),
            "forgetting the node is not forgetting its owner"
        );
        assert_eq!(world.fs.warnings().len(), 1);
        assert!(world.fs.warnings()[0].contains("no user xattrs"));
    });
}

fn with_timeout(timeout: Duration) -> World {
    World::with(
        PassthroughConfig {
            attr_timeout: timeout,
            ..config()
        },
        |_| {},
    )
}

#[test]
fn attributes_of_one_viewer_are_cached_and_of_two_are_not() {
    let timeout = Duration::from_millis(20);
    let world = with_timeout(timeout);
    let fs = &world.fs;
    std::fs::write(world.host("file"), "").unwrap();
    let (mine, _) = world.create(&user(7), "owned", 0o644);
    let file = world.node("file");
    let cached = |ctx: &Context, node| fs.getattr(ctx, node, None).unwrap();
    // The user that made "owned" is the viewer.
    assert_eq!(cached(&user(7), file).1, timeout);
    assert_eq!(cached(&ROOT, file).1, Duration::ZERO, "root only looks on");
    let (attr, other) = cached(&user(8), file);
    assert_eq!((attr.uid, other), (8, Duration::ZERO), "two users");
    assert_eq!(cached(&user(7), file).1, Duration::ZERO);
    assert_eq!(
        cached(&user(8), mine).1,
        timeout,
        "what has an owner is everybody's to cache"
    );
}

#[test]
fn a_user_is_not_shown_what_root_was() {
    let timeout = Duration::from_millis(50);
    let world = with_timeout(timeout);
    let before = std::time::Instant::now();
    let (_, cached) = world.fs.getattr(&ROOT, ROOT_ID, None).unwrap();
    assert_eq!(cached, timeout);
    let (attr, _) = world.fs.getattr(&user(7), ROOT_ID, None).unwrap();
    assert_eq!(attr.uid, 7);
    // Not a matter of speed: what root was shown must have expired by now.
    assert!(before.elapsed() >= timeout);
}

#[test]
fn kernel_requests_on_nobodys_behalf_disturb_nobody() {
    let world = with_timeout(Duration::from_secs(3600));
    let nobody = Context {
        uid: u32::MAX,
        gid: u32::MAX,
        pid: 0,
    };
    std::fs::write(world.host("file"), "").unwrap();
    let (attr, timeout) = world.fs.getattr(&nobody, world.node("file"), None).unwrap();
    assert_eq!((attr.uid, attr.gid, timeout), (0, 0, Duration::from_secs(3600)));
}

#[test]
fn access_follows_what_is_shown() {
    let world = World::new();
    let (file, _) = world.create(&user(7), "file", 0o640);
    let access = |ctx: &Context, mask| world.fs.access(ctx, file, mask as u32);
    assert_eq!(access(&user(7), libc::R_OK | libc::W_OK), Ok(()));
    assert_eq!(access(&user(7), libc::X_OK), Err(Errno(libc::EACCES)));
    assert_eq!(access(&user(8), libc::R_OK), Err(Errno(libc::EACCES)));
    assert_eq!(access(&ROOT, libc::W_OK), Ok(()));
    assert_eq!(access(&user(8), libc::F_OK), Ok(()));
    let own: &CStr = c"unowned";
    std::fs::write(world.host(own.to_str().unwrap()), "").unwrap();
    symlink("nowhere", world.host("link")).unwrap();
    assert_eq!(
        world
            .fs
            .access(&user(8), world.node("unowned"), libc::W_OK as u32),
        Ok(())
    );
    assert_eq!(
        world.fs.access(&user(8), world.node("link"), libc::R_OK as u32),
        Ok(())
    );
}
