//! Contents of files.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use super::support::*;
use crate::buffers::memory::{MemoryReply, MemoryRequest};
use crate::filesystem::{FileSystem, SetAttr, SetTime};
use crate::passthrough::{CachePolicy, PassthroughConfig};
use crate::wire::{FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_PARALLEL_DIRECT_WRITES, ROOT_ID};

#[test]
fn what_is_written_is_read_here_and_there() {
    let world = World::new();
    let (node, handle) = world.create(&ROOT, "file", 0o644);
    assert_eq!(world.write(node, handle, 0, b"hello world").unwrap(), 11);
    assert_eq!(world.write(node, handle, 6, b"berth").unwrap(), 5);
    assert_eq!(world.read(node, handle, 0, 100).unwrap(), b"hello berth");
    assert_eq!(world.read(node, handle, 6, 2).unwrap(), b"be");
    assert_eq!(world.read(node, handle, 11, 10).unwrap(), b"");
    assert_eq!(world.read(node, handle, 1 << 40, 10).unwrap(), b"");
    assert_eq!(std::fs::read(world.host("file")).unwrap(), b"hello berth");
    // Without a handle, for guests that open nothing.
    assert_eq!(world.write(node, 0, 0, b"HELLO").unwrap(), 5);
    assert_eq!(world.read(node, 0, 0, 100).unwrap(), b"HELLO berth");
    world.fs.fsync(&ROOT, node, handle, false).unwrap();
    world.fs.fsync(&ROOT, node, 0, true).unwrap();
    world.fs.flush(&ROOT, node, handle, 1).unwrap();
    world.fs.release(&ROOT, node, handle, None).unwrap();
    assert_eq!(world.read(node, handle, 0, 1).unwrap_err(), Errno(libc::EBADF));
    world.fs.syncfs(&ROOT, node).unwrap();
}

#[test]
fn a_handle_does_what_it_was_opened_for() {
    let world = World::new();
    let (node, _) = world.create(&ROOT, "file", 0o644);
    let read = world.open(node, libc::O_RDONLY).unwrap().handle;
    assert_eq!(world.write(node, read, 0, b"x").unwrap_err(), Errno(libc::EBADF));
    let write = world.open(node, libc::O_WRONLY).unwrap().handle;
    assert_eq!(world.read(node, write, 0, 1).unwrap_err(), Errno(libc::EBADF));
    world.write(node, write, 0, b"text").unwrap();
    world.open(node, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(world.attr(&ROOT, node).size, 0);
    assert_eq!(
        world.open(ROOT_ID, libc::O_RDONLY).unwrap_err(),
        Errno(libc::EISDIR)
    );
}

#[test]
fn appending_is_at_the_end_that_the_host_knows() {
    let world = World::new();
    let (node, _) = world.create(&ROOT, "log", 0o644);
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let handle = world.open(node, flags).unwrap().handle;
    world.write_with(node, handle, 0, b"one\n", flags, false).unwrap();
    std::fs::write(world.host("log"), "one\nhost\n").unwrap();
    // The guest thinks the file has 4 bytes.
    world.write_with(node, handle, 4, b"two\n", flags, false).unwrap();
    assert_eq!(
        std::fs::read_to_string(world.host("log")).unwrap(),
        "one\nhost\ntwo\n"
    );
    // Pages written back have their place, whatever the flags say.
    let mut from = MemoryRequest::new(b"ONE");
    let written = world
        .fs
        .write(&ROOT, node, handle, 0, 3, &mut from, true, false, flags as u32);
    assert_eq!(written.unwrap(), 3);
    assert_eq!(
        std::fs::read_to_string(world.host("log")).unwrap(),
        "ONE\nhost\ntwo\n"
    );
}

#[test]
fn files_longer_than_four_gigabytes_and_with_holes() {
    let world = World::new();
    let (node, handle) = world.create(&ROOT, "sparse", 0o644);
    let far = 5 << 30;
    world.write(node, handle, far, b"end").unwrap();
    let attr = world.attr(&ROOT, node);
    assert_eq!(attr.size, far + 3);
    assert!(attr.blocks < 1000, "it is not all there");
    assert_eq!(world.read(node, handle, far, 10).unwrap(), b"end");
    assert_eq!(world.read(node, handle, far - 2, 3).unwrap(), b"\0\0e");
    let fs = &world.fs;
    let data = fs.lseek(&ROOT, node, handle, 0, libc::SEEK_DATA as u32).unwrap();
    assert!(data > 0 && data <= far);
    assert_eq!(
        fs.lseek(&ROOT, node, handle, 0, libc::SEEK_HOLE as u32).unwrap(),
        0
    );
    assert_eq!(
        fs.lseek(&ROOT, node, handle, data, libc::SEEK_HOLE as u32)
            .unwrap(),
        far + 3
    );
    let past = fs.lseek(&ROOT, node, handle, far + 10, libc::SEEK_DATA as u32);
    assert_eq!(past.unwrap_err(), Errno(libc::ENXIO));
    assert_eq!(
        fs.lseek(&ROOT, node, handle, 0, libc::SEEK_END as u32)
            .unwrap_err(),
        Errno(libc::EINVAL)
    );
    // Beyond what there can be.
    assert_eq!(
        world.write(node, handle, u64::MAX - 1, b"xy").unwrap_err(),
        Errno(libc::EINVAL)
    );
    assert_eq!(
        world.write(node, handle, i64::MAX as u64, b"x").unwrap_err(),
        Errno(libc::EFBIG)
    );
}

#[test]
fn truncating_by_name_by_handle_and_after_removal() {
    let world = World::new();
    let fs = &world.fs;
    let (node, handle) = world.create(&ROOT, "file", 0o644);
    world.write(node, handle, 0, b"0123456789").unwrap();
    let size = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    assert_eq!(fs.setattr(&ROOT, node, None, &size(5)).unwrap().0.size, 5);
    assert_eq!(fs.setattr(&ROOT, node, Some(handle), &size(7)).unwrap().0.size, 7);
    let read = world.open(node, libc::O_RDONLY).unwrap().handle;
    assert_eq!(fs.setattr(&ROOT, node, Some(read), &size(6)).unwrap().0.size, 6);
    fs.unlink(&ROOT, ROOT_ID, c"file").unwrap();
    assert_eq!(fs.setattr(&ROOT, node, Some(handle), &size(3)).unwrap().0.size, 3);
    assert_eq!(world.read(node, read, 0, 10).unwrap(), b"012");
    let dir = fs.setattr(&ROOT, ROOT_ID, None, &size(0));
    assert_eq!(dir.unwrap_err(), Errno(libc::EISDIR));
}

#[test]
fn times_are_set_to_the_nanosecond() {
    let world = World::new();
    let (node, handle) = world.create(&ROOT, "file", 0o644);
    let at = |atime, mtime| SetAttr {
        atime,
        mtime,
        ..SetAttr::default()
    };
    let set = at(
        Some(SetTime::At(1, 2)),
        Some(SetTime::At(1_700_000_000, 123_456_789)),
    );
    let (attr, _) = world.fs.setattr(&ROOT, node, None, &set).unwrap();
    assert_eq!((attr.atime, attr.mtime), ((1, 2), (1_700_000_000, 123_456_789)));
    let host = std::fs::metadata(world.host("file")).unwrap();
    assert_eq!((host.mtime(), host.mtime_nsec()), (1_700_000_000, 123_456_789));
    let old = at(Some(SetTime::At(-5, 999_999_999)), None);
    let (attr, _) = world.fs.setattr(&ROOT, node, Some(handle), &old).unwrap();
    assert_eq!(
        (attr.atime, attr.mtime),
        ((-5, 999_999_999), (1_700_000_000, 123_456_789)),
        "one alone"
    );
    let (attr, _) = world
        .fs
        .setattr(&ROOT, node, None, &at(None, Some(SetTime::Now)))
        .unwrap();
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64;
    assert!((now - attr.mtime.0).abs() < 100);
    assert!(attr.btime.is_some());
    // A guest that sends UTIME_OMIT or UTIME_NOW as nanoseconds gets a time, not their meaning.
    let tricky = at(None, Some(SetTime::At(7, (1 << 30) - 2)));
    assert_eq!(
        world.fs.setattr(&ROOT, node, None, &tricky).unwrap().0.mtime,
        (7, 999_999_999)
    );
}

#[test]
fn ranges_are_allocated_punched_and_copied() {
    let world = World::new();
    let fs = &world.fs;
    let (from, a) = world.create(&ROOT, "from", 0o644);
    let (to, b) = world.create(&ROOT, "to", 0o644);
    fs.fallocate(&ROOT, from, a, 0, 0, 10_000).unwrap();
    assert_eq!(world.attr(&ROOT, from).size, 10_000);
    world.write(from, a, 0, &[7; 10_000]).unwrap();
    let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
    fs.fallocate(&ROOT, from, a, punch, 4096, 4096).unwrap();
    assert_eq!(world.read(from, a, 4095, 2).unwrap(), [7, 0]);
    let copied = fs
        .copy_file_range(&ROOT, (from, a, 4000), (to, b, 100), 200, 0)
        .unwrap();
    assert_eq!(copied, 200);
    assert_eq!(
        world.read(to, b, 0, 1000).unwrap(),
        [[0; 100].as_slice(), &[7; 96], &[0; 104]].concat()
    );
    assert_eq!(
        fs.copy_file_range(&ROOT, (from, a, 0), (to, b, 0), 10, 1)
            .unwrap_err(),
        Errno(libc::EINVAL)
    );
    assert!(
        fs.copy_file_range(&ROOT, (from, b, 0), (to, b, 0), 10, 0)
            .is_err(),
        "the wrong handle"
    );
    assert!(fs.fallocate(&ROOT, from, a, 0, u64::MAX, u64::MAX).is_err());
    assert!(fs.fallocate(&ROOT, from, a, 0x8000_0000, 0, 1).is_err());
}

#[test]
fn files_without_a_name_can_get_one() {
    let world = World::new();
    let fs = &world.fs;
    let flags = libc::O_RDWR as u32;
    let (entry, opened) = fs.tmpfile(&user(7), ROOT_ID, 0o600, flags, 0).unwrap();
    assert_eq!((entry.attr.nlink, entry.attr.uid), (0, 7));
    world.write(entry.node, opened.handle, 0, b"text").unwrap();
    fs.close_cached();
    assert_eq!(
        world.attr(&ROOT, entry.node).size,
        4,
        "it is found without a name"
    );
    assert_eq!(fs.store.pins().count(), 1);
    fs.link(&ROOT, entry.node, ROOT_ID, c"named").unwrap();
    assert_eq!(fs.store.pins().count(), 0);
    fs.close_cached();
    assert_eq!(world.node("named"), entry.node);
    assert_eq!(std::fs::read(world.host("named")).unwrap(), b"text");
    assert_eq!(world.attr(&ROOT, entry.node).uid, 7);

    let never = flags | libc::O_EXCL as u32;
    let (entry, _) = fs.tmpfile(&ROOT, ROOT_ID, 0o600, never, 0).unwrap();
    assert_eq!(
        fs.link(&ROOT, entry.node, ROOT_ID, c"never").unwrap_err(),
        Errno(libc::ENOENT)
    );
    fs.forget(entry.node, 1);
    assert_eq!(fs.store.pins().count(), 0);
}

#[test]
fn creating_what_the_host_has_made_meanwhile() {
    let world = World::new();
    std::fs::write(world.host("file"), "there").unwrap();
    let create = |flags: libc::c_int| {
        let flags = (libc::O_RDWR | flags) as u32;
        world.fs.create(&ROOT, ROOT_ID, c"file", 0o600, flags, 0, false)
    };
    assert_eq!(create(libc::O_EXCL).unwrap_err(), Errno(libc::EEXIST));
    let (entry, opened) = create(0).unwrap();
    assert_eq!(world.read(entry.node, opened.handle, 0, 10).unwrap(), b"there");
    let (entry, _) = create(libc::O_TRUNC).unwrap();
    assert_eq!(entry.node, world.node("file"));
    assert_eq!(world.attr(&ROOT, entry.node).size, 0);
    assert!(
        world.create_in(&ROOT, entry.node, "below", 0o600).is_err(),
        "not a directory"
    );
}

#[test]
fn the_umask_of_the_server_does_not_matter() {
    let world = World::new();
    // Whatever it is: typically 022.
    let (file, _) = world.create(&ROOT, "file", 0o666);
    let dir = world.fs.mkdir(&ROOT, ROOT_ID, c"dir", 0o777, 0).unwrap();
    let fifo = world
        .fs
        .mknod(&ROOT, ROOT_ID, c"fifo", libc::S_IFIFO | 0o622, 0, 0)
        .unwrap();
    assert_eq!(world.attr(&ROOT, file).mode & 0o777, 0o666);
    assert_eq!(
        std::fs::metadata(world.host("file")).unwrap().mode() & 0o777,
        0o666
    );
    assert_eq!(dir.attr.mode & 0o777, 0o777);
    assert_eq!(fifo.attr.mode & 0o777, 0o622);
    // The guest's counts when it is sent.
    let masked = world.fs.mkdir(&ROOT, ROOT_ID, c"masked", 0o777, 0o027).unwrap();
    assert_eq!(masked.attr.mode & 0o777, 0o750);
}

#[test]
fn pages_are_kept_while_the_file_is_the_same() {
    let world = World::new();
    std::fs::write(world.host("file"), "old").unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(world.host("file"))
        .unwrap();
    let node = world.node("file");
    let keeps = || world.open(node, libc::O_RDONLY).unwrap().flags & FOPEN_KEEP_CACHE != 0;
    assert!(!keeps(), "the first time");
    assert!(!keeps(), "written too recently to be sure");
    // No way to set ctime: let the clock go on.
    while SystemTime::now()
        .duration_since(file.metadata().unwrap().modified().unwrap())
        .unwrap_or_default()
        < Duration::from_millis(120)
    {
        std::thread::yield_now();
    }
    assert!(!keeps());
    assert!(keeps());
    assert!(keeps());
    let mtime = file.metadata().unwrap().modified().unwrap();
    file.write_at(b"new", 0).unwrap();
    file.set_modified(mtime).unwrap();
    assert!(!keeps(), "same size, same mtime, other contents");
}

#[test]
fn other_cache_policies() {
    let flags = |cache| {
        let world = World::with(PassthroughConfig { cache, ..config() }, |_| {});
        std::fs::write(world.host("file"), "").unwrap();
        world.open(world.node("file"), libc::O_RDONLY).unwrap().flags
    };
    assert_eq!(flags(CachePolicy::Never), FOPEN_DIRECT_IO);
    assert_eq!(flags(CachePolicy::Always), FOPEN_KEEP_CACHE);
}

#[test]
fn what_is_only_written_goes_past_the_cache() {
    let world = World::new();
    let direct = |flags: libc::c_int| {
        let file = name(&format!("file-{flags}"));
        let (entry, made) = world
            .fs
            .create(&ROOT, ROOT_ID, &file, 0o644, flags as u32, 0, false)
            .unwrap();
        let opened = world.open(entry.node, flags).unwrap();
        let direct = made.flags & FOPEN_DIRECT_IO != 0;
        assert_eq!(opened.flags & FOPEN_DIRECT_IO != 0, direct);
        // Of use with the other only.
        assert_eq!(made.flags & FOPEN_PARALLEL_DIRECT_WRITES != 0, direct);
        direct
    };
    assert!(direct(libc::O_WRONLY));
    assert!(direct(libc::O_WRONLY | libc::O_APPEND));
    // These may be mapped, and read again and again.
    assert!(!direct(libc::O_RDWR));
    assert!(!direct(libc::O_RDONLY));
    // Here what is written is worth keeping.
    let always = PassthroughConfig {
        cache: CachePolicy::Always,
        ..config()
    };
    let world = World::with(always, |_| {});
    let flags = libc::O_WRONLY as u32;
    let (_, made) = world
        .fs
        .create(&ROOT, ROOT_ID, c"file", 0o644, flags, 0, false)
        .unwrap();
    assert_eq!(made.flags, FOPEN_KEEP_CACHE);
}

#[test]
fn short_buffers_are_no_more_than_they_are() {
    let world = World::new();
    let (node, handle) = world.create(&ROOT, "file", 0o644);
    world.write(node, handle, 0, &[1; 1000]).unwrap();
    let mut room = [0; 10];
    let mut reply = MemoryReply::new(&mut room);
    assert_eq!(
        world.fs.read(&ROOT, node, handle, 0, 100, &mut reply).unwrap(),
        10
    );
}
