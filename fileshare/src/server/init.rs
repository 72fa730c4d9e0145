//! INIT: which version is spoken, which features are on, how large requests may be.

use crate::filesystem::{Errno, Result};
use crate::wire::{self, InitInShort, InitOut};

/// The most data that one request carries, in bytes. The guest's kernel has the same limit (256 pages of 4 KiB).
pub const MAX_WRITE: u32 = 1 << 20;

/// Pages of the guest that [`MAX_WRITE`] is, where they are the smallest.
const MAX_PAGES: u16 = (MAX_WRITE / 4096) as u16;

/// What a guest without FUSE_MAX_PAGES sends at most: 32 pages.
const MAX_WRITE_WITHOUT_MAX_PAGES: u32 = 32 * 4096;

/// The oldest guest: Linux 5.4, the first with virtio-fs, speaks 7.31. No structure here has a shorter form for older ones.
const OLDEST_MINOR: u32 = 31;

/// Requests that nobody waits for which the guest may have under way. The default, 12, is for a server in another process
/// of the same machine; here it would leave several queues idle while a large file is read ahead.
const MAX_BACKGROUND: u16 = 256;

/// What the server always turns on where it is offered; a file system has no say in it.
const ALWAYS: u64 = wire::BIG_WRITES | wire::MAX_PAGES | wire::INIT_EXT;

/// What a file system may turn on.
///
/// Not here, with the reason: FILE_OPS (means nothing), SPLICE_*, ABORT_ERROR and PASSTHROUGH (of the device file
/// /dev/fuse), HAS_EXPIRE_ONLY and HAS_RESEND (of notifications, which Linux's virtio-fs driver does not take), MAP_ALIGNMENT
/// and HAS_INODE_DAX (no DAX window), WRITEBACK_CACHE (the guest would never see sizes and times that change on the host),
/// HANDLE_KILLPRIV (its second version tells the server what it must do), POSIX_ACL and HAS_IOCTL_DIR (no ACLs, no ioctl),
/// SECURITY_CTX and CREATE_SUPP_GROUP (what they add to requests does not reach the file system), ALLOW_IDMAP (requests come
/// without ids then, and a file that was never chowned is shown as its viewer's).
pub const NEGOTIABLE: u64 = wire::ASYNC_READ
    | wire::POSIX_LOCKS
    | wire::ATOMIC_O_TRUNC
    | wire::EXPORT_SUPPORT
    | wire::DONT_MASK
    | wire::FLOCK_LOCKS
    | wire::AUTO_INVAL_DATA
    | wire::DO_READDIRPLUS
    | wire::READDIRPLUS_AUTO
    | wire::ASYNC_DIO
    | wire::NO_OPEN_SUPPORT
    | wire::PARALLEL_DIROPS
    | wire::CACHE_SYMLINKS
    | wire::NO_OPENDIR_SUPPORT
    | wire::EXPLICIT_INVAL_DATA
    | wire::SUBMOUNTS
    | wire::HANDLE_KILLPRIV_V2
    | wire::SETXATTR_EXT
    | wire::DIRECT_IO_ALLOW_MMAP
    | wire::NO_EXPORT_SUPPORT
    | wire::BERTH_ATTRS;

/// What becomes of an INIT.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The session starts with these features.
    Start { reply: InitOut, flags: u64 },
    /// The guest speaks a newer major version and is to ask again with ours.
    AskAgain(InitOut),
}

/// Answers INIT. `flags2` is none when the guest did not send it; `choose` is [`crate::filesystem::FileSystem::init`].
pub(super) fn negotiate(
    init: InitInShort,
    flags2: Option<u32>,
    choose: impl FnOnce(u64) -> u64,
) -> Result<Answer> {
    let mut reply = InitOut {
        major: wire::KERNEL_VERSION,
        minor: wire::KERNEL_MINOR_VERSION,
        ..InitOut::default()
    };
    if init.major > wire::KERNEL_VERSION {
        return Ok(Answer::AskAgain(reply));
    }
    if init.major < wire::KERNEL_VERSION || init.minor < OLDEST_MINOR {
        tracing::warn!(
            "a guest speaks FUSE {}.{}, which is too old to be served: at least {}.{OLDEST_MINOR} (Linux 5.4) is needed",
            init.major,
            init.minor,
            wire::KERNEL_VERSION
        );
        return Err(Errno(libc::EPROTO));
    }

    let mut offered = u64::from(init.flags);
    if offered & wire::INIT_EXT != 0 {
        offered |= u64::from(flags2.unwrap_or(0)) << 32;
    }
    let negotiable = offered & NEGOTIABLE;
    let flags = (choose(negotiable) & negotiable) | (offered & ALWAYS);

    reply.minor = init.minor.min(wire::KERNEL_MINOR_VERSION);
    reply.max_readahead = init.max_readahead;
    // The two halves.
    reply.flags = flags as u32;
    reply.flags2 = (flags >> 32) as u32;
    reply.max_background = MAX_BACKGROUND;
    reply.congestion_threshold = MAX_BACKGROUND / 4 * 3;
    reply.time_gran = 1;
    if flags & wire::MAX_PAGES != 0 {
        reply.max_pages = MAX_PAGES;
        reply.max_write = MAX_WRITE;
    } else {
        reply.max_write = MAX_WRITE_WITHOUT_MAX_PAGES;
    }
    Ok(Answer::Start { reply, flags })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(minor: u32, flags: u64) -> InitInShort {
        InitInShort {
            major: 7,
            minor,
            max_readahead: 131_072,
            flags: flags as u32,
        }
    }

    fn start(init: InitInShort, flags2: Option<u32>, choose: impl FnOnce(u64) -> u64) -> (InitOut, u64) {
        match negotiate(init, flags2, choose).unwrap() {
            Answer::Start { reply, flags } => (reply, flags),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_is_offered_and_can_be_done_is_turned_on() {
        let mut seen = 0;
        let (reply, flags) = start(offer(41, u64::MAX), Some(u32::MAX), |offered| {
            seen = offered;
            u64::MAX
        });
        assert_eq!(seen, NEGOTIABLE);
        assert_eq!(flags, NEGOTIABLE | ALWAYS);
        assert_eq!(u64::from(reply.flags) | u64::from(reply.flags2) << 32, flags);
        assert_eq!(
            flags & (wire::WRITEBACK_CACHE | wire::POSIX_ACL | wire::MAP_ALIGNMENT),
            0
        );
        assert_eq!((reply.max_write, reply.max_pages), (1 << 20, 256));
        assert_eq!(
            (reply.minor, reply.max_readahead, reply.time_gran),
            (41, 131_072, 1)
        );

        let (_, flags) = start(offer(41, wire::POSIX_LOCKS | wire::ASYNC_DIO), None, |_| u64::MAX);
        assert_eq!(flags, wire::POSIX_LOCKS | wire::ASYNC_DIO, "no more than offered");
        let (_, flags) = start(offer(41, u64::MAX), Some(u32::MAX), |_| wire::DONT_MASK);
        assert_eq!(flags, ALWAYS | wire::DONT_MASK, "no more than wanted");
    }

    #[test]
    fn the_second_half_of_the_flags_counts_only_when_announced() {
        let announced = wire::INIT_EXT;
        let (reply, flags) = start(offer(41, announced), Some(u32::MAX), |offered| offered);
        assert_eq!(flags >> 32, NEGOTIABLE >> 32);
        assert_ne!(reply.flags & announced as u32, 0);
        let (reply, _) = start(offer(41, !announced), Some(u32::MAX), |offered| offered);
        assert_eq!((reply.flags2, reply.flags & announced as u32), (0, 0));
        let (reply, _) = start(offer(35, announced), None, |offered| offered);
        assert_eq!(reply.flags2, 0);
    }

    #[test]
    fn versions() {
        assert_eq!(start(offer(31, 0), None, |_| 0).0.minor, 31);
        assert_eq!(start(offer(99, 0), None, |_| 0).0.minor, 41);
        assert_eq!(negotiate(offer(30, 0), None, |_| 0), Err(Errno(libc::EPROTO)));
        let older = InitInShort {
            major: 6,
            ..offer(99, 0)
        };
        assert_eq!(negotiate(older, None, |_| 0), Err(Errno(libc::EPROTO)));
        let newer = InitInShort {
            major: 8,
            ..offer(0, 0)
        };
        let answer = negotiate(newer, None, |_| panic!("the session has not started")).unwrap();
        assert!(matches!(
            answer,
            Answer::AskAgain(InitOut {
                major: 7,
                minor: 41,
                ..
            })
        ));
    }

    #[test]
    fn a_guest_that_does_not_know_max_pages_gets_the_old_limit() {
        let (reply, _) = start(offer(31, 0), None, |_| 0);
        assert_eq!((reply.max_write, reply.max_pages), (131_072, 0));
    }
}
