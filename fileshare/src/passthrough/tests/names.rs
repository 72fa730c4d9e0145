//! Names: what they may be, and what is done with them.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use super::support::*;
use crate::filesystem::FileSystem;
use crate::passthrough::PassthroughConfig;
use crate::wire::ROOT_ID;

#[test]
fn long_names_and_names_that_are_no_text() {
    let world = World::new();
    let fs = &world.fs;
    let long = CString::new(vec![b'x'; 255]).unwrap();
    let bytes = CString::new(vec![0xff, b'\n', 1, 0xc3, b' ']).unwrap();
    for name in [&long, &bytes] {
        let made = fs.mkdir(&ROOT, ROOT_ID, name, 0o755, 0).unwrap();
        assert!(world.host(OsStr::from_bytes(name.to_bytes())).is_dir());
        assert_eq!(fs.lookup(&ROOT, ROOT_ID, name).unwrap().node, made.node);
        assert!(
            world
                .entries(ROOT_ID, 10)
                .iter()
                .any(|entry| entry.name == name.to_bytes())
        );
        fs.close_cached();
        assert!(fs.getattr(&ROOT, made.node, None).is_ok());
    }
    let longer = CString::new(vec![b'x'; 256]).unwrap();
    let refused = fs.mkdir(&ROOT, ROOT_ID, &longer, 0o755, 0).unwrap_err();
    assert_eq!(refused, Errno(libc::ENAMETOOLONG));
}

#[test]
fn trees_deeper_than_a_path_can_say() {
    let world = World::with(
        PassthroughConfig {
            file_handles: false,
            ..config()
        },
        |_| {},
    );
    let fs = &world.fs;
    let part = "d".repeat(200);
    let mut nodes = vec![ROOT_ID];
    for _ in 0..60 {
        let parent = *nodes.last().unwrap();
        nodes.push(fs.mkdir(&ROOT, parent, &name(&part), 0o755, 0).unwrap().node);
    }
    let deepest = *nodes.last().unwrap();
    fs.close_cached();
    // 12 000 bytes from the root: opened in stages.
    assert!(fs.getattr(&ROOT, deepest, None).is_ok());
    while let (Some(_), Some(parent)) = (nodes.pop(), nodes.last()) {
        fs.rmdir(&ROOT, *parent, &name(&part)).unwrap();
    }
}

#[test]
fn renames_with_flags() {
    let world = World::new();
    let fs = &world.fs;
    for at in ["a", "b"] {
        std::fs::write(world.host(at), at).unwrap();
    }
    let rename =
        |from: &str, to: &str, flags| fs.rename(&ROOT, ROOT_ID, &name(from), ROOT_ID, &name(to), flags);
    assert_eq!(rename("a", "b", libc::RENAME_NOREPLACE), Err(Errno(libc::EEXIST)));
    assert_eq!(rename("a", "c", libc::RENAME_EXCHANGE), Err(Errno(libc::ENOENT)));
    assert_eq!(rename("a", "c", libc::RENAME_WHITEOUT), Err(Errno(libc::EINVAL)));
    assert_eq!(rename("x", "y", 0), Err(Errno(libc::ENOENT)));
    rename("a", "b", libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(std::fs::read(world.host("a")).unwrap(), b"b");
    rename("a", "c", libc::RENAME_NOREPLACE).unwrap();
    rename("b", "c", 0).unwrap();
    assert_eq!(world.list(ROOT_ID), ["c"]);
    assert_eq!(std::fs::read(world.host("c")).unwrap(), b"a");
}

#[test]
fn renaming_one_link_onto_another_changes_nothing_and_has_the_guest_look_again() {
    let world = World::with(
        PassthroughConfig {
            file_handles: false,
            ..config()
        },
        |_| {},
    );
    let fs = &world.fs;
    std::fs::write(world.host("a"), "text").unwrap();
    std::fs::hard_link(world.host("a"), world.host("b")).unwrap();
    let (a, b) = (world.node("a"), world.node("b"));
    assert_eq!(a, b);
    // Linux asks for this only when it does not know that they are one.
    assert_eq!(
        fs.rename(&ROOT, ROOT_ID, c"a", ROOT_ID, c"b", 0),
        Err(Errno(libc::ESTALE))
    );
    assert_eq!(world.list(ROOT_ID), ["a", "b"]);
    for gone in ["a", "b"] {
        std::fs::hard_link(world.host("a"), world.host("keep")).ok();
        fs.unlink(&ROOT, ROOT_ID, &name(gone)).unwrap();
        fs.close_cached();
    }
    world.node("keep");
    assert_eq!(world.read(a, 0, 0, 10).unwrap(), b"text");
}

#[test]
fn links_to_files_symlinks_and_not_to_directories() {
    let world = World::new();
    let fs = &world.fs;
    let (file, _) = world.create(&ROOT, "file", 0o644);
    let entry = fs.link(&ROOT, file, ROOT_ID, c"second").unwrap();
    assert_eq!((entry.node, entry.attr.nlink), (file, 2));
    assert_eq!(
        fs.link(&ROOT, file, ROOT_ID, c"second").unwrap_err(),
        Errno(libc::EEXIST)
    );
    let link = fs.symlink(&ROOT, ROOT_ID, c"symlink", c"/nowhere").unwrap();
    let again = fs.link(&ROOT, link.node, ROOT_ID, c"symlink2").unwrap();
    assert_eq!(again.node, link.node);
    assert_eq!(fs.readlink(&ROOT, again.node).unwrap(), b"/nowhere");
    assert_eq!(fs.readlink(&ROOT, file).unwrap_err(), Errno(libc::EINVAL));
    let dir = fs.mkdir(&ROOT, ROOT_ID, c"dir", 0o755, 0).unwrap().node;
    assert_eq!(
        fs.link(&ROOT, dir, ROOT_ID, c"dir2").unwrap_err(),
        Errno(libc::EPERM)
    );
    assert_eq!(
        fs.link(&ROOT, file, file, c"x").unwrap_err(),
        Errno(libc::ENOTDIR)
    );
}

#[test]
fn removing_says_what_is_wrong() {
    let world = World::new();
    let fs = &world.fs;
    std::fs::create_dir_all(world.host("dir/inner")).unwrap();
    std::fs::write(world.host("file"), "").unwrap();
    assert_eq!(
        fs.unlink(&ROOT, ROOT_ID, c"dir").unwrap_err(),
        Errno(libc::EISDIR)
    );
    assert_eq!(
        fs.rmdir(&ROOT, ROOT_ID, c"file").unwrap_err(),
        Errno(libc::ENOTDIR)
    );
    assert_eq!(
        fs.rmdir(&ROOT, ROOT_ID, c"dir").unwrap_err(),
        Errno(libc::ENOTEMPTY)
    );
    assert_eq!(
        fs.unlink(&ROOT, ROOT_ID, c"nothing").unwrap_err(),
        Errno(libc::ENOENT)
    );
    // What the guest never looked up goes as well.
    fs.unlink(&ROOT, ROOT_ID, c"file").unwrap();
    assert_eq!(world.list(ROOT_ID), ["dir"]);
    // A directory into itself.
    let dir = world.node("dir");
    let loops = fs.rename(&ROOT, ROOT_ID, c"dir", world.node("dir/inner"), c"x", 0);
    assert_eq!(loops.unwrap_err(), Errno(libc::EINVAL));
    assert_eq!(world.node("dir"), dir);
}

#[test]
fn absence_can_be_cached() {
    let negative_timeout = std::time::Duration::from_secs(3);
    let world = World::with(
        PassthroughConfig {
            negative_timeout,
            ..config()
        },
        |_| {},
    );
    let entry = world.walk("nothing").unwrap();
    assert_eq!((entry.node, entry.entry_timeout), (0, negative_timeout));
    assert_eq!(World::new().walk("nothing").unwrap_err(), Errno(libc::ENOENT));
}
