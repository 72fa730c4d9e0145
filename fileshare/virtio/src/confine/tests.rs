//! What a fence lets through and what not, as the server would open it.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, Write},
    os::fd::AsRawFd,
    os::unix::fs::OpenOptionsExt,
};

use super::*;

/// Whether this kernel can do it at all, found out without the code under test.
fn kernel_has_landlock() -> bool {
    // SAFETY: asks for the version: no attribute is read.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) >= 2 }
}

/// Runs `body` on a thread of its own, behind a fence. Returns false where the kernel has none.
fn fenced(areas: &[Area<'_>], body: impl FnOnce() + Send) -> bool {
    let fence = Fence::new(areas.iter().copied()).unwrap();
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let confinement = fence.enter().unwrap();
                assert_eq!(confinement != Confinement::None, kernel_has_landlock());
                if confinement == Confinement::None {
                    return false;
                }
                body();
                true
            })
            .join()
            .unwrap()
    })
}

#[test]
fn inside_everything_goes_on_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let area = Area {
        root,
        read_only: false,
    };
    fenced(&[area], || {
        fs::create_dir_all(root.join("one/two")).unwrap();
        fs::create_dir(root.join("three")).unwrap();
        fs::write(root.join("one/file"), "contents").unwrap();
        // Between directories, files and directories.
        fs::rename(root.join("one/file"), root.join("three/file")).unwrap();
        fs::hard_link(root.join("three/file"), root.join("one/link")).unwrap();
        fs::rename(root.join("one/two"), root.join("three/two")).unwrap();
        std::os::unix::fs::symlink("file", root.join("three/symlink")).unwrap();
        // As the server opens what it has looked up: by descriptors that were only paths.
        let path_only = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(root.join("three/file"))
            .unwrap();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .truncate(true)
            .open(format!("/proc/self/fd/{}", path_only.as_raw_fd()))
            .unwrap();
        file.write_all(b"again").unwrap();
        file.set_len(3).unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "aga");
        fs::remove_file(root.join("three/file")).unwrap();
        // A file without a name, and one that has lost it.
        OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open(root)
            .unwrap();
        fs::remove_file(root.join("one/link")).unwrap();
        OpenOptions::new()
            .read(true)
            .open(format!("/proc/self/fd/{}", path_only.as_raw_fd()))
            .unwrap();
        fs::remove_dir_all(root.join("three")).unwrap();
    });
}

#[test]
fn outside_nothing_opens() {
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    std::os::unix::fs::symlink(&secret, inside.path().join("link")).unwrap();
    let path_only = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(&secret)
        .unwrap();
    let held = File::open(&secret).unwrap();
    let before = capabilities(None).unwrap();
    let area = Area {
        root: inside.path(),
        read_only: false,
    };
    fenced(&[area], || {
        let refused = |result: io::Result<()>| {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
        };
        refused(fs::read(&secret).map(drop));
        refused(fs::write(&secret, "x"));
        refused(fs::read(inside.path().join("link")).map(drop));
        refused(fs::read(format!("/proc/self/fd/{}", path_only.as_raw_fd())).map(drop));
        refused(fs::read_dir(outside.path()).map(drop));
        refused(fs::write(outside.path().join("new"), "x"));
        refused(fs::remove_file(&secret));
        // A connection would be refused in other words.
        refused(std::net::TcpStream::connect("127.0.0.1:1").map(drop));
        assert!(
            !capabilities(None)
                .unwrap()
                .permitted
                .contains(CapabilitySet::DAC_READ_SEARCH)
        );
        // What is open stays so, and threads inherit.
        (&held).read_exact(&mut [0; 6]).unwrap();
        let secret = secret.clone();
        refused(
            std::thread::spawn(move || fs::read(secret).map(drop))
                .join()
                .unwrap(),
        );
    });
    // The others are as free as before.
    assert_eq!(capabilities(None).unwrap(), before);
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
}

#[test]
fn an_area_for_reading_takes_no_writes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "contents").unwrap();
    let area = Area {
        root: dir.path(),
        read_only: true,
    };
    fenced(&[area], || {
        assert_eq!(fs::read(&file).unwrap(), b"contents");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        for refused in [
            OpenOptions::new().write(true).open(&file).map(drop),
            fs::write(dir.path().join("new"), "x"),
            fs::remove_file(&file),
            fs::create_dir(dir.path().join("dir")),
        ] {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);
        }
    });
}

#[test]
fn a_directory_that_is_open_may_get_another_name() {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (dir.path().join("before"), dir.path().join("after"));
    fs::create_dir(&before).unwrap();
    let open = File::open(&before).unwrap();
    let fence = Fence::around([(open.as_fd(), false)]).unwrap();
    fs::rename(&before, &after).unwrap();
    fs::create_dir(&before).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if fence.enter().unwrap() == Confinement::None {
                return;
            }
            fs::write(after.join("file"), "x").unwrap();
            let error = fs::write(before.join("file"), "x").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        });
    });
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    if !kernel_has_landlock() {
        return;
    }
    let area = Area {
        root: Path::new("/nowhere/at all"),
        read_only: true,
    };
    let error = Fence::new([area]).unwrap_err();
    let text = std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string);
    assert!(text.contains("/nowhere/at all"), "{text}");
}
