//! fanotify(7) for a process without privileges: directories are marked, and events name the directory by its file handle
//! and what happened in it by its name.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::super::sys;
use super::event::{Event, Key};

/// What is asked for: all that changes what a guest can see, in a directory and in what lies in it.
const EVENTS: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_RENAME
    | libc::FAN_MODIFY
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_ATTRIB
    | libc::FAN_ONDIR
    | libc::FAN_EVENT_ON_CHILD;

/// File systems whose files other machines or processes change without this kernel's knowing, by their magic numbers: no
/// event tells of that (`linux/magic.h`, and the numbers of those that do not stand there).
const CHANGED_ELSEWHERE: [u64; 11] = [
    0x6969,      // nfs
    0xff53_4d42, // cifs
    0xfe53_4d42, // smb2
    0x517b,      // smb
    0x6573_5546, // fuse
    0x0102_1997, // 9p
    0x00c3_6400, // ceph
    0x5346_414f, // afs
    0x6b41_4653, // afs
    0x7372_6c64, // vboxsf (its own)
    0x786f_4256, // vboxsf
];

/// A listening group.
#[derive(Debug)]
pub(super) struct Group(OwnedFd);

/// Why a directory cannot be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The file system is changed by others as well, or its files have no handles or no identity.
    FileSystem,
    /// The host's user has as many marks as it may.
    Limit,
    /// This kernel has no way to watch it.
    Kernel,
    /// Anything else.
    Other(i32),
}

impl Group {
    /// ENOSYS or EINVAL where the kernel is older than 5.17.
    pub(super) fn new() -> io::Result<Group> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_FID
            | libc::FAN_REPORT_DIR_FID
            | libc::FAN_REPORT_NAME
            | libc::FAN_REPORT_TARGET_FID;
        // SAFETY: the call takes two numbers; the descriptor it returns is new and nobody else's.
        unsafe {
            match libc::fanotify_init(flags, libc::O_RDONLY as libc::c_uint) {
                fd if fd >= 0 => Ok(Group(OwnedFd::from_raw_fd(fd))),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    /// Watches a directory. Returns what events will call it.
    pub(super) fn watch(&self, dir: BorrowedFd<'_>) -> Result<Key, Refusal> {
        let key = key_of(dir)?;
        self.mark(libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR, dir)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOSPC | libc::ENOMEM) => Refusal::Limit,
                Some(libc::ENODEV | libc::EXDEV | libc::EOPNOTSUPP | libc::EINVAL) => Refusal::FileSystem,
                other => Refusal::Other(other.unwrap_or(libc::EIO)),
            })?;
        Ok(key)
    }

    /// No longer watches a directory.
    pub(super) fn unwatch(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        self.mark(libc::FAN_MARK_REMOVE, dir)
    }

    fn mark(&self, flags: libc::c_uint, dir: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: the path is a string with its NUL; the rest are numbers and descriptors that live through the call.
        let done =
            unsafe { libc::fanotify_mark(self.0.as_raw_fd(), flags, EVENTS, dir.as_raw_fd(), c".".as_ptr()) };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads events that are there, as many as fit into `buffer`; none when there are none.
    pub(super) fn read(&self, buffer: &mut [u8], out: &mut Vec<Event>) -> io::Result<bool> {
        match rustix::io::read(&self.0, &mut *buffer) {
            Ok(0) => Ok(false),
            Ok(length) => {
                parse(&buffer[..length], out)?;
                Ok(true)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What events call the inode of a descriptor.
pub(super) fn key_of(fd: BorrowedFd<'_>) -> Result<Key, Refusal> {
    let other = |error: io::Error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => Refusal::FileSystem,
        error => Refusal::Other(error.unwrap_or(libc::EIO)),
    };
    let (kind, id) = sys::file_system(fd).map_err(other)?;
    if id == [0; 8] || CHANGED_ELSEWHERE.contains(&kind) {
        return Err(Refusal::FileSystem);
    }
    let handle = sys::event_handle(fd).map_err(other)?;
    Ok(id.iter().chain(&*handle).copied().collect())
}

/// A number of the machine's own order at an offset.
fn number<const N: usize>(bytes: &[u8], at: usize) -> io::Result<[u8; N]> {
    bytes
        .get(at..)
        .and_then(|bytes| bytes.first_chunk::<N>())
        .copied()
        .ok_or_else(malformed)
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "an event of fanotify is not as it should be",
    )
}

fn part(bytes: &[u8], from: usize, length: usize) -> io::Result<&[u8]> {
    from.checked_add(length)
        .and_then(|end| bytes.get(from..end))
        .ok_or_else(malformed)
}

/// `struct fanotify_event_metadata` is so long.
const METADATA: usize = 24;
/// `struct fanotify_event_info_header`, the file system's id, and the first two fields of the handle.
const INFO: usize = 4 + 8 + 8;

fn parse(mut bytes: &[u8], out: &mut Vec<Event>) -> io::Result<()> {
    while !bytes.is_empty() {
        let length = u32::from_ne_bytes(number(bytes, 0)?) as usize;
        let metadata = u16::from_ne_bytes(number(bytes, 6)?) as usize;
        if length < METADATA || metadata < METADATA || metadata > length {
            return Err(malformed());
        }
        let whole = part(bytes, 0, length)?;
        let mut event = Event {
            mask: u64::from_ne_bytes(number(whole, 8)?),
            pid: i32::from_ne_bytes(number(whole, 20)?),
            ..Event::default()
        };
        let mut infos = &whole[metadata..];
        while !infos.is_empty() {
            let length = u16::from_ne_bytes(number(infos, 2)?) as usize;
            if length < 4 {
                return Err(malformed());
            }
            let info = part(infos, 0, length)?;
            take_info(info, &mut event)?;
            infos = &infos[length..];
        }
        out.push(event);
        bytes = &bytes[length..];
    }
    Ok(())
}

fn take_info(info: &[u8], event: &mut Event) -> io::Result<()> {
    let kind = info[0];
    let named = matches!(
        kind,
        libc::FAN_EVENT_INFO_TYPE_DFID_NAME
            | libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME
            | libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME
    );
    if !named && kind != libc::FAN_EVENT_INFO_TYPE_FID {
        return Ok(());
    }
    let length = u32::from_ne_bytes(number(info, 12)?) as usize;
    let handle_type: [u8; 4] = number(info, 16)?;
    let handle = part(info, INFO, length)?;
    let id = part(info, 4, 8)?;
    let key: Key = id.iter().chain(&handle_type).chain(handle).copied().collect();
    if !named {
        event.target = Some(key);
        return Ok(());
    }
    let name = info.get(INFO + length..).ok_or_else(malformed)?;
    let end = name.iter().position(|byte| *byte == 0).ok_or_else(malformed)?;
    let place = Some((key, name[..end].into()));
    if kind == libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME {
        event.to = place;
    } else {
        event.at = place;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::fs::{Mode, OFlags};

    use super::*;

    fn read_all(group: &Group) -> Vec<Event> {
        let (mut buffer, mut events) = (vec![0; 4096], Vec::new());
        while group.read(&mut buffer, &mut events).unwrap() {}
        events
    }

    #[test]
    fn a_directory_s_events_name_it_as_its_mark_did() {
        let dir = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        let group = Group::new().unwrap();
        let key = group.watch(fd.as_fd()).unwrap();
        std::fs::write(dir.path().join("a"), "x").unwrap();
        std::fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        let events = read_all(&group);
        let first = &events[0];
        assert_eq!(first.at, Some((key.clone(), b"a"[..].into())));
        assert_ne!(first.mask & libc::FAN_CREATE, 0);
        let last = events.last().unwrap();
        assert_eq!(last.mask & libc::FAN_RENAME, libc::FAN_RENAME);
        assert_eq!(last.to, Some((key, b"b"[..].into())));
        assert_eq!(last.pid, std::process::id() as i32, "our own");
        assert_eq!(last.target, first.target);

        group.unwatch(fd.as_fd()).unwrap();
        std::fs::write(dir.path().join("c"), "x").unwrap();
        assert_eq!(read_all(&group), []);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = parse(&bytes, &mut Vec::new());
        }
    }
}
