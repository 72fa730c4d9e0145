//! Caching of attributes that depend on who asks.
//!
//! A file that no guest has ever chowned appears owned by whoever asks, but the guest's kernel keeps one set of
//! attributes for an inode, whoever looked. So they may be cached only while one uid is looking: the "viewer" of the
//! share. Root is special, because it looks at everything in passing (a container engine resolves every bind source):
//! it never takes the view from a user, and what it is shown may not be cached while a user has been about in the last
//! half minute. Nothing is cached while several users alternate.
//!
//! When a user appears, attributes shown to the viewer before may still be cached; the user's first request waits until
//! they have expired, a second at most. This is exact for attribute timeouts up to [`LONGEST_WAIT`], but for one case:
//! a process whose every access is answered from the guest's caches shows itself to nobody. So such attributes are never
//! cached for longer, unless the guest's kernel shows each caller as the owner by itself ([`crate::wire::BERTH_ATTRS`]):
//! then all of this is out of use.
//!
//! Times are milliseconds since some start.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// The longest that a request waits for attributes cached for somebody else to expire.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// For so long after a user's last request, nothing that root is shown is cached.
const PRESENCE: u64 = 30_000;
/// For so long after users have alternated, nothing is cached.
const MIXED: u64 = 10_000;
/// Expiry is noted in steps of this, to write to shared memory rarely.
const STEP: u64 = 16;

const ROOT: u32 = 0;

/// Who is looking at a share.
#[derive(Debug)]
pub(super) struct Viewers {
    /// How long attributes are cached, in milliseconds.
    timeout: u64,
    viewer: AtomicU32,
    /// By then everything that was shown as the viewer's has expired.
    expires: AtomicU64,
    /// A change of viewers is complete from then on.
    settled: AtomicU64,
    /// Nothing is cached until then.
    mixed: AtomicU64,
    /// When a user other than root last asked, plus one; 0 for never.
    user_seen: AtomicU64,
}

impl Viewers {
    /// For attributes that are cached for `timeout`.
    pub(super) fn new(timeout: Duration) -> Viewers {
        Viewers {
            timeout: u64::try_from(timeout.as_millis())
                .unwrap_or(u64::MAX / 4)
                .min(u64::MAX / 4),
            viewer: AtomicU32::new(ROOT),
            expires: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            mixed: AtomicU64::new(0),
            user_seen: AtomicU64::new(0),
        }
    }

    /// A request by `uid`: how long it has to wait before anything is looked at on its behalf.
    pub(super) fn enter(&self, uid: u32, now: u64) -> Duration {
        if self.timeout == 0 || uid == ROOT {
            return Duration::ZERO;
        }
        if self.user_seen.load(SeqCst) < now / STEP * STEP {
            self.user_seen.store(now + 1, SeqCst);
        }
        let before = self.viewer.swap(uid, SeqCst);
        if before != uid {
            if before != ROOT {
                self.mixed.fetch_max(now + MIXED, SeqCst);
            }
            // Read after the swap: whoever is shown something cacheable notes the expiry and then looks whether it is
            // still the viewer.
            let longest = LONGEST_WAIT.as_millis() as u64;
            self.settled
                .fetch_max(self.expires.load(SeqCst).min(now + longest), SeqCst);
        }
        Duration::from_millis(self.settled.load(SeqCst).saturating_sub(now))
    }

    /// Whether what `uid` is shown now may be cached.
    pub(super) fn cacheable(&self, uid: u32, now: u64) -> bool {
        if self.timeout == 0 || now < self.mixed.load(SeqCst) {
            return false;
        }
        let viewer = self.viewer.load(SeqCst);
        if viewer != uid {
            let seen = self.user_seen.load(SeqCst);
            let alone = uid == ROOT && now > seen + PRESENCE && now >= self.expires.load(SeqCst);
            if !alone
                || self
                    .viewer
                    .compare_exchange(viewer, ROOT, SeqCst, SeqCst)
                    .is_err()
            {
                return false;
            }
        }
        let expires = (now + self.timeout).next_multiple_of(STEP);
        if self.expires.load(SeqCst) < expires {
            self.expires.fetch_max(expires, SeqCst);
        }
        self.viewer.load(SeqCst) == uid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: u64 = 1_000_000;

    fn viewers() -> Viewers {
        Viewers::new(Duration::from_secs(1))
    }

    fn wait(viewers: &Viewers, uid: u32, now: u64) -> u64 {
        viewers.enter(uid, now).as_millis() as u64
    }

    #[test]
    fn a_single_viewer_caches_at_once() {
        for uid in [0, 1000] {
            let viewers = viewers();
            assert_eq!(wait(&viewers, uid, T), 0);
            assert!(viewers.cacheable(uid, T));
            assert_eq!(wait(&viewers, uid, T + 5), 0);
            assert!(viewers.cacheable(uid, T + 5));
        }
    }

    #[test]
    fn a_user_waits_until_what_root_was_shown_has_expired() {
        let viewers = viewers();
        assert!(viewers.cacheable(0, T));
        let first = wait(&viewers, 1000, T + 300);
        assert!((700..=700 + STEP).contains(&first), "{first}");
        assert!(
            wait(&viewers, 1000, T + 310) >= first - 10,
            "so does the user's next thread"
        );
        assert!(!viewers.cacheable(0, T + 320), "root no longer");
        let after = T + 300 + first;
        assert_eq!(wait(&viewers, 1000, after), 0);
        assert!(viewers.cacheable(1000, after));
    }

    #[test]
    fn root_looking_on_does_not_disturb_a_user() {
        let viewers = viewers();
        assert_eq!(wait(&viewers, 1000, T), 0);
        assert!(viewers.cacheable(1000, T));
        assert_eq!(wait(&viewers, 0, T + 1), 0);
        assert!(!viewers.cacheable(0, T + 1));
        assert_eq!(wait(&viewers, 1000, T + 2), 0);
        assert!(viewers.cacheable(1000, T + 2));
        assert!(!viewers.cacheable(0, T + PRESENCE - 100));
        assert!(viewers.cacheable(0, T + PRESENCE + 10), "the user is gone");
        assert!(wait(&viewers, 1000, T + PRESENCE + 20) > 900);
    }

    #[test]
    fn two_users_cache_nothing_until_one_is_left() {
        let viewers = viewers();
        assert_eq!(wait(&viewers, 1000, T), 0);
        assert!(viewers.cacheable(1000, T));
        assert!(wait(&viewers, 999, T + 500) >= 500);
        let later = T + 2000;
        for step in 0..10 {
            assert_eq!(
                wait(&viewers, [1000, 999][step % 2], later),
                0,
                "nothing is cached, so nobody waits"
            );
            assert!(!viewers.cacheable(1000, later) && !viewers.cacheable(999, later));
        }
        assert!(viewers.cacheable(999, later + MIXED));
    }

    #[test]
    fn no_caching_means_no_waiting() {
        let viewers = Viewers::new(Duration::ZERO);
        assert!(!viewers.cacheable(0, T));
        assert_eq!(wait(&viewers, 1000, T), 0);
        assert!(!viewers.cacheable(1000, T));
    }

    #[test]
    fn waiting_is_bounded_whatever_the_timeout() {
        let viewers = Viewers::new(Duration::MAX);
        assert!(viewers.cacheable(0, T));
        assert_eq!(wait(&viewers, 1000, T), 1000);
    }
}
