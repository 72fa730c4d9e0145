//! Listing directories: whatever fits, and nothing lost in between.

use std::collections::BTreeMap;

use super::*;
use crate::filesystem::Errno;
use crate::testing::records;
use crate::wire::*;

/// The names in the root and the lookups that came with them, read with `size` bytes at a time.
fn list_with(client: &Client<RamFs>, plus: bool, size: u32) -> BTreeMap<String, u64> {
    let opened: OpenOut = client
        .get(Opcode::Opendir, ROOT_ID, &OpenIn::default().to_vec())
        .unwrap();
    let (opcode, fixed) = if plus {
        (Opcode::Readdirplus, Direntplus::SIZE)
    } else {
        (Opcode::Readdir, Dirent::SIZE)
    };
    let mut names = BTreeMap::new();
    let mut offset = 0;
    loop {
        let arg = ReadIn {
            fh: opened.fh,
            offset,
            size,
            ..ReadIn::default()
        };
        let reply = client.call(opcode, ROOT_ID, &arg.to_vec()).unwrap();
        assert!(reply.len() <= size as usize);
        if reply.is_empty() {
            break;
        }
        for record in records(&reply, fixed) {
            let (fixed, name) = record.split_at(fixed);
            let name = String::from_utf8(name.to_vec()).unwrap();
            offset = Dirent::decode(&fixed[fixed.len() - Dirent::SIZE..]).unwrap().off;
            let node = if plus {
                EntryOut::decode(fixed).unwrap().nodeid
            } else {
                0
            };
            assert_eq!(names.insert(name, node), None, "each name comes once");
        }
    }
    let release = ReleaseIn {
        fh: opened.fh,
        ..ReleaseIn::default()
    };
    client
        .call(Opcode::Releasedir, ROOT_ID, &release.to_vec())
        .unwrap();
    assert_eq!(names.remove("."), Some(0));
    assert_eq!(names.remove(".."), Some(0));
    names
}

pub(super) fn list(client: &Client<RamFs>, plus: bool) -> BTreeMap<String, u64> {
    list_with(client, plus, 4096)
}

#[test]
fn directories_are_listed_whole_whatever_fits_at_once() {
    let client = client();
    let mkdir = MkdirIn::default();
    let names: Vec<String> = (1..=255).step_by(7).map(|length| "n".repeat(length)).collect();
    for name in &names {
        let body = with(&mkdir, &[name.as_bytes(), b"\0"].concat());
        let made: EntryOut = client.get(Opcode::Mkdir, ROOT_ID, &body).unwrap();
        client.tell(Opcode::Forget, made.nodeid, &1u64.to_le_bytes());
    }
    assert_eq!(client.fs().held(), (0, 0));
    // From the least that takes the longest record to all at once; odd sizes leave a rest that nothing fits into.
    for size in [280, 281, 287, 300, 777, 4096] {
        assert_eq!(
            list_with(&client, false, size).into_keys().collect::<Vec<_>>(),
            names
        );
    }
    for size in [408, 411, 600, 4095] {
        let listed = list_with(&client, true, size);
        assert_eq!(
            listed.keys().collect::<Vec<_>>(),
            names.iter().collect::<Vec<_>>()
        );
        // Entries that did not fit came again; only those that were sent may count.
        assert_eq!(client.fs().held(), (names.len() as u64, 0));
        for node in listed.into_values() {
            client.tell(Opcode::Forget, node, &1u64.to_le_bytes());
        }
        assert_eq!(client.fs().held(), (0, 0));
    }
}

#[test]
fn a_listing_without_room_for_one_entry_is_not_an_empty_one() {
    let client = client();
    let opened: OpenOut = client
        .get(Opcode::Opendir, ROOT_ID, &OpenIn::default().to_vec())
        .unwrap();
    let arg = |size| {
        ReadIn {
            fh: opened.fh,
            size,
            ..ReadIn::default()
        }
        .to_vec()
    };
    assert_eq!(
        client.call(Opcode::Readdir, ROOT_ID, &arg(31)),
        Err(Errno(libc::EINVAL))
    );
    assert_eq!(client.call(Opcode::Readdir, ROOT_ID, &arg(32)).unwrap().len(), 32);
    let room = OutHeader::SIZE + 31;
    let refused = client.call_with_room(Opcode::Readdir, ROOT_ID, &arg(4096), room);
    assert_eq!(refused, Err(Errno(libc::EINVAL)), "the room counts as well");
}
