//! Requests that do not have the form they should, and replies that would not fit.

use super::*;
use crate::filesystem::Errno;
use crate::testing::{Answer, request_bytes};
use crate::wire::*;

/// Requests whose body is or ends with a name, with what comes before the name.
fn requests_with_a_name() -> Vec<(Opcode, Vec<u8>)> {
    vec![
        (Opcode::Lookup, vec![]),
        (Opcode::Unlink, vec![]),
        (Opcode::Rmdir, vec![]),
        (Opcode::Mknod, MknodIn::default().to_vec()),
        (Opcode::Mkdir, MkdirIn::default().to_vec()),
        (Opcode::Link, LinkIn { oldnodeid: ROOT_ID }.to_vec()),
        (Opcode::Create, CreateIn::default().to_vec()),
        (Opcode::Rename, with(&RenameIn { newdir: ROOT_ID }, b"first\0")),
        (
            Opcode::Rename2,
            with(
                &Rename2In {
                    newdir: ROOT_ID,
                    ..Rename2In::default()
                },
                b"first\0",
            ),
        ),
    ]
}

#[test]
fn names_that_no_directory_has_reach_no_file_system() {
    let client = client();
    let long = |length| [vec![b'n'; length], vec![0]].concat();
    let cases: &[(&[u8], i32)] = &[
        (b"\0", libc::EINVAL),
        (b"..\0", libc::EINVAL),
        (b"a/b\0", libc::EINVAL),
        (b"/\0", libc::EINVAL),
        (b"../x\0", libc::EINVAL),
        (b"name", libc::EINVAL),
        (b"", libc::EINVAL),
        (b"one\0two\0", libc::EINVAL),
        (b"name\0\0", libc::EINVAL),
        (&long(256), libc::ENAMETOOLONG),
        (&long(3000), libc::ENAMETOOLONG),
    ];
    for (opcode, before) in requests_with_a_name() {
        for &(name, errno) in cases.iter().chain([&(&b".\0"[..], libc::EINVAL)]) {
            if opcode == Opcode::Lookup && matches!(name, b".\0" | b"..\0") {
                continue;
            }
            let body = [&before, name].concat();
            let errno = match opcode {
                // Both names are taken at once, so a long rest is seen only when it is longer than two names.
                Opcode::Rename | Opcode::Rename2 if name.len() == 257 => libc::ENAMETOOLONG,
                _ => errno,
            };
            let label = String::from_utf8_lossy(&name[..name.len().min(20)]);
            assert_eq!(
                client.call(opcode, ROOT_ID, &body),
                Err(Errno(errno)),
                "{opcode:?} {label:?}"
            );
        }
    }
    assert_eq!(client.fs().held(), (0, 0));
    assert_eq!(client.fs().nodes(), 1);
}

#[test]
fn names_that_a_directory_can_have_do() {
    let client = client();
    let mkdir = MkdirIn::default();
    for name in [
        &[b'n'; 255][..],
        b"\xff\xfe",
        b"...",
        b". ",
        b"..a",
        b"-rf *\n",
        b"\\",
    ] {
        let name = [name, b"\0"].concat();
        client.call(Opcode::Mkdir, ROOT_ID, &with(&mkdir, &name)).unwrap();
        client.call(Opcode::Lookup, ROOT_ID, &name).unwrap();
    }
}

#[test]
fn targets_of_symbolic_links_are_not_names() {
    let client = client();
    let make = |name: &[u8], target: &[u8]| {
        client.call(Opcode::Symlink, ROOT_ID, &[name, b"\0", target, b"\0"].concat())
    };
    make(b"a", b"/any/../where//").unwrap();
    make(b"b", &[b't'; 4095]).unwrap();
    assert_eq!(make(b"c", b""), Err(Errno(libc::ENOENT)));
    assert_eq!(make(b"c", &[b't'; 4096]), Err(Errno(libc::ENAMETOOLONG)));
    assert_eq!(make(b"c", &[b't'; 9000]), Err(Errno(libc::ENAMETOOLONG)));
    assert_eq!(make(b"c/d", b"t"), Err(Errno(libc::EINVAL)));
    assert_eq!(
        client.call(Opcode::Symlink, ROOT_ID, b"c\0t"),
        Err(Errno(libc::EINVAL))
    );
}

#[test]
fn lookups_of_dots_are_the_nodes_they_mean() {
    let client = client();
    let dir: EntryOut = client
        .get(Opcode::Mkdir, ROOT_ID, &with(&MkdirIn::default(), b"dir\0"))
        .unwrap();
    let node = |name: &[u8]| {
        client
            .get::<EntryOut>(Opcode::Lookup, dir.nodeid, name)
            .unwrap()
            .nodeid
    };
    assert_eq!((node(b".\0"), node(b"..\0")), (dir.nodeid, ROOT_ID));
}

#[test]
fn truncated_requests_are_refused() {
    let client = client();
    create(&client, b"a\0").unwrap();
    let held = (client.fs().held(), client.fs().nodes());
    let wanted = [
        (Opcode::Getattr, GetattrIn::SIZE),
        (Opcode::Statx, StatxIn::SIZE),
        (Opcode::Setattr, SetattrIn::SIZE),
        (Opcode::Mknod, MknodIn::SIZE + 2),
        (Opcode::Mkdir, MkdirIn::SIZE + 2),
        (Opcode::Rename, RenameIn::SIZE + 4),
        (Opcode::Rename2, Rename2In::SIZE + 4),
        (Opcode::Link, LinkIn::SIZE + 2),
        (Opcode::Open, OpenIn::SIZE),
        (Opcode::Opendir, OpenIn::SIZE),
        (Opcode::Create, CreateIn::SIZE + 2),
        (Opcode::Tmpfile, CreateIn::SIZE),
        (Opcode::Read, ReadIn::SIZE),
        (Opcode::Readdir, ReadIn::SIZE),
        (Opcode::Readdirplus, ReadIn::SIZE),
        (Opcode::Write, WriteIn::SIZE),
        (Opcode::Release, ReleaseIn::SIZE),
        (Opcode::Releasedir, ReleaseIn::SIZE),
        (Opcode::Flush, FlushIn::SIZE),
        (Opcode::Fsync, FsyncIn::SIZE),
        (Opcode::Fsyncdir, FsyncIn::SIZE),
        (Opcode::Setxattr, SetxattrIn::SIZE + 1),
        (Opcode::Getxattr, GetxattrIn::SIZE + 1),
        (Opcode::Listxattr, GetxattrIn::SIZE),
        (Opcode::Removexattr, 1),
        (Opcode::Access, AccessIn::SIZE),
        (Opcode::Getlk, LkIn::SIZE),
        (Opcode::Setlk, LkIn::SIZE),
        (Opcode::Setlkw, LkIn::SIZE),
        (Opcode::Lseek, LseekIn::SIZE),
        (Opcode::Fallocate, FallocateIn::SIZE),
        (Opcode::CopyFileRange, CopyFileRangeIn::SIZE),
        (Opcode::Init, InitInShort::SIZE),
    ];
    for (opcode, size) in wanted {
        for short in [0, size / 2, size - 1] {
            let answer = client.call(opcode, ROOT_ID, &vec![0; short]);
            assert_eq!(answer, Err(Errno(libc::EINVAL)), "{opcode:?} with {short} bytes");
        }
    }
    assert_eq!((client.fs().held(), client.fs().nodes()), held);
}

#[test]
fn the_length_in_the_header_counts() {
    let client = client();
    let whole = request_bytes(Opcode::Lookup as u32, 8, ROOT_ID, b"name\0");
    let with_length = |length: u32| [&length.to_le_bytes(), &whole[4..]].concat();
    let answer = |request: &[u8]| client.send(request, 4096);
    let (missing, malformed) = (
        Answer::Error(Errno(libc::ENOENT)),
        Answer::Error(Errno(libc::EINVAL)),
    );
    assert_eq!(answer(&whole), missing);
    for length in [0, 39, 46, u32::MAX] {
        assert_eq!(answer(&with_length(length)), malformed, "{length}");
    }
    assert_eq!(answer(&with_length(44)), malformed, "the name ends without a NUL");
    assert_eq!(answer(&[&whole[..], b"behind the request"].concat()), missing);
    for cut in 0..whole.len() {
        assert_eq!(answer(&whole[..cut]), malformed, "{cut} bytes");
    }
    assert_eq!(answer(b""), malformed);
}

#[test]
fn extensions_are_not_part_of_the_name() {
    let client = client();
    let name_and_extension = [b"dir\0".as_slice(), &[7; 16]].concat();
    let mut request = request_bytes(
        Opcode::Mkdir as u32,
        8,
        ROOT_ID,
        &with(&MkdirIn::default(), &name_and_extension),
    );
    request[36] = 2;
    assert!(matches!(client.send(&request, 4096), Answer::Success(_)));
    client.call(Opcode::Lookup, ROOT_ID, b"dir\0").unwrap();
    request[36..38].fill(0xff);
    assert_eq!(client.send(&request, 4096), Answer::Error(Errno(libc::EINVAL)));
}

#[test]
fn a_request_without_room_for_its_reply_does_nothing() {
    let client = client();
    create(&client, b"a\0").unwrap();
    let held = client.fs().held();
    let mkdir = with(&MkdirIn::default(), b"dir\0");
    let make = with(&CreateIn::default(), b"b\0");
    for (opcode, body) in [
        (Opcode::Lookup, b"a\0".to_vec()),
        (Opcode::Mkdir, mkdir),
        (Opcode::Create, make),
        (Opcode::Symlink, b"sym\0to\0".to_vec()),
        (Opcode::Open, OpenIn::default().to_vec()),
        (Opcode::Opendir, OpenIn::default().to_vec()),
        (Opcode::Unlink, b"a\0".to_vec()),
    ] {
        for room in 0..OutHeader::SIZE + opcode.reply_size() {
            let request = request_bytes(opcode as u32, 8, ROOT_ID, &body);
            let expected = if room < OutHeader::SIZE {
                Answer::None
            } else {
                Answer::Error(Errno(libc::EINVAL))
            };
            assert_eq!(
                client.send(&request, room),
                expected,
                "{opcode:?} with {room} bytes"
            );
        }
    }
    assert_eq!(client.fs().held(), held);
    assert_eq!(client.fs().nodes(), 2);
}

#[test]
fn what_nobody_knows_is_not_implemented() {
    let client = client();
    for opcode in [0, 7, 53, 4096, 436_207_616, u32::MAX] {
        let request = request_bytes(opcode, 8, ROOT_ID, &[0; 100]);
        assert_eq!(
            client.send(&request, 4096),
            Answer::Error(Errno(libc::ENOSYS)),
            "{opcode}"
        );
    }
}

#[test]
fn open_flags_are_checked() {
    let client = client();
    let (entry, _) = create(&client, b"a\0").unwrap();
    let open = |flags: i32| {
        let arg = OpenIn {
            flags: flags as u32,
            open_flags: 0,
        };
        client.call(Opcode::Open, entry.nodeid, &arg.to_vec())
    };
    assert_eq!(open(libc::O_ACCMODE), Err(Errno(libc::EINVAL)));
    open(libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | 0x20).unwrap();
    let rename = |flags| {
        let arg = Rename2In {
            newdir: ROOT_ID,
            flags,
            padding: 0,
        };
        client.call(Opcode::Rename2, ROOT_ID, &with(&arg, b"a\0b\0"))
    };
    for flags in [8, 3, 6, 7, u32::MAX] {
        assert_eq!(rename(flags), Err(Errno(libc::EINVAL)), "{flags}");
    }
    rename(1).unwrap();
    let mknod = |kind| {
        let arg = MknodIn {
            mode: kind | 0o600,
            ..MknodIn::default()
        };
        client.call(Opcode::Mknod, ROOT_ID, &with(&arg, b"n\0"))
    };
    for kind in [libc::S_IFDIR, libc::S_IFLNK, libc::S_IFMT] {
        assert_eq!(mknod(kind), Err(Errno(libc::EINVAL)), "{kind:o}");
    }
}

#[test]
fn a_write_of_more_than_the_request_has_is_refused() {
    let client = client();
    let (entry, opened) = create(&client, b"a\0").unwrap();
    let write = |size, data: &[u8]| {
        let arg = WriteIn {
            fh: opened.fh,
            size,
            ..WriteIn::default()
        };
        client.call(Opcode::Write, entry.nodeid, &with(&arg, data))
    };
    assert_eq!(write(4, b"abc"), Err(Errno(libc::EINVAL)));
    assert_eq!(write(u32::MAX, b"abc"), Err(Errno(libc::EINVAL)));
    assert_eq!(write(0, b"").unwrap(), [0; 8]);
    let attr: AttrOut = client
        .get(Opcode::Getattr, entry.nodeid, &GetattrIn::default().to_vec())
        .unwrap();
    assert_eq!(attr.attr.size, 0);
}
