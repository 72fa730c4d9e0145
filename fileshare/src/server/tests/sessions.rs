//! The start and the end of sessions, requests without a reply, and requests that wait.

use super::*;
use crate::filesystem::Errno;
use crate::testing::{Answer, request_bytes};
use crate::wire::*;

#[test]
fn nothing_is_done_before_init_and_after_destroy() {
    let client = Client::new(Arc::new(RamFs::new()));
    let lookup = || client.call(Opcode::Lookup, ROOT_ID, b"a\0");
    assert_eq!(lookup(), Err(Errno(libc::EIO)));
    assert_eq!(client.call(Opcode::Destroy, 0, b""), Err(Errno(libc::EIO)));
    client.init();
    create(&client, b"a\0").unwrap();
    assert!(lookup().is_ok());
    assert_eq!(client.fs().held(), (2, 1));
    assert_eq!(client.call(Opcode::Destroy, 0, b""), Ok(vec![]));
    assert_eq!(client.fs().held(), (0, 0), "the file system has been told");
    assert_eq!(lookup(), Err(Errno(libc::EIO)));
    client.init();
    assert!(lookup().is_ok());
}

#[test]
fn a_reset_and_a_second_init_end_the_session() {
    let client = client();
    create(&client, b"a\0").unwrap();
    client.server.reset();
    assert_eq!(client.fs().held(), (0, 0));
    assert_eq!(
        client.call(Opcode::Lookup, ROOT_ID, b"a\0"),
        Err(Errno(libc::EIO))
    );
    client.init();
    client.call(Opcode::Lookup, ROOT_ID, b"a\0").unwrap();
    client.init();
    assert_eq!(
        client.fs().held(),
        (0, 0),
        "a kernel that starts over knows no nodes"
    );
    client.call(Opcode::Lookup, ROOT_ID, b"a\0").unwrap();
}

#[test]
fn a_guest_of_another_version_has_no_session() {
    let client = Client::new(Arc::new(RamFs::new()));
    let init = |major, minor| {
        let arg = InitInShort {
            major,
            minor,
            ..InitInShort::default()
        };
        client.get::<InitOut>(Opcode::Init, 0, &arg.to_vec())
    };
    assert_eq!(init(7, 27), Err(Errno(libc::EPROTO)));
    let answer = init(8, 0).unwrap();
    assert_eq!((answer.major, answer.minor, answer.flags), (7, 41, 0));
    assert_eq!(client.call(Opcode::Statfs, ROOT_ID, b""), Err(Errno(libc::EIO)));
    assert_eq!(init(7, 36).unwrap().minor, 36);
    assert!(client.call(Opcode::Statfs, ROOT_ID, b"").is_ok());
}

#[test]
fn features_that_are_off_have_their_old_forms() {
    let client = Client::new(Arc::new(RamFs::new()));
    let init = InitInShort {
        major: 7,
        minor: 41,
        ..InitInShort::default()
    };
    client.call(Opcode::Init, 0, &init.to_vec()).unwrap();
    let short = SetxattrInShort { size: 1, flags: 0 };
    client
        .call(Opcode::Setxattr, ROOT_ID, &with(&short, b"user.a\0v"))
        .unwrap();
    let (entry, _) = create(&client, b"a\0").unwrap();
    assert_eq!(entry.attr.mode & 0o777, 0o666, "the guest has applied the umask");
    for dots in [&b".\0"[..], b"..\0"] {
        assert_eq!(
            client.call(Opcode::Lookup, ROOT_ID, dots),
            Err(Errno(libc::EINVAL))
        );
    }
}

#[test]
fn lookups_are_forgotten_one_by_one_and_many_at_once() {
    let client = client();
    let (one, _) = create(&client, b"a\0").unwrap();
    let (two, _) = create(&client, b"b\0").unwrap();
    for _ in 0..9 {
        client.call(Opcode::Lookup, ROOT_ID, b"a\0").unwrap();
    }
    client.tell(Opcode::Forget, one.nodeid, &4u64.to_le_bytes());
    assert_eq!(client.fs().held().0, 7);
    // More than fit into one piece of the server's.
    let mut forgets = vec![
        ForgetOne {
            nodeid: 999,
            nlookup: 1
        };
        150
    ];
    forgets[3] = ForgetOne {
        nodeid: one.nodeid,
        nlookup: 5,
    };
    forgets[149] = ForgetOne {
        nodeid: two.nodeid,
        nlookup: 1,
    };
    let batch = |count, forgets: &[ForgetOne]| {
        let head = BatchForgetIn { count, dummy: 0 };
        with(&head, &forgets.iter().flat_map(Wire::to_vec).collect::<Vec<_>>())
    };
    client.tell(Opcode::BatchForget, 0, &batch(150, &forgets));
    assert_eq!(client.fs().held().0, 1);
    // A count that is not true.
    client.tell(Opcode::BatchForget, 0, &batch(u32::MAX, &forgets[3..4]));
    assert_eq!(client.fs().held().0, 0);
    client.tell(Opcode::Forget, one.nodeid, b"short");
    client.tell(Opcode::BatchForget, 0, b"short");
    client.tell(Opcode::Interrupt, 0, b"short");
    client.tell(Opcode::NotifyReply, 0, &[0; 64]);
}

/// A guest with a file open that owner 1 has locked: the node and the handle.
fn with_lock() -> (Client<RamFs>, u64, u64) {
    let client = client();
    let (entry, opened) = create(&client, b"a\0").unwrap();
    lock(
        &client,
        Opcode::Setlk,
        100,
        entry.nodeid,
        opened.fh,
        1,
        libc::F_WRLCK,
    )
    .unwrap();
    (client, entry.nodeid, opened.fh)
}

fn lock(
    client: &Client<RamFs>,
    opcode: Opcode,
    unique: u64,
    node: u64,
    fh: u64,
    owner: u64,
    kind: i32,
) -> Result<Vec<u8>> {
    let arg = LkIn {
        fh,
        owner,
        lk: FileLock {
            start: 0,
            end: i64::MAX as u64,
            kind: kind as u32,
            pid: owner as u32,
        },
        ..LkIn::default()
    };
    match client.send(&request_bytes(opcode as u32, unique, node, &arg.to_vec()), 100) {
        Answer::Success(reply) => Ok(reply),
        Answer::Error(error) => Err(error),
        Answer::None => panic!("no reply"),
    }
}

#[test]
fn locks_are_tested_taken_and_dropped() {
    let (client, node, fh) = with_lock();
    let found = lock(&client, Opcode::Getlk, 2, node, fh, 2, libc::F_RDLCK).unwrap();
    let found = LkOut::decode(&found).unwrap().lk;
    assert_eq!((found.kind, found.pid, found.end), (1, 1, i64::MAX as u64));
    assert_eq!(
        lock(&client, Opcode::Setlk, 4, node, fh, 2, libc::F_WRLCK),
        Err(Errno(libc::EAGAIN))
    );
    assert_eq!(
        lock(&client, Opcode::Setlk, 6, node, fh, 2, 7),
        Err(Errno(libc::EINVAL))
    );
    assert_eq!(
        lock(&client, Opcode::Getlk, 8, node, fh, 2, libc::F_UNLCK),
        Err(Errno(libc::EINVAL))
    );
    lock(&client, Opcode::Setlkw, 10, node, fh, 1, libc::F_UNLCK).unwrap();
    lock(&client, Opcode::Setlkw, 12, node, fh, 2, libc::F_WRLCK).unwrap();
}

#[test]
fn a_request_that_waits_ends_with_what_it_waited_for_or_with_an_interrupt() {
    let (client, node, fh) = with_lock();
    std::thread::scope(|scope| {
        let interrupted = scope.spawn(|| lock(&client, Opcode::Setlkw, 50, node, fh, 2, libc::F_WRLCK));
        let patient = scope.spawn(|| lock(&client, Opcode::Setlkw, 52, node, fh, 3, libc::F_WRLCK));
        // Right whether it comes before the request or after.
        client.tell(Opcode::Interrupt, 0, &50u64.to_le_bytes());
        assert_eq!(interrupted.join().unwrap(), Err(Errno(libc::EINTR)));
        assert!(!patient.is_finished());
        lock(&client, Opcode::Setlk, 54, node, fh, 1, libc::F_UNLCK).unwrap();
        assert_eq!(patient.join().unwrap(), Ok(vec![]));
    });
}

/// EINTR without a signal would reach the guest's program as 512.
#[test]
fn a_wait_that_a_stop_ends_has_no_lock() {
    let (client, node, fh) = with_lock();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lock(&client, Opcode::Setlkw, 50, node, fh, 2, libc::F_WRLCK));
        // Right whether it comes before the request or after.
        client.server.interrupt_all(true);
        assert_eq!(waiting.join().unwrap(), Err(Errno(libc::ENOLCK)));
    });
    client.server.interrupt_all(false);
}

#[test]
fn a_reset_ends_waits() {
    let (client, node, fh) = with_lock();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lock(&client, Opcode::Setlkw, 50, node, fh, 2, libc::F_WRLCK));
        // It may come before the request, before its wait, or during it.
        client.server.reset();
        let Err(Errno(errno)) = waiting.join().unwrap() else {
            panic!("the lock was held when the session ended");
        };
        assert!([libc::ENOLCK, libc::EBADF, libc::EIO].contains(&errno), "{errno}");
    });
}
