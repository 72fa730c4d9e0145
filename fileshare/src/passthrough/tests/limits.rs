//! Limits of the host reach the guest as what they are.

use super::support::*;
use crate::filesystem::FileSystem;
use crate::passthrough::{Passthrough, PassthroughConfig, ShareConfig};
use crate::wire::ROOT_ID;

#[test]
fn a_full_file_system_is_full() {
    with_private_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        mount(
            c"tmpfs",
            &c_path(dir.path()),
            c"tmpfs",
            0,
            c"size=64k,nr_inodes=10",
        );
        let fs = Passthrough::single(ShareConfig::new(dir.path()), config()).unwrap();
        let world = World { dir, fs };
        let full = Errno(libc::ENOSPC);
        let (node, handle) = world.create(&ROOT, "file", 0o644);
        let written = world.write(node, handle, 0, &[1; 100_000]).unwrap();
        assert!(written <= 65_536, "as much as fits");
        assert_eq!(
            world.write(node, handle, written as u64, &[1; 4096]).unwrap_err(),
            full
        );
        assert_eq!(
            world
                .fs
                .fallocate(&ROOT, node, handle, 0, 0, 1 << 20)
                .unwrap_err(),
            full
        );
        let made = (0..20)
            .take_while(|at| {
                world
                    .fs
                    .mkdir(&ROOT, ROOT_ID, &name(&format!("d{at}")), 0o755, 0)
                    .is_ok()
            })
            .count();
        assert!(made < 10);
        assert_eq!(world.create_in(&ROOT, ROOT_ID, "more", 0o644).unwrap_err(), full);
        assert_eq!(world.fs.symlink(&ROOT, ROOT_ID, c"link", c"x").unwrap_err(), full);
        let status = world.fs.statfs(&ROOT, ROOT_ID).unwrap();
        assert_eq!((status.f_bavail, status.f_ffree), (0, 0));
        // And a file system that is mounted read-only is just that.
        let remount = libc::MS_REMOUNT | libc::MS_RDONLY;
        world.fs.release(&ROOT, node, handle, None).unwrap();
        mount(c"tmpfs", &c_path(world.dir.path()), c"tmpfs", remount, c"");
        assert_eq!(
            world.create_in(&ROOT, ROOT_ID, "x", 0o644).unwrap_err(),
            Errno(libc::EROFS)
        );
        assert_eq!(world.open(node, libc::O_RDWR).unwrap_err(), Errno(libc::EROFS));
    });
}

#[test]
fn too_many_open_files_are_too_many() {
    let world = World::with(
        PassthroughConfig {
            descriptors: Some(40),
            ..config()
        },
        |_| {},
    );
    let (node, first) = world.create(&ROOT, "file", 0o644);
    let too_many = Errno(libc::EMFILE);
    let mut handles = vec![first];
    while let Ok(opened) = world.open(node, libc::O_RDONLY) {
        handles.push(opened.handle);
        assert!(handles.len() <= 20);
    }
    assert_eq!(handles.len(), 20, "half of the descriptors");
    assert_eq!(world.open(node, libc::O_RDONLY).unwrap_err(), too_many);
    assert_eq!(world.fs.opendir(&ROOT, ROOT_ID, 0).unwrap_err(), too_many);
    assert_eq!(
        world.create_in(&ROOT, ROOT_ID, "other", 0o644).unwrap_err(),
        too_many
    );
    assert_eq!(
        world.fs.tmpfile(&ROOT, ROOT_ID, 0o644, 2, 0).unwrap_err(),
        too_many
    );
    assert!(
        !world.host("other").exists(),
        "nothing is made that cannot be opened"
    );
    world.fs.release(&ROOT, node, handles[3], None).unwrap();
    assert!(world.open(node, libc::O_RDONLY).is_ok());
}

#[test]
fn permissions_of_the_servers_user_are_the_last_word() {
    if is_root() {
        eprintln!("left out: root may do everything");
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    std::fs::create_dir(world.host("closed")).unwrap();
    std::fs::write(world.host("file"), "").unwrap();
    for (at, mode) in [("closed", 0o000), ("file", 0o000)] {
        std::fs::set_permissions(world.host(at), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let denied = Errno(libc::EACCES);
    assert_eq!(world.walk("closed/x").unwrap_err(), denied);
    assert_eq!(
        world.open(world.node("file"), libc::O_RDONLY).unwrap_err(),
        denied
    );
    let etc = Passthrough::single(ShareConfig::new("/etc"), config()).unwrap();
    assert_eq!(
        etc.mkdir(&ROOT, ROOT_ID, c"berth-test", 0o755, 0).unwrap_err(),
        denied
    );
    // But what is the server's own the guest can open up.
    world.chmod(&ROOT, world.node("file"), 0o644).unwrap();
    assert!(world.open(world.node("file"), libc::O_RDWR).is_ok());
    std::fs::set_permissions(world.host("closed"), std::fs::Permissions::from_mode(0o755)).unwrap();
}
