//! Sizes and places as the header has them; whatever is encoded is decoded again; too few bytes are no structure.

use proptest::prelude::*;

use super::*;
use crate::filesystem::Attr;

/// Decodes, encodes, and compares, with every length.
fn round_trip<T: Wire + PartialEq + std::fmt::Debug>(size: usize, bytes: &[u8]) {
    assert_eq!(T::SIZE, size, "{}", std::any::type_name::<T>());
    let bytes = &bytes[..size];
    let value = T::decode(bytes).unwrap();
    assert_eq!(value.to_vec(), bytes, "{value:?}");
    for short in 0..size {
        assert_eq!(T::decode(&bytes[..short]), None);
    }
}

proptest! {
    #[test]
    fn structures_have_the_sizes_of_the_header(bytes in proptest::collection::vec(any::<u8>(), 320)) {
        round_trip::<InHeader>(40, &bytes);
        round_trip::<OutHeader>(16, &bytes);
        round_trip::<ForgetIn>(8, &bytes);
        round_trip::<BatchForgetIn>(8, &bytes);
        round_trip::<ForgetOne>(16, &bytes);
        round_trip::<InterruptIn>(8, &bytes);
        round_trip::<InitInShort>(16, &bytes);
        round_trip::<InitIn>(64, &bytes);
        round_trip::<InitOut>(64, &bytes);
        round_trip::<FuseAttr>(88, &bytes);
        round_trip::<AttrOut>(104, &bytes);
        round_trip::<EntryOut>(128, &bytes);
        round_trip::<GetattrIn>(16, &bytes);
        round_trip::<SetattrIn>(88, &bytes);
        round_trip::<StatxIn>(24, &bytes);
        round_trip::<SxTime>(16, &bytes);
        round_trip::<StatxOut>(288, &bytes);
        round_trip::<Kstatfs>(80, &bytes);
        round_trip::<MknodIn>(16, &bytes);
        round_trip::<MkdirIn>(8, &bytes);
        round_trip::<RenameIn>(8, &bytes);
        round_trip::<Rename2In>(16, &bytes);
        round_trip::<LinkIn>(8, &bytes);
        round_trip::<AccessIn>(8, &bytes);
        round_trip::<OpenIn>(8, &bytes);
        round_trip::<CreateIn>(16, &bytes);
        round_trip::<OpenOut>(16, &bytes);
        round_trip::<ReleaseIn>(24, &bytes);
        round_trip::<FlushIn>(24, &bytes);
        round_trip::<ReadIn>(40, &bytes);
        round_trip::<WriteIn>(40, &bytes);
        round_trip::<WriteOut>(8, &bytes);
        round_trip::<FsyncIn>(16, &bytes);
        round_trip::<FileLock>(24, &bytes);
        round_trip::<LkIn>(48, &bytes);
        round_trip::<LkOut>(24, &bytes);
        round_trip::<LseekIn>(24, &bytes);
        round_trip::<LseekOut>(8, &bytes);
        round_trip::<FallocateIn>(32, &bytes);
        round_trip::<CopyFileRangeIn>(56, &bytes);
        round_trip::<SetxattrInShort>(8, &bytes);
        round_trip::<SetxattrIn>(16, &bytes);
        round_trip::<GetxattrIn>(8, &bytes);
        round_trip::<GetxattrOut>(8, &bytes);
        round_trip::<Dirent>(24, &bytes);
        round_trip::<Direntplus>(152, &bytes);
    }

    #[test]
    fn records_are_padded_to_eight_bytes(fixed in 0usize..40, name in 0usize..300) {
        let size = record_size(fixed * 8, name);
        prop_assert_eq!(size % 8, 0);
        prop_assert!((fixed * 8 + name..fixed * 8 + name + 8).contains(&size));
        prop_assert_eq!(record_padding(fixed * 8 + name), size - fixed * 8 - name);
    }

    /// As `new_encode_dev` of the kernel puts them together.
    #[test]
    fn device_numbers_come_apart(major in 0u32..1 << 12, minor in 0u32..1 << 20) {
        let encoded = (minor & 0xff) | major << 8 | (minor & !0xff) << 12;
        prop_assert_eq!(device_numbers(encoded), (major, minor));
    }
}

#[test]
fn opcodes_are_numbered_as_in_the_header() {
    assert_eq!(Opcode::ALL.len(), 50);
    for &opcode in Opcode::ALL {
        assert_eq!(Opcode::new(opcode as u32), Some(opcode));
    }
    // 0 and the numbers that the header leaves out, and CUSE's.
    for unknown in [0, 7, 19, 53, 4096, u32::MAX] {
        assert_eq!(Opcode::new(unknown), None);
    }
    assert_eq!((Opcode::Lookup as u32, Opcode::Statx as u32), (1, 52));
}

#[test]
fn integers_are_little_endian_and_in_order() {
    let header = OutHeader {
        len: 0x0102_0304,
        error: -2,
        unique: 0x1112_1314_1516_1718,
    };
    let bytes = [
        4, 3, 2, 1, 0xfe, 0xff, 0xff, 0xff, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,
    ];
    assert_eq!(header.to_vec(), bytes);
}

/// What a patch of the guest's kernel adds to `linux/fuse.h`.
fn added_by(patch: &str) -> String {
    let path = format!("{}/../kernel-config/patches/{patch}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_marks_are_those_of_the_guests_kernel() {
    for (patch, line, mark) in [
        (
            "0002-fuse-files-owned-by-whoever-asks.patch",
            "FUSE_ATTR_CALLER_OWNS\t(1 << 30)",
            ATTR_CALLER_OWNS,
        ),
        (
            "0003-fuse-open-without-asking.patch",
            "FUSE_ATTR_LOCAL_OPEN\t(1 << 29)",
            ATTR_LOCAL_OPEN,
        ),
        (
            "0006-fuse-names-without-asking.patch",
            "FUSE_ATTR_NO_NAMES\t(1 << 28)",
            ATTR_NO_NAMES,
        ),
    ] {
        assert!(
            added_by(patch).contains(&format!("+#define {line}")),
            "{patch}: {line}"
        );
        let attr = Attr {
            caller_owns: mark == ATTR_CALLER_OWNS,
            local_open: mark == ATTR_LOCAL_OPEN,
            no_names: mark == ATTR_NO_NAMES,
            ..Attr::default()
        };
        let bit = line.split("<< ").nth(1).unwrap().trim_end_matches(')');
        assert_eq!(
            FuseAttr::new(&attr, false).flags,
            1 << bit.parse::<u32>().unwrap()
        );
    }
}

#[test]
fn attributes_go_where_the_header_has_them() {
    let attr = Attr {
        ino: 1,
        size: 1 << 40,
        blocks: 3,
        atime: (-4, 5),
        mtime: (6, 7),
        ctime: (8, 9),
        btime: Some((10, 11)),
        mode: libc::S_IFREG | 0o4755,
        nlink: 12,
        uid: 13,
        gid: 14,
        rdev: 0x0120_0345,
        blksize: 16,
        submount: true,
        caller_owns: false,
        local_open: false,
        no_names: false,
    };
    let wire = FuseAttr::new(&attr, true).to_vec();
    let at = |offset: usize| u32::from_le_bytes(wire[offset..offset + 4].try_into().unwrap());
    assert_eq!((at(0), at(12), at(16)), (1, 1 << 8, 3), "ino, size, blocks");
    assert_eq!(
        (at(24), at(28), at(32), at(40)),
        (-4i32 as u32, u32::MAX, 6, 8),
        "seconds"
    );
    assert_eq!((at(48), at(52), at(56)), (5, 7, 9), "nanoseconds");
    assert_eq!((at(60), at(64), at(68), at(72)), (0o104_755, 12, 13, 14));
    assert_eq!(
        (at(76), at(80), at(84)),
        (0x0120_0345, 16, 1),
        "rdev, blksize, flags"
    );
    assert_eq!(
        FuseAttr::new(&attr, false).flags,
        0,
        "the guest does not know submounts"
    );

    let statx = StatxOut::new(&attr, std::time::Duration::from_millis(2500));
    assert_eq!((statx.attr_valid, statx.attr_valid_nsec), (2, 500_000_000));
    assert_eq!(statx.mask, 0xfff);
    assert_eq!((statx.rdev_major, statx.rdev_minor), (3, 0x1245));
    assert_eq!((statx.btime.tv_sec, statx.btime.tv_nsec), (10, 11));
    assert_eq!(u32::from(statx.mode), attr.mode);
    let without = StatxOut::new(&Attr { btime: None, ..attr }, std::time::Duration::ZERO);
    assert_eq!(without.mask, 0x7ff);
}

#[test]
fn open_flags_leave_out_what_makes_another_kind_of_descriptor() {
    let flags = |flags: i32| flags as u32 & OPEN_FLAGS;
    assert_eq!(flags(libc::O_PATH | libc::O_CREAT | libc::O_NOFOLLOW | 0x20), 0);
    assert_eq!(flags(libc::O_TMPFILE), libc::O_DIRECTORY as u32);
    let kept = libc::O_RDWR | libc::O_APPEND | libc::O_TRUNC | libc::O_DIRECT | libc::O_SYNC;
    assert_eq!(flags(kept), kept as u32);
}
