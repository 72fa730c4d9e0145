//! Every request does what it is for.

use super::directories::list;
use super::*;
use crate::buffers::memory::{MemoryReply, MemoryRequest};
use crate::filesystem::Errno;
use crate::testing::{count_allocations, request_bytes};
use crate::wire::*;

#[test]
fn a_file_is_made_written_read_and_removed() {
    let client = client();
    let (entry, opened) = create(&client, b"a\0").unwrap();
    assert_eq!(entry.attr.mode, libc::S_IFREG | 0o644, "the umask is applied");
    assert_eq!((entry.attr.uid, entry.attr.gid), (1000, 1000));
    assert_eq!((entry.entry_valid, entry.entry_valid_nsec), (1, 500_000_000));
    assert_eq!((entry.attr_valid, entry.attr_valid_nsec), (1, 500_000_000));
    let write = WriteIn {
        fh: opened.fh,
        offset: 3,
        size: 5,
        ..WriteIn::default()
    };
    let written: WriteOut = client
        .get(Opcode::Write, entry.nodeid, &with(&write, b"hello and more"))
        .unwrap();
    assert_eq!(written.size, 5, "what lies behind the data is not written");
    let read = |offset, size| ReadIn {
        fh: opened.fh,
        offset,
        size,
        ..ReadIn::default()
    };
    let get = |offset, size| client.call(Opcode::Read, entry.nodeid, &read(offset, size).to_vec());
    assert_eq!(get(0, 100).unwrap(), b"\0\0\0hello");
    assert_eq!(
        get(4, 3).unwrap(),
        b"ell",
        "no more than asked, though there is room"
    );
    assert_eq!(get(8, 100).unwrap(), b"");
    assert_eq!(
        get(8, 5000),
        Err(Errno(libc::EINVAL)),
        "more than there is room for"
    );

    let attr: AttrOut = client
        .get(Opcode::Getattr, entry.nodeid, &GetattrIn::default().to_vec())
        .unwrap();
    assert_eq!(attr.attr.size, 8);
    let statx: StatxOut = client
        .get(Opcode::Statx, entry.nodeid, &StatxIn::default().to_vec())
        .unwrap();
    assert_eq!((statx.size, statx.mask), (8, STATX_BASIC_STATS));

    let fsync = FsyncIn {
        fh: opened.fh,
        ..FsyncIn::default()
    };
    let flush = FlushIn {
        fh: opened.fh,
        ..FlushIn::default()
    };
    let release = ReleaseIn {
        fh: opened.fh,
        ..ReleaseIn::default()
    };
    client.call(Opcode::Unlink, ROOT_ID, b"a\0").unwrap();
    assert_eq!(
        get(3, 5).unwrap(),
        b"hello",
        "a removed file lives while it is open"
    );
    for (opcode, body) in [
        (Opcode::Fsync, fsync.to_vec()),
        (Opcode::Flush, flush.to_vec()),
        (Opcode::Release, release.to_vec()),
    ] {
        assert_eq!(client.call(opcode, entry.nodeid, &body), Ok(vec![]), "{opcode:?}");
    }
    assert_eq!(
        client.call(Opcode::Lookup, ROOT_ID, b"a\0"),
        Err(Errno(libc::ENOENT))
    );
    client.tell(Opcode::Forget, entry.nodeid, &1u64.to_le_bytes());
    assert_eq!(client.fs().nodes(), 1);
}

#[test]
fn names_are_made_linked_moved_and_listed() {
    let client = client();
    let mkdir = MkdirIn {
        mode: 0o40_777,
        umask: 0o27,
    };
    let dir: EntryOut = client
        .get(Opcode::Mkdir, ROOT_ID, &with(&mkdir, b"dir\0"))
        .unwrap();
    assert_eq!(dir.attr.mode, libc::S_IFDIR | 0o750);
    let mknod = MknodIn {
        mode: libc::S_IFIFO | 0o600,
        rdev: 0,
        umask: 0,
        padding: 0,
    };
    let fifo: EntryOut = client
        .get(Opcode::Mknod, dir.nodeid, &with(&mknod, b"fifo\0"))
        .unwrap();
    assert_eq!(fifo.attr.mode, libc::S_IFIFO | 0o600);
    let symlink: EntryOut = client
        .get(Opcode::Symlink, dir.nodeid, b"sym\0../to/where\0")
        .unwrap();
    assert_eq!(
        client.call(Opcode::Readlink, symlink.nodeid, b"").unwrap(),
        b"../to/where"
    );
    let link = LinkIn {
        oldnodeid: fifo.nodeid,
    };
    let linked: EntryOut = client
        .get(Opcode::Link, ROOT_ID, &with(&link, b"hard\0"))
        .unwrap();
    assert_eq!((linked.nodeid, linked.attr.nlink), (fifo.nodeid, 2));

    let rename = RenameIn { newdir: ROOT_ID };
    client
        .call(Opcode::Rename, dir.nodeid, &with(&rename, b"sym\0moved\0"))
        .unwrap();
    let rename2 = Rename2In {
        newdir: ROOT_ID,
        flags: libc::RENAME_NOREPLACE,
        padding: 0,
    };
    let refused = client.call(Opcode::Rename2, dir.nodeid, &with(&rename2, b"fifo\0moved\0"));
    assert_eq!(refused, Err(Errno(libc::EEXIST)));
    assert_eq!(
        client.call(Opcode::Rmdir, ROOT_ID, b"dir\0"),
        Err(Errno(libc::ENOTEMPTY))
    );
    client.call(Opcode::Unlink, dir.nodeid, b"fifo\0").unwrap();
    client.call(Opcode::Rmdir, ROOT_ID, b"dir\0").unwrap();
    assert_eq!(list(&client, false).keys().collect::<Vec<_>>(), ["hard", "moved"]);

    // As Linux sends it: after the header and structure the name "/".
    let tmpfile = CreateIn::default();
    let reply = client
        .call(Opcode::Tmpfile, ROOT_ID, &with(&tmpfile, b"/\0"))
        .unwrap();
    assert_eq!(EntryOut::decode(&reply).unwrap().attr.nlink, 0);
}

#[test]
fn attributes_are_set() {
    let client = client();
    let (entry, _) = create(&client, b"a\0").unwrap();
    let set = |arg: SetattrIn| client.get::<AttrOut>(Opcode::Setattr, entry.nodeid, &arg.to_vec());
    let arg = SetattrIn {
        valid: FATTR_MODE | FATTR_UID | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME | FATTR_MTIME_NOW,
        mode: libc::S_IFDIR | 0o4711,
        uid: 5,
        gid: 6,
        size: 10,
        atime: -7,
        atimensec: 8,
        mtime: 9,
        ..SetattrIn::default()
    };
    let attr = set(arg).unwrap().attr;
    assert_eq!(attr.mode, libc::S_IFREG | 0o4711, "the type stays");
    assert_eq!((attr.uid, attr.gid, attr.size), (5, 1000, 10));
    assert_eq!((attr.atime, attr.atimensec), (-7, 8));
    assert_eq!(attr.mtime, 1, "now is not the time given");
    let wrong = |valid, size, nanoseconds| SetattrIn {
        valid,
        size,
        atimensec: nanoseconds,
        ..SetattrIn::default()
    };
    assert_eq!(set(wrong(FATTR_SIZE, 1 << 63, 0)), Err(Errno(libc::EINVAL)));
    assert_eq!(
        set(wrong(FATTR_ATIME, 0, 1_000_000_000)),
        Err(Errno(libc::EINVAL))
    );
    assert_eq!(
        set(wrong(FATTR_UID | FATTR_ATIME, 0, u32::MAX)),
        Err(Errno(libc::EINVAL))
    );
    assert_eq!(
        set(wrong(0, 0, 0)).unwrap().attr.uid,
        5,
        "nothing of a refused change happens"
    );
}

#[test]
fn extended_attributes_in_their_two_answers() {
    let client = client();
    let set = |name: &[u8], value: &[u8], flags: u32| {
        let start = SetxattrInShort {
            size: value.len() as u32,
            flags,
        };
        let arg = SetxattrIn {
            start,
            ..SetxattrIn::default()
        };
        client.call(Opcode::Setxattr, ROOT_ID, &[&arg.to_vec(), name, value].concat())
    };
    let get = |name: &[u8], size: u32| {
        client.call(
            Opcode::Getxattr,
            ROOT_ID,
            &with(&GetxattrIn { size, padding: 0 }, name),
        )
    };
    set(b"user.a\0", b"value\0with\0nuls", 0).unwrap();
    set(b"user.b\0", b"", libc::XATTR_CREATE as u32).unwrap();
    assert_eq!(
        set(b"user.b\0", b"", libc::XATTR_CREATE as u32),
        Err(Errno(libc::EEXIST))
    );
    assert_eq!(set(b"user.b\0", b"", 4), Err(Errno(libc::EINVAL)));
    assert_eq!(set(b"\0", b"", 0), Err(Errno(libc::ERANGE)));
    assert_eq!(
        set(&[b'n'; 257], b"", 0),
        Err(Errno(libc::EINVAL)),
        "a name without an end"
    );
    let long = [[b'n'; 256].as_slice(), b"\0"].concat();
    assert_eq!(set(&long, b"", 0), Err(Errno(libc::ERANGE)));
    assert_eq!(set(b"user.c\0", &vec![0; 65537], 0), Err(Errno(libc::E2BIG)));
    set(b"user.c\0", &vec![0; 65536], 0).unwrap();

    assert_eq!(get(b"user.a\0", 100).unwrap(), b"value\0with\0nuls");
    assert_eq!(get(b"user.a\0", 15).unwrap().len(), 15);
    assert_eq!(get(b"user.a\0", 14), Err(Errno(libc::ERANGE)));
    let size = GetxattrOut::decode(&get(b"user.a\0", 0).unwrap()).unwrap();
    assert_eq!(size.size, 15);
    assert_eq!(
        get(b"user.c\0", 65536),
        Err(Errno(libc::EINVAL)),
        "no more than there is room for"
    );
    client.call(Opcode::Removexattr, ROOT_ID, b"user.c\0").unwrap();
    assert_eq!(get(b"user.c\0", 0), Err(Errno(libc::ENODATA)));
    let list = |size| {
        let arg = GetxattrIn { size, padding: 0 };
        client.call(Opcode::Listxattr, ROOT_ID, &arg.to_vec())
    };
    assert_eq!(list(100).unwrap(), b"user.a\0user.b\0");
    assert_eq!(list(13), Err(Errno(libc::ERANGE)));
    assert_eq!(list(0).unwrap(), 14u64.to_le_bytes());
}

#[test]
fn positions_in_files() {
    let client = client();
    let (entry, opened) = create(&client, b"a\0").unwrap();
    let (node, fh) = (entry.nodeid, opened.fh);
    let fallocate = |offset, length, mode| {
        let arg = FallocateIn {
            fh,
            offset,
            length,
            mode,
            padding: 0,
        };
        client.call(Opcode::Fallocate, node, &arg.to_vec())
    };
    assert_eq!(fallocate(0, 100, 0), Ok(vec![]));
    assert_eq!(fallocate(0, 0, 0), Err(Errno(libc::EINVAL)));
    assert_eq!(fallocate(1 << 62, 1 << 62, 0), Err(Errno(libc::EFBIG)));
    assert_eq!(fallocate(u64::MAX, 1, 0), Err(Errno(libc::EFBIG)));
    assert_eq!(
        fallocate(0, 1 << 40, 0),
        Err(Errno(libc::ENOSPC)),
        "the file system's own errors pass"
    );
    let lseek = |offset, whence: i32| {
        let arg = LseekIn {
            fh,
            offset,
            whence: whence as u32,
            padding: 0,
        };
        client
            .get::<LseekOut>(Opcode::Lseek, node, &arg.to_vec())
            .map(|out| out.offset)
    };
    assert_eq!(lseek(5, libc::SEEK_HOLE), Ok(100));
    assert_eq!(lseek(5, libc::SEEK_DATA), Ok(5));
    assert_eq!(lseek(5, libc::SEEK_END), Err(Errno(libc::EINVAL)));
    assert_eq!(lseek(1 << 63, libc::SEEK_DATA), Err(Errno(libc::EINVAL)));
    let copy = |off_in, off_out, len, flags| {
        let arg = CopyFileRangeIn {
            fh_in: fh,
            off_in,
            nodeid_out: node,
            fh_out: fh,
            off_out,
            len,
            flags,
        };
        client
            .get::<WriteOut>(Opcode::CopyFileRange, node, &arg.to_vec())
            .map(|out| out.size)
    };
    assert_eq!(copy(0, 100, 30, 0), Ok(30));
    assert_eq!(copy(0, 130, u64::MAX, 0), Ok(130), "as much as there is");
    assert_eq!(copy(0, 0, 1, 1), Err(Errno(libc::EINVAL)));
    assert_eq!(copy(1 << 63, 0, 1, 0), Err(Errno(libc::EINVAL)));
    let read = ReadIn {
        fh,
        offset: 1 << 63,
        size: 1,
        ..ReadIn::default()
    };
    assert_eq!(
        client.call(Opcode::Read, node, &read.to_vec()),
        Err(Errno(libc::EINVAL))
    );
}

#[test]
fn what_there_is_not_is_said_in_the_way_the_guest_stops_asking() {
    let client = client();
    for (opcode, errno) in [
        (Opcode::Ioctl, libc::ENOTTY),
        (Opcode::Poll, libc::ENOSYS),
        (Opcode::Bmap, libc::ENOSYS),
        (Opcode::Setupmapping, libc::ENOSYS),
        (Opcode::Removemapping, libc::ENOSYS),
    ] {
        assert_eq!(
            client.call(opcode, ROOT_ID, &[0; 64]),
            Err(Errno(errno)),
            "{opcode:?}"
        );
    }
}

#[test]
fn the_file_system_as_a_whole() {
    let client = client();
    let stat: Kstatfs = client.get(Opcode::Statfs, ROOT_ID, b"").unwrap();
    assert_eq!((stat.bsize, stat.namelen, stat.files), (4096, 255, 1));
    assert_eq!(client.call(Opcode::Syncfs, ROOT_ID, &[0; 8]), Ok(vec![]));
    assert_eq!(client.call(Opcode::Syncfs, 77, &[0; 8]), Err(Errno(libc::ESTALE)));
    let access = |mask| client.call(Opcode::Access, ROOT_ID, &AccessIn { mask, padding: 0 }.to_vec());
    assert_eq!(access(7), Ok(vec![]));
    assert_eq!(access(8), Err(Errno(libc::EINVAL)));
}

#[test]
fn the_usual_requests_are_handled_without_allocating() {
    let client = client();
    let (entry, opened) = create(&client, b"a\0").unwrap();
    let write = WriteIn {
        fh: opened.fh,
        size: 4096,
        ..WriteIn::default()
    };
    let read = ReadIn {
        fh: opened.fh,
        size: 4096,
        ..ReadIn::default()
    };
    let write = with(&write, &[1; 4096]);
    client.call(Opcode::Write, entry.nodeid, &write).unwrap();
    for (opcode, node, body) in [
        (Opcode::Write, entry.nodeid, write),
        (Opcode::Read, entry.nodeid, read.to_vec()),
        (Opcode::Getattr, entry.nodeid, GetattrIn::default().to_vec()),
        (Opcode::Statx, entry.nodeid, StatxIn::default().to_vec()),
        (Opcode::Lookup, ROOT_ID, b"a\0".to_vec()),
        (Opcode::Forget, entry.nodeid, 1u64.to_le_bytes().to_vec()),
    ] {
        let request = request_bytes(opcode as u32, 8, node, &body);
        let mut room = [0; 8192];
        let mut written = 0;
        let allocations = count_allocations(|| {
            let reply = MemoryReply::new(&mut room);
            written = client.server.handle(MemoryRequest::new(&request), reply);
        });
        assert_eq!(allocations, 0, "{opcode:?}");
        assert_eq!(written > 0, opcode.has_reply());
    }
}
