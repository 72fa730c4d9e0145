//! Whether a file is still what it was when it was last looked at.
//!
//! Times of the host say so, with one exception: right after a change they do not count, for the clock that files are
//! stamped with is coarse, and another change in the same tick would not show.
//!
//! At each open the file's size and times are condensed into a stamp. When it is the same as at the open before,
//! nothing has been written in between, by whomever, and the guest may keep its pages (FOPEN_KEEP_CACHE). The time of
//! the last change alone tells whether an ownership record may have been made since it was found that there is none.

use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::Statx;

/// Longer than any tick of the clock that files are stamped with.
const TICK: Duration = Duration::from_millis(100);

/// "Not known". What nodes start with.
pub(super) const UNKNOWN: u64 = 0;

/// Notes the attributes of a file that is being opened. Returns whether it has been the same since the open before.
pub(super) fn unchanged(last: &AtomicU64, st: &Statx, now: SystemTime) -> bool {
    let stamp = if is_settled(st, now) {
        condense(st, true)
    } else {
        UNKNOWN
    };
    last.swap(stamp, Ordering::AcqRel) == stamp && stamp != UNKNOWN
}

/// A stamp of the last change of anything, attributes included; [`UNKNOWN`] right after one.
pub(super) fn change_stamp(st: &Statx) -> u64 {
    if is_settled(st, SystemTime::now()) {
        condense(st, false)
    } else {
        UNKNOWN
    }
}

/// Whether the last change was long enough ago for another one to show.
fn is_settled(st: &Statx, now: SystemTime) -> bool {
    let Ok(seconds) = u64::try_from(st.stx_ctime.tv_sec) else {
        return false;
    };
    let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, st.stx_ctime.tv_nsec);
    // A time to come (a server's clock, or one that was set back) says nothing either.
    now.duration_since(changed).is_ok_and(|age| age > TICK)
}

fn condense(st: &Statx, contents: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_i64(st.stx_ctime.tv_sec);
    hasher.write_u32(st.stx_ctime.tv_nsec);
    if contents {
        hasher.write_i64(st.stx_mtime.tv_sec);
        hasher.write_u32(st.stx_mtime.tv_nsec);
        hasher.write_u64(st.stx_size);
    }
    hasher.finish().max(UNKNOWN + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passthrough::sys;

    #[test]
    fn an_old_change_is_known_and_a_new_one_is_not_trusted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let last = AtomicU64::new(UNKNOWN);
        let now = SystemTime::now();
        let st = sys::stat(file.as_file()).unwrap();
        assert!(!unchanged(&last, &st, now), "just made");
        assert!(
            !unchanged(&last, &st, now),
            "a change in the same tick would look like this"
        );
        let later = now + 10 * TICK;
        assert!(!unchanged(&last, &st, later), "the first that counts");
        assert!(unchanged(&last, &st, later));
        assert!(
            !unchanged(&last, &st, now - Duration::from_secs(60)),
            "a change in the future"
        );

        std::fs::write(file.path(), "x").unwrap();
        let st = sys::stat(file.as_file()).unwrap();
        assert!(!unchanged(&last, &st, later));
        assert!(unchanged(&last, &st, later));
    }
}
