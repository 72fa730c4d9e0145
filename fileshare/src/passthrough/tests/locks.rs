//! Locks between owners in the guest, and with programs of the host.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::support::*;
use crate::filesystem::{FileSystem, Interruption, Lock, NodeId, Result};
use crate::passthrough::{Passthrough, PassthroughConfig, ShareConfig, sys};
use crate::wire::ROOT_ID;

const END: u64 = i64::MAX as u64;
const BUSY: Result<()> = Err(Errno(libc::EAGAIN));

fn lock(kind: i32, start: u64, end: u64) -> Lock {
    Lock {
        start,
        end,
        kind,
        pid: 77,
    }
}

fn whole(kind: i32) -> Lock {
    lock(kind, 0, END)
}

/// Takes or drops a POSIX lock without waiting.
fn set(world: &World, node: NodeId, owner: u64, lock: &Lock) -> Result<()> {
    world.fs.setlk(&ROOT, node, 0, owner, lock, false, None)
}

fn flock(world: &World, node: NodeId, owner: u64, kind: i32) -> Result<()> {
    world.fs.setlk(&ROOT, node, 0, owner, &whole(kind), true, None)
}

fn flock64(kind: i32) -> libc::flock64 {
    libc::flock64 {
        l_type: kind as _,
        l_whence: libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Notes that somebody waits, and interrupts when told to.
#[derive(Default)]
struct Waiting {
    interrupted: AtomicBool,
    rounds: AtomicUsize,
}

impl Interruption for Waiting {
    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn wait(&self, timeout: Duration) -> bool {
        self.rounds.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(timeout);
        self.is_interrupted()
    }
}

impl Waiting {
    fn until_waiting(&self) {
        while self.rounds.load(Ordering::Relaxed) < 2 {
            std::thread::yield_now();
        }
    }
}

#[test]
fn owners_exclude_each_other_by_range() {
    let world = World::new();
    let (node, _) = world.create(&ROOT, "file", 0o644);
    set(&world, node, 1, &lock(libc::F_WRLCK, 0, 9)).unwrap();
    assert_eq!(set(&world, node, 2, &lock(libc::F_RDLCK, 5, 20)), BUSY);
    set(&world, node, 2, &lock(libc::F_WRLCK, 10, END)).unwrap();
    set(&world, node, 1, &lock(libc::F_RDLCK, 0, 9)).unwrap();
    set(&world, node, 2, &lock(libc::F_RDLCK, 0, 5)).unwrap();
    set(&world, node, 1, &lock(libc::F_UNLCK, 0, 9)).unwrap();
    set(&world, node, 2, &lock(libc::F_WRLCK, 0, 5)).unwrap();
    let held = world.fs.getlk(&ROOT, node, 0, 1, &whole(libc::F_WRLCK)).unwrap();
    assert_eq!(
        (held.kind, held.start, held.end, held.pid),
        (libc::F_WRLCK, 0, 5, 77)
    );
    let own = world.fs.getlk(&ROOT, node, 0, 2, &whole(libc::F_WRLCK)).unwrap();
    assert_eq!(own.kind, libc::F_UNLCK);
    // Closing a descriptor ends the owner's locks, and only its own.
    world.fs.flush(&ROOT, node, 0, 1).unwrap();
    assert_eq!(set(&world, node, 1, &whole(libc::F_RDLCK)), BUSY);
    world.fs.flush(&ROOT, node, 0, 2).unwrap();
    set(&world, node, 1, &whole(libc::F_WRLCK)).unwrap();
    set(&world, node, 1, &whole(libc::F_UNLCK)).unwrap();
    assert_eq!(world.fs.locks.len(), 0, "nothing is kept for nothing");
}

#[test]
fn programs_of_the_host_see_them() {
    let world = World::new();
    let (node, _) = world.create(&ROOT, "file", 0o644);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(world.host("file"))
        .unwrap();
    let try_host = || sys::ofd_lock(file.as_fd(), libc::F_OFD_SETLK, &mut flock64(libc::F_WRLCK));
    set(&world, node, 1, &whole(libc::F_WRLCK)).unwrap();
    assert_eq!(try_host().unwrap_err().raw_os_error(), Some(libc::EAGAIN));
    world.fs.flush(&ROOT, node, 0, 1).unwrap();
    try_host().unwrap();
    assert_eq!(set(&world, node, 1, &whole(libc::F_RDLCK)), BUSY);
    let held = world.fs.getlk(&ROOT, node, 0, 1, &whole(libc::F_RDLCK)).unwrap();
    assert_eq!((held.kind, held.end, held.pid), (libc::F_WRLCK, END, 0));
    drop(file);

    let file = std::fs::File::open(world.host("file")).unwrap();
    flock(&world, node, 1, libc::F_WRLCK).unwrap();
    assert!(rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err());
    world.fs.release(&ROOT, node, 0, Some(1)).unwrap();
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).unwrap();
    assert_eq!(flock(&world, node, 1, libc::F_WRLCK), BUSY);
    assert_eq!(world.fs.locks.len(), 0, "what holds nothing is not kept");
    flock(&world, node, 1, libc::F_RDLCK).unwrap();
}

#[test]
fn flock_is_shared_exclusive_and_apart_from_posix() {
    let world = World::new();
    let (node, _) = world.create(&ROOT, "file", 0o444);
    flock(&world, node, 1, libc::F_RDLCK).unwrap();
    flock(&world, node, 2, libc::F_RDLCK).unwrap();
    assert_eq!(flock(&world, node, 3, libc::F_WRLCK), BUSY);
    set(&world, node, 3, &whole(libc::F_WRLCK)).unwrap();
    flock(&world, node, 2, libc::F_UNLCK).unwrap();
    flock(&world, node, 1, libc::F_WRLCK).unwrap();
    assert_eq!(flock(&world, node, 2, libc::F_RDLCK), BUSY);
    world.fs.flush(&ROOT, node, 0, 1).unwrap();
    assert_eq!(
        flock(&world, node, 2, libc::F_RDLCK),
        BUSY,
        "closing one descriptor is not closing the file"
    );
    world.fs.release(&ROOT, node, 0, Some(1)).unwrap();
    flock(&world, node, 2, libc::F_RDLCK).unwrap();
}

#[test]
fn waiting_ends_with_the_lock() {
    let world = World::new();
    let (node, _) = world.create(&ROOT, "file", 0o644);
    for flocked in [false, true] {
        let take = |owner, waiting: Option<&dyn Interruption>| {
            world
                .fs
                .setlk(&ROOT, node, 0, owner, &whole(libc::F_WRLCK), flocked, waiting)
        };
        take(1, None).unwrap();
        let waiting = Waiting::default();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| take(2, Some(&waiting)));
            waiting.until_waiting();
            // Nothing of ours is locked meanwhile.
            assert!(world.walk("file").is_ok());
            assert_eq!(set(&world, node, 9, &lock(libc::F_UNLCK, 0, 1)), Ok(()));
            world
                .fs
                .setlk(&ROOT, node, 0, 1, &whole(libc::F_UNLCK), flocked, None)
                .unwrap();
            waiter.join().unwrap().unwrap();
        });
        assert_eq!(take(1, None), BUSY, "the one that waited has it");
        world
            .fs
            .setlk(&ROOT, node, 0, 2, &whole(libc::F_UNLCK), flocked, None)
            .unwrap();
    }
}

#[test]
fn waiting_ends_with_an_interruption_or_the_session() {
    let world = World::new();
    let (node, _) = world.create(&ROOT, "file", 0o644);
    set(&world, node, 1, &whole(libc::F_WRLCK)).unwrap();
    type End = fn(&World, &Waiting);
    let ends: [End; 2] = [
        |_, waiting| waiting.interrupted.store(true, Ordering::Relaxed),
        |world, _| world.fs.destroy(),
    ];
    for end in ends {
        let waiting = Waiting::default();
        let lock = whole(libc::F_WRLCK);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| world.fs.setlk(&ROOT, node, 0, 2, &lock, false, Some(&waiting)));
            waiting.until_waiting();
            end(&world, &waiting);
            // Or it got the lock that the end of the session set free.
            let result = waiter.join().unwrap();
            assert!(
                matches!(result, Err(Errno(libc::EINTR | libc::ESTALE)) | Ok(())),
                "{result:?}"
            );
        });
    }
}

#[test]
fn waiting_ends_with_its_share_and_with_no_other() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let fs = Passthrough::multiple(config());
    let files = [0, 1].map(|at| {
        let id = format!("s{at}");
        std::fs::write(dirs[at].path().join("file"), "").unwrap();
        fs.add_share(&id, ShareConfig::new(dirs[at].path())).unwrap();
        let root = fs.lookup(&ROOT, ROOT_ID, &name(&id)).unwrap().node;
        fs.lookup(&ROOT, root, c"file").unwrap().node
    });
    let take = |at: usize, owner, waiting: Option<&dyn Interruption>| {
        fs.setlk(&ROOT, files[at], 0, owner, &whole(libc::F_WRLCK), false, waiting)
    };
    for at in [0, 1] {
        take(at, 1, None).unwrap();
    }
    let (doomed, patient) = (Waiting::default(), Waiting::default());
    std::thread::scope(|scope| {
        let one = scope.spawn(|| take(0, 2, Some(&doomed)));
        let other = scope.spawn(|| take(1, 2, Some(&patient)));
        doomed.until_waiting();
        patient.until_waiting();
        assert!(fs.remove_share("s0"));
        // A program that has got no signal must not see EINTR: Linux would make 512 of it.
        assert_eq!(one.join().unwrap(), Err(Errno(libc::ESTALE)));
        let free = fs.setlk(&ROOT, files[1], 0, 1, &whole(libc::F_UNLCK), false, None);
        assert_eq!((free, other.join().unwrap()), (Ok(()), Ok(())));
    });
}

#[test]
fn nonsense_and_too_many_are_refused() {
    let world = World::with(
        PassthroughConfig {
            descriptors: Some(64),
            ..config()
        },
        |_| {},
    );
    let (node, handle) = world.create(&ROOT, "file", 0o644);
    let invalid = Err(Errno(libc::EINVAL));
    assert_eq!(set(&world, node, 1, &lock(libc::F_WRLCK, 9, 3)), invalid);
    assert_eq!(set(&world, node, 1, &lock(99, 0, 3)), invalid);
    assert_eq!(
        set(&world, node, 1, &lock(libc::F_WRLCK, u64::MAX, u64::MAX)),
        invalid
    );
    assert_eq!(
        world
            .fs
            .setlk(&ROOT, node, handle + 5, 1, &whole(libc::F_RDLCK), false, None),
        Err(Errno(libc::EBADF))
    );
    let taken = (0..100)
        .take_while(|owner| set(&world, node, *owner, &whole(libc::F_RDLCK)).is_ok())
        .count();
    assert_eq!(taken, 4, "a sixteenth of the descriptors");
    assert_eq!(
        set(&world, node, 50, &whole(libc::F_RDLCK)),
        Err(Errno(libc::ENOLCK))
    );
    world.fs.flush(&ROOT, node, 0, 0).unwrap();
    set(&world, node, 50, &whole(libc::F_RDLCK)).unwrap();
    world.fs.forget(node, 1);
    assert_eq!(world.fs.locks.len(), 0, "with the node");
}
