//! Who owns a file and with which permissions, as the guest is to see it: the record that says so, and the rules.
//!
//! What the rules are is in the documentation of [the module above](super).

use super::config::Unowned;

/// The xattr that the record is kept in.
pub(super) const RECORD_XATTR: &std::ffi::CStr = c"user.berth.owner";
/// The longest record there is.
pub(super) const RECORD_MAX: usize = 64;

/// Permission bits with setuid, setgid and sticky.
const PERMISSIONS: u32 = 0o7777;
const SETUID: u32 = libc::S_ISUID;
const SETGID: u32 = libc::S_ISGID;
const STICKY: u32 = libc::S_ISVTX;

/// What the guest has set. As text: `1:UID:GID:MODE:HOST`, numbers in decimal, modes in octal; what is empty was not
/// set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Record {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mode: Option<RecordedMode>,
}

/// Permissions that the host's mode cannot say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordedMode {
    /// What the guest set.
    pub(super) shown: u32,
    /// The host's mode at that time. When the host's is another, somebody has changed it there since, and `shown` is
    /// void.
    pub(super) host: u32,
}

impl Record {
    /// Reads a record; none for anything that is not one.
    pub(super) fn parse(text: &[u8]) -> Option<Record> {
        if text.len() > RECORD_MAX {
            return None;
        }
        let mut fields = std::str::from_utf8(text).ok()?.split(':');
        if fields.next()? != "1" {
            return None;
        }
        let mut number = |radix: u32, most: u32| match fields.next()? {
            "" => Some(None),
            text if text.starts_with('+') => None,
            text => Some(Some(
                u32::from_str_radix(text, radix)
                    .ok()
                    .filter(|number| *number <= most)?,
            )),
        };
        // u32::MAX means "leave alone" to chown(2) and is nobody's id.
        let (uid, gid) = (number(10, u32::MAX - 1)?, number(10, u32::MAX - 1)?);
        let mode = match (number(8, PERMISSIONS)?, number(8, PERMISSIONS)?) {
            (Some(shown), Some(host)) => Some(RecordedMode { shown, host }),
            (None, None) => None,
            _ => return None,
        };
        fields.next().is_none().then_some(Record { uid, gid, mode })
    }

    /// The record as text.
    pub(super) fn format(&self) -> String {
        let id = |id: Option<u32>| id.map(|id| id.to_string()).unwrap_or_default();
        let mode = self.mode.map(|mode| format!("{:o}:{:o}", mode.shown, mode.host));
        format!(
            "1:{}:{}:{}",
            id(self.uid),
            id(self.gid),
            mode.as_deref().unwrap_or(":")
        )
    }

    /// Whether it says nothing, and need not be kept.
    pub(super) fn is_empty(&self) -> bool {
        *self == Record::default()
    }

    /// Notes that the guest has set `mode` and the host's is `host_mode` now.
    pub(super) fn set_mode(&mut self, kind: u32, mode: u32, host_mode: u32) {
        let (mode, host) = (mode & PERMISSIONS, host_mode & PERMISSIONS);
        let says_it_all = shown_mode(kind | host, None) == mode;
        self.mode = (!says_it_all).then_some(RecordedMode { shown: mode, host });
    }
}

/// Owner and permissions as shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    /// Type and permissions.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The owner depends on who asks.
    pub(super) asker: bool,
}

/// Whose view it is: who asks, and who owns the file on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    pub(super) asker: (u32, u32),
    pub(super) host: (u32, u32),
    pub(super) unowned: Unowned,
}

/// What is shown of a file with the host's `mode` (with its type) and `record`.
pub(super) fn show(mode: u32, record: &Record, view: View) -> Shown {
    let (uid, gid) = match view.unowned {
        Unowned::Asker => view.asker,
        Unowned::Host => view.host,
        Unowned::As { uid, gid } => (uid, gid),
    };
    Shown {
        mode: mode & libc::S_IFMT | shown_mode(mode, record.mode),
        uid: record.uid.unwrap_or(uid),
        gid: record.gid.unwrap_or(gid),
        asker: view.unowned == Unowned::Asker && (record.uid.is_none() || record.gid.is_none()),
    }
}

/// Permissions as shown.
///
/// setuid and setgid of a file on the host mean "as the host's user"; shown as the asker's, whoever runs the file next
/// would become whoever looked at it last. So they are shown of directories only.
fn shown_mode(mode: u32, recorded: Option<RecordedMode>) -> u32 {
    match recorded {
        Some(recorded) if recorded.host == mode & PERMISSIONS => recorded.shown,
        _ if mode & libc::S_IFMT == libc::S_IFDIR => mode & (0o777 | SETGID | STICKY),
        _ => mode & (0o777 | STICKY),
    }
}

/// What the host's mode becomes when the guest wants `mode`: the host's user keeps access, and nothing is ever setuid.
/// `before` is the host's mode with its type: a directory's setgid and sticky stay, for the host put them there.
pub(super) fn host_mode(before: u32, mode: u32) -> u32 {
    if before & libc::S_IFMT == libc::S_IFDIR {
        mode & 0o777 | 0o700 | before & (SETGID | STICKY)
    } else {
        mode & 0o777 | 0o600
    }
}

/// What is left of `mode` after a write or chown (`chmod(2)`, "kill"): no setuid, and no setgid where it means a group.
pub(super) fn without_privileges(mode: u32) -> u32 {
    let group_runs = mode & SETGID != 0 && mode & 0o010 != 0;
    mode & !SETUID & !(if group_runs { SETGID } else { 0 })
}

/// Whether running the file changes who one is.
pub(super) fn is_privileged(mode: u32) -> bool {
    mode & (SETUID | SETGID) != 0
}

/// The record of a new node: who makes it, with which permissions (type included, umask applied), in which directory.
pub(super) struct New {
    /// Owner and group; no record when not needed.
    pub(super) record: Record,
    /// Permissions with type, setgid inherited.
    pub(super) mode: u32,
}

/// What a new node made by `asker` gets. A record of its owner is needed when the directory has one (what is made in a
/// tree that was chowned stays somebody's), or when it would otherwise not always appear as the maker's.
pub(super) fn new_node(mode: u32, asker: (u32, u32), parent: &Record, parent_mode: u32, view: View) -> New {
    let needed = parent.uid.is_some()
        || match view.unowned {
            Unowned::Asker => asker.0 != 0,
            Unowned::Host => asker != view.host,
            Unowned::As { uid, gid } => asker != (uid, gid),
        };
    let mut new = New {
        record: Record::default(),
        mode,
    };
    let inherits = shown_mode(parent_mode, parent.mode) & SETGID != 0;
    if needed || is_privileged(mode) {
        new.record.uid = Some(asker.0);
        new.record.gid = Some(asker.1);
    }
    if inherits {
        // Without a group of its own the directory's is the asker's, which is what the new node would have anyway.
        new.record.gid = parent.gid.or(new.record.gid);
        if mode & libc::S_IFMT == libc::S_IFDIR {
            new.mode |= SETGID;
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: u32 = libc::S_IFREG;
    const DIR: u32 = libc::S_IFDIR;

    fn view(uid: u32) -> View {
        View {
            asker: (uid, uid),
            host: (501, 20),
            unowned: Unowned::Asker,
        }
    }

    fn owned(uid: u32) -> Record {
        Record {
            uid: Some(uid),
            gid: Some(uid),
            mode: None,
        }
    }

    #[test]
    fn unowned_appears_as_the_askers_and_owned_as_its_owners() {
        for uid in [0, 999] {
            let shown = show(FILE | 0o644, &Record::default(), view(uid));
            assert_eq!(
                (shown.uid, shown.gid, shown.mode, shown.asker),
                (uid, uid, FILE | 0o644, true)
            );
            let shown = show(FILE | 0o644, &owned(7), view(uid));
            assert_eq!((shown.uid, shown.gid, shown.asker), (7, 7, false));
        }
        let group_only = Record {
            gid: Some(5),
            ..Record::default()
        };
        assert!(show(FILE, &group_only, view(1)).asker);
        let host = View {
            unowned: Unowned::Host,
            ..view(0)
        };
        assert_eq!(show(FILE, &Record::default(), host).uid, 501);
        let fixed = View {
            unowned: Unowned::As { uid: 8, gid: 9 },
            ..view(0)
        };
        assert_eq!(show(FILE, &Record::default(), fixed).gid, 9);
    }

    #[test]
    fn the_hosts_change_of_mode_wins() {
        let mut record = owned(999);
        record.set_mode(FILE, 0o4400, 0o600);
        assert_eq!(show(FILE | 0o600, &record, view(0)).mode, FILE | 0o4400);
        assert_eq!(
            show(FILE | 0o644, &record, view(0)).mode,
            FILE | 0o644,
            "and the owner stays"
        );
        assert_eq!(show(FILE | 0o644, &record, view(0)).uid, 999);
    }

    #[test]
    fn a_mode_that_the_host_says_as_well_is_not_recorded() {
        let mut record = Record::default();
        record.set_mode(FILE, 0o640, 0o640);
        assert!(record.is_empty());
        record.set_mode(DIR, 0o2750, 0o2750);
        assert!(record.is_empty());
        record.set_mode(FILE, 0o2750, 0o750);
        assert!(record.mode.is_some());
        record.set_mode(FILE, 0o750, 0o750);
        assert!(record.is_empty(), "back to plain");
    }

    #[test]
    fn setuid_of_the_hosts_is_not_the_guests() {
        assert_eq!(
            show(FILE | 0o6755, &Record::default(), view(0)).mode,
            FILE | 0o755
        );
        assert_eq!(show(DIR | 0o3777, &Record::default(), view(0)).mode, DIR | 0o3777);
    }

    #[test]
    fn the_host_user_keeps_access_and_nothing_becomes_setuid() {
        assert_eq!(host_mode(FILE | 0o644, 0o4000), 0o600);
        assert_eq!(host_mode(DIR | 0o755, 0o7055), 0o755);
        assert_eq!(host_mode(DIR | 0o2755, 0o700), 0o2700);
    }

    #[test]
    fn privileges_go_as_the_kernel_takes_them() {
        assert_eq!(without_privileges(0o6755), 0o755);
        assert_eq!(
            without_privileges(0o2745),
            0o2745,
            "without group execution it is mandatory locking"
        );
        assert_eq!(without_privileges(0o1755), 0o1755);
    }

    #[test]
    fn new_nodes_are_recorded_where_it_matters() {
        let plain = Record::default();
        let new = |asker, parent: &Record, parent_mode| {
            new_node(FILE | 0o644, (asker, asker), parent, parent_mode, view(asker)).record
        };
        assert!(new(0, &plain, DIR | 0o755).is_empty());
        assert_eq!(new(999, &plain, DIR | 0o755), owned(999));
        assert_eq!(new(0, &owned(999), DIR | 0o700), owned(0));
        assert_eq!(
            new(999, &owned(50), DIR | 0o2775),
            Record {
                uid: Some(999),
                gid: Some(50),
                mode: None
            }
        );
        let dir = new_node(DIR | 0o755, (1, 1), &owned(50), DIR | 0o2775, view(1));
        assert_eq!(dir.mode, DIR | 0o2755);
        let setuid = new_node(FILE | 0o4755, (0, 0), &plain, DIR | 0o755, view(0));
        assert_eq!(setuid.record.uid, Some(0), "setuid goes with a certain owner");
    }

    #[test]
    fn what_is_not_a_record_is_none() {
        let long = format!("1:{}1::", "0".repeat(RECORD_MAX));
        for bad in [
            "",
            "1",
            "1:1",
            "1:1:1:1",
            "2:1:1:1:1",
            "1:1:1:1:1:1",
            "1:-1:1::",
            "1:+1:1::",
            "1:4294967295:1::",
            "1:1:1:8:8",
            "1:1:1:17777:1",
            "1:1:1:1:",
            "1:1:1::1",
            "1:x:1::",
            " 1:1:1::",
            "1:1:1::\n",
            "1:\u{661}:1::",
            &long,
        ] {
            assert_eq!(Record::parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(Record::parse(b"1:\xff:1::"), None);
        assert_eq!(Record::parse(b"1::::"), Some(Record::default()));
    }

    proptest! {
        #[test]
        fn a_record_reads_as_it_was_written(
            uid in prop::option::of(0..u32::MAX), gid in prop::option::of(0..u32::MAX),
            mode in prop::option::of((0u32..0o10000, 0u32..0o10000)),
        ) {
            let mode = mode.map(|(shown, host)| RecordedMode { shown, host });
            let record = Record { uid, gid, mode };
            let text = record.format();
            prop_assert!(text.len() <= RECORD_MAX);
            prop_assert_eq!(Record::parse(text.as_bytes()), Some(record));
        }

        #[test]
        fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Record::parse(&bytes);
        }
    }
}
