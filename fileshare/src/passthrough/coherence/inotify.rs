//! inotify(7), for what fanotify cannot watch: an old kernel, a file system whose files have no handles, too many marks.
//!
//! It tells as much, in another form, but for two things. A move is two events, which are put together here. And what this
//! process has done itself looks like what others do; [`own`](super::own) knows, nearly always. So the guest is told of
//! changes, but what it caches there is right for a second only.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use std::{ffi, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, Reader as RawReader, WatchFlags, add_watch, init, remove_watch};
use rustix::io::Errno;

use super::super::proc_fd::proc_path;
use super::event::{Event, Key, own_pid};
use super::fanotify::Refusal;
use super::own::Own;

/// The same as of fanotify, whose bits mean the same. What happens to a file that has no name any more is told by none.
const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::EXCL_UNLINK)
    .union(WatchFlags::ONLYDIR);

/// How long the second half of a move is waited for when its first half is the last event there is. The kernel queues both
/// within one system call; nothing comes when it has moved to where nobody watches.
const SECOND_HALF: Duration = Duration::from_millis(10);
/// How many events later it is looked for.
const NEARBY: usize = 64;

/// A listening instance.
#[derive(Debug)]
pub(super) struct Instance(OwnedFd);

impl Instance {
    /// EMFILE when the user has as many as it may (`fs.inotify.max_user_instances`).
    pub(super) fn new() -> io::Result<Instance> {
        Ok(Instance(init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?))
    }

    /// Watches a directory. Returns what events will call it: all that have the same inode have the same name.
    pub(super) fn watch(&self, dir: BorrowedFd<'_>) -> Result<Key, Refusal> {
        match add_watch(&self.0, proc_path(dir), EVENTS) {
            Ok(watch) => Ok(key(watch)),
            Err(Errno::NOSPC | Errno::NOMEM) => Err(Refusal::Limit),
            Err(error) => Err(Refusal::Other(error.raw_os_error())),
        }
    }

    /// No longer watches a directory.
    pub(super) fn unwatch(&self, of: &Key) -> io::Result<()> {
        let Ok(watch) = <[u8; 4]>::try_from(&**of) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        match remove_watch(&self.0, i32::from_ne_bytes(watch)) {
            // It has ended with its directory.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Instance {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Watch descriptors are not used again for as long as there are numbers, which is 2^31 of them.
fn key(watch: i32) -> Key {
    watch.to_ne_bytes().into()
}

/// Whether a directory of that name is watched by inotify. fanotify's names are longer.
pub(super) fn is_key(key: &Key) -> bool {
    key.len() == size_of::<i32>()
}

/// An event as it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Raw {
    key: Key,
    mask: u32,
    cookie: u32,
    name: Box<[u8]>,
    own: bool,
}

/// Reads events and puts the halves of moves together.
#[derive(Debug, Default)]
pub(super) struct Reader {
    held: VecDeque<Raw>,
}

impl Reader {
    /// Reads events that are there, as many as fit into `buffer`; none when there are none.
    pub(super) fn read(
        &mut self,
        instance: &Instance,
        own: &Own,
        buffer: &mut [MaybeUninit<u8>],
        out: &mut Vec<Event>,
    ) -> io::Result<bool> {
        while self.fill(instance, own, buffer)? {
            self.settle(false, out);
            if !out.is_empty() {
                return Ok(true);
            }
        }
        if self.held.is_empty() {
            return Ok(false);
        }
        if !readable_within(instance, SECOND_HALF)? || !self.fill(instance, own, buffer)? {
            self.settle(true, out);
            return Ok(true);
        }
        self.settle(false, out);
        Ok(true)
    }

    /// Returns whether anything was there.
    fn fill(&mut self, instance: &Instance, own: &Own, buffer: &mut [MaybeUninit<u8>]) -> io::Result<bool> {
        let mut reader = RawReader::new(instance, buffer);
        let mut any = false;
        // The first one reads; what it has read comes whole.
        while !any || !reader.is_buffer_empty() {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(any),
                Err(error) => return Err(error.into()),
            };
            any = true;
            let name = event.file_name().map_or(&b"."[..], ffi::CStr::to_bytes);
            let key = key(event.wd());
            let mask = event.events().bits();
            let own = own.is(&key, name, mask);
            self.held.push_back(Raw {
                key,
                mask,
                cookie: event.cookie(),
                name: name.into(),
                own,
            });
        }
        Ok(any)
    }

    /// Takes what is complete: up to the first half of a move whose second half may still come, or `all`.
    fn settle(&mut self, all: bool, out: &mut Vec<Event>) {
        while let Some(front) = self.held.front() {
            let from = front.mask & libc::IN_MOVED_FROM != 0;
            let is_half = |other: &Raw| other.mask & libc::IN_MOVED_TO != 0 && other.cookie == front.cookie;
            let half = from
                .then(|| self.held.iter().take(NEARBY).position(is_half))
                .flatten();
            if from && half.is_none() && !all && self.held.len() < NEARBY {
                return;
            }
            let half = half.and_then(|at| self.held.remove(at));
            let Some(front) = self.held.pop_front() else {
                return;
            };
            out.extend(event(front, half));
        }
    }
}

/// None for what says nothing of a directory's contents, such as that its watch has ended.
fn event(raw: Raw, half: Option<Raw>) -> Option<Event> {
    let own = raw.own || half.as_ref().is_some_and(|half| half.own);
    let pid = if own { own_pid() } else { 0 };
    let place = |raw: Raw| Some((raw.key, raw.name));
    let moved = |at, to| Event {
        mask: libc::FAN_RENAME,
        pid,
        at,
        to,
        ..Event::default()
    };
    if raw.mask & libc::IN_MOVED_FROM != 0 {
        return Some(moved(place(raw), half.and_then(place)));
    }
    if raw.mask & libc::IN_MOVED_TO != 0 {
        return Some(moved(None, place(raw)));
    }
    let told = EVENTS.bits() | libc::IN_Q_OVERFLOW;
    (raw.mask & told != 0).then(|| Event {
        mask: u64::from(raw.mask),
        pid,
        at: place(raw),
        ..Event::default()
    })
}

fn readable_within(instance: &Instance, limit: Duration) -> io::Result<bool> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut readable = [PollFd::from_borrowed_fd(instance.as_fd(), PollFlags::IN)];
    match poll(&mut readable, Some(&limit)) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(mask: u32, cookie: u32, name: &str) -> Raw {
        Raw {
            key: key(1),
            mask,
            cookie,
            name: name.as_bytes().into(),
            own: false,
        }
    }

    /// Names, of a move both; `-` for one that is not known.
    fn settled(all: bool, raws: &[Raw]) -> (Vec<String>, usize) {
        let mut reader = Reader {
            held: raws.to_vec().into(),
        };
        let mut events = Vec::new();
        reader.settle(all, &mut events);
        let name = |place: &Option<(Key, Box<[u8]>)>| {
            place
                .as_ref()
                .map_or("-".into(), |(_, name)| String::from_utf8_lossy(name).into_owned())
        };
        let word = |event: &Event| match event.mask & libc::FAN_RENAME {
            0 => name(&event.at),
            _ => format!("{}>{}", name(&event.at), name(&event.to)),
        };
        (events.iter().map(word).collect(), reader.held.len())
    }

    #[test]
    fn the_bits_are_those_of_fanotify() {
        for (inotify, fanotify) in [
            (libc::IN_CREATE, libc::FAN_CREATE),
            (libc::IN_DELETE, libc::FAN_DELETE),
            (libc::IN_MODIFY, libc::FAN_MODIFY),
            (libc::IN_CLOSE_WRITE, libc::FAN_CLOSE_WRITE),
            (libc::IN_ATTRIB, libc::FAN_ATTRIB),
            (libc::IN_ISDIR, libc::FAN_ONDIR),
            (libc::IN_Q_OVERFLOW, libc::FAN_Q_OVERFLOW),
        ] {
            assert_eq!(u64::from(inotify), fanotify);
        }
    }

    #[test]
    fn the_halves_of_a_move_are_one_event_whatever_is_between() {
        let (from, to) = (libc::IN_MOVED_FROM, libc::IN_MOVED_TO);
        let create = libc::IN_CREATE;
        assert_eq!(
            settled(
                false,
                &[
                    raw(create, 0, "a"),
                    raw(from, 7, "a"),
                    raw(create, 0, "x"),
                    raw(to, 7, "b")
                ]
            ),
            (vec!["a".into(), "a>b".into(), "x".into()], 0)
        );
        // Two at once, on two processors.
        assert_eq!(
            settled(
                false,
                &[
                    raw(from, 7, "a"),
                    raw(from, 8, "c"),
                    raw(to, 8, "d"),
                    raw(to, 7, "b")
                ]
            ),
            (vec!["a>b".into(), "c>d".into()], 0)
        );
        // From elsewhere, and to elsewhere.
        assert_eq!(settled(false, &[raw(to, 7, "b")]), (vec!["->b".into()], 0));
        let unfinished = [raw(from, 7, "a"), raw(create, 0, "x")];
        assert_eq!(
            settled(false, &unfinished),
            (vec![], 2),
            "its half may still come"
        );
        assert_eq!(settled(true, &unfinished), (vec!["a>-".into(), "x".into()], 0));
        let many: Vec<Raw> = (0..200).map(|cookie| raw(from, cookie, "a")).collect();
        assert_eq!(settled(false, &many).1, NEARBY - 1, "they do not pile up");
    }

    #[test]
    fn what_says_nothing_of_the_contents_is_no_event() {
        assert_eq!(settled(true, &[raw(libc::IN_IGNORED, 0, ".")]), (vec![], 0));
        assert_eq!(settled(true, &[raw(libc::IN_Q_OVERFLOW, 0, ".")]).0, ["."]);
    }

    #[test]
    fn a_directory_is_watched_until_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let open = || std::fs::File::open(dir.path()).unwrap();
        let (instance, own) = (Instance::new().unwrap(), Own::default());
        let key = instance.watch(open().as_fd()).unwrap();
        assert_eq!(instance.watch(open().as_fd()).unwrap(), key, "one inode");
        assert!(is_key(&key));
        let (mut reader, mut events) = (Reader::default(), Vec::new());
        let mut buffer = vec![MaybeUninit::uninit(); 4096];
        let mut read = |events: &mut Vec<Event>| {
            while reader.read(&instance, &own, &mut buffer, events).unwrap() {}
        };
        std::fs::write(dir.path().join("a"), "x").unwrap();
        std::fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        read(&mut events);
        assert_eq!(events[0].at, Some((key.clone(), b"a"[..].into())));
        let last = events.last().unwrap();
        assert_eq!(last.mask, libc::FAN_RENAME);
        assert_eq!(last.to, Some((key.clone(), b"b"[..].into())));

        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::rename(dir.path().join("b"), elsewhere.path().join("b")).unwrap();
        events.clear();
        read(&mut events);
        assert_eq!((events.len(), &events[0].to), (1, &None));

        instance.unwatch(&key).unwrap();
        instance.unwatch(&key).unwrap();
        std::fs::write(dir.path().join("c"), "x").unwrap();
        events.clear();
        read(&mut events);
        assert_eq!(events, []);
    }
}
