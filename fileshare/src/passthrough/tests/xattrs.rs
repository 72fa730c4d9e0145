//! Extended attributes.

use super::support::*;
use crate::filesystem::FileSystem;
use crate::wire::ROOT_ID;

#[test]
fn user_xattrs_are_the_hosts() {
    let world = World::new();
    let fs = &world.fs;
    let (file, _) = world.create(&ROOT, "file", 0o644);
    for node in [file, ROOT_ID] {
        assert_eq!(
            fs.getxattr(&ROOT, node, c"user.a").unwrap_err(),
            Errno(libc::ENODATA)
        );
        fs.setxattr(&ROOT, node, c"user.a", b"one", 0).unwrap();
        fs.setxattr(&ROOT, node, c"user.empty", b"", 0).unwrap();
        assert_eq!(fs.getxattr(&ROOT, node, c"user.a").unwrap(), b"one");
        assert_eq!(fs.getxattr(&ROOT, node, c"user.empty").unwrap(), b"");
        let exists = fs.setxattr(&ROOT, node, c"user.a", b"two", libc::XATTR_CREATE as u32);
        assert_eq!(exists.unwrap_err(), Errno(libc::EEXIST));
        let absent = fs.setxattr(&ROOT, node, c"user.b", b"two", libc::XATTR_REPLACE as u32);
        assert_eq!(absent.unwrap_err(), Errno(libc::ENODATA));
        assert_eq!(
            fs.setxattr(&ROOT, node, c"user.b", b"", 64).unwrap_err(),
            Errno(libc::EINVAL)
        );
        let mut list: Vec<u8> = fs.listxattr(&ROOT, node).unwrap();
        list.sort_unstable();
        let mut expected = b"user.a\0user.empty\0".to_vec();
        expected.sort_unstable();
        assert_eq!(list, expected);
        fs.removexattr(&ROOT, node, c"user.a").unwrap();
        assert_eq!(
            fs.removexattr(&ROOT, node, c"user.a").unwrap_err(),
            Errno(libc::ENODATA)
        );
    }
    // Longer than is read at first.
    let long = vec![7; 1500];
    fs.setxattr(&ROOT, file, c"user.long", &long, 0).unwrap();
    assert_eq!(fs.getxattr(&ROOT, file, c"user.long").unwrap(), long);
    let too_long = fs
        .setxattr(&ROOT, file, c"user.long", &vec![7; 65_537], 0)
        .unwrap_err();
    assert!(
        [libc::E2BIG, libc::ENOSPC, libc::ERANGE].contains(&too_long.0),
        "{too_long:?}"
    );
}

#[test]
fn what_is_berths_does_not_exist() {
    let world = World::new();
    let fs = &world.fs;
    let (file, _) = world.create(&user(7), "file", 0o4755);
    assert_eq!(fs.listxattr(&ROOT, file).unwrap(), b"");
    for ours in [
        c"user.berth.owner",
        c"user.berth.security.capability",
        c"user.berth.x",
    ] {
        assert_eq!(fs.getxattr(&ROOT, file, ours).unwrap_err(), Errno(libc::ENODATA));
        assert_eq!(
            fs.setxattr(&ROOT, file, ours, b"1:0:0:4777:755", 0).unwrap_err(),
            Errno(libc::EPERM)
        );
        assert_eq!(
            fs.removexattr(&ROOT, file, ours).unwrap_err(),
            Errno(libc::ENODATA)
        );
    }
    let attr = world.attr(&ROOT, file);
    assert_eq!((attr.uid, attr.mode & 0o7777), (7, 0o4755));
}

#[test]
fn capabilities_are_kept_for_the_guest_only() {
    let world = World::new();
    let fs = &world.fs;
    let (file, _) = world.create(&ROOT, "file", 0o755);
    let name = c"security.capability";
    assert_eq!(fs.getxattr(&ROOT, file, name).unwrap_err(), Errno(libc::ENODATA));
    fs.setxattr(&ROOT, file, name, b"\x01\0\0\x02caps", 0).unwrap();
    assert_eq!(fs.getxattr(&ROOT, file, name).unwrap(), b"\x01\0\0\x02caps");
    assert_eq!(fs.listxattr(&ROOT, file).unwrap(), b"security.capability\0");
    let real = rustix::fs::getxattr(world.host("file"), "security.capability", &mut [0u8; 10][..]);
    assert!(real.is_err(), "they mean nothing on the host");
    fs.removexattr(&ROOT, file, name).unwrap();
    assert_eq!(fs.listxattr(&ROOT, file).unwrap(), b"");
    assert_eq!(
        fs.getxattr(&ROOT, ROOT_ID, name).unwrap_err(),
        Errno(libc::ENODATA)
    );
    assert!(fs.setxattr(&ROOT, ROOT_ID, name, b"x", 0).is_err());
}

#[test]
fn the_rest_is_not_supported() {
    let world = World::new();
    let fs = &world.fs;
    let (file, _) = world.create(&ROOT, "file", 0o644);
    let unsupported = Errno(libc::EOPNOTSUPP);
    for name in [
        c"trusted.x",
        c"system.posix_acl_access",
        c"system.posix_acl_default",
        c"security.selinux",
        c"x",
    ] {
        assert_eq!(fs.getxattr(&ROOT, file, name).unwrap_err(), unsupported);
        assert_eq!(fs.setxattr(&ROOT, file, name, b"", 0).unwrap_err(), unsupported);
        assert_eq!(fs.removexattr(&ROOT, file, name).unwrap_err(), unsupported);
    }
    // Links have none, and are not followed to what has.
    let link = fs.symlink(&ROOT, ROOT_ID, c"link", c"file").unwrap().node;
    assert_eq!(
        fs.setxattr(&ROOT, link, c"user.x", b"", 0).unwrap_err(),
        Errno(libc::EPERM)
    );
    assert_eq!(
        fs.getxattr(&ROOT, link, c"user.x").unwrap_err(),
        Errno(libc::ENODATA)
    );
    assert_eq!(fs.listxattr(&ROOT, link).unwrap(), b"");
}
