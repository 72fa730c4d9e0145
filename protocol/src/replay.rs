//! Changes that the host made in a share, done once more in the guest, on [`crate::ports::REPLAY`].
//!
//! Linux's virtio-fs driver has no way to hear of changes. So guest-init's agent performs each with a system call of its
//! own on the shared file system, and the host's file server, which knows the agent's requests by their user
//! ([`AGENT_UID`]) and the change by their group ([`Numbered::number`]), answers without touching the host. What watches
//! files in the guest sees the change as if it had happened there, and the guest's caches are right again.
//!
//! The host sends [`Batch`] frames ([`crate::frame`]), the guest answers each with [`Done`]. One batch is under way at a
//! time, and its actions are performed in order. A new connection takes over from the one before, whose batch is broken
//! off between two actions.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::frame::MAX_FRAME;

/// The user id of the agent's requests to the shared file system. Nobody has it in earnest: it is far above what systems
/// and containers hand out, and it is none of the ids that mean "nobody".
pub const AGENT_UID: u32 = 0xffb3_27e1;

/// The largest [`Numbered::number`]; the smallest is 1.
pub const LARGEST_NUMBER: u32 = 0x7fff_ffff;

/// A directory in the root of the shared file system that the host's file server shows to the agent only. What comes into
/// the share from elsewhere is renamed out of it, what leaves the share is renamed into it.
pub const STAGING: &str = ".berth-staging";

/// The node id that stands for the directory [`STAGING`]. No file of a FUSE file system has it.
pub const STAGING_NODE: u64 = 0;

/// The longest name of a file, in bytes.
const LONGEST_NAME: usize = 255;
/// The longest target of a symbolic link, in bytes (`PATH_MAX` without its NUL).
const LONGEST_TARGET: usize = 4095;

/// Host to guest: perform these, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Comes back in [`Done::number`].
    pub number: u64,
    /// What to perform. All of them must fit a frame ([`Batch::ROOM`]).
    pub actions: Vec<Numbered>,
}

impl Batch {
    /// The bytes a frame has for the actions of a batch; [`Numbered::room`] says how many each takes at most.
    pub const ROOM: usize = MAX_FRAME - 64;
}

/// Guest to host: a batch was performed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// [`Batch::number`].
    pub number: u64,
    /// What became of each action, in their order: 0, or the number of Linux's error. A node that the guest does not know
    /// is `ESTALE`, an action that makes no sense `EINVAL`.
    pub errors: Vec<i32>,
}

/// One action, and what its requests to the file server are known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered {
    /// The group id of the action's requests, from 1 to [`LARGEST_NUMBER`].
    pub number: u32,
    /// What to do.
    pub action: Action,
}

impl Numbered {
    /// How many bytes of a frame this takes at most.
    pub fn room(&self) -> usize {
        // The longest frame around names is that of a rename, of some 150 bytes.
        const AROUND: usize = 200;
        let names = match &self.action {
            Action::Make {
                name,
                what: What::Symlink { target },
                ..
            } => [Some(name), Some(target)],
            Action::Make { name, .. } | Action::Remove { name, .. } | Action::Confirm { name, .. } => {
                [Some(name), None]
            }
            Action::Rename { name, new_name, .. } => [Some(name), Some(new_name)],
            Action::Touch { name, .. } => [name.as_ref(), None],
            Action::Refresh { .. } | Action::DropCaches => [None, None],
        };
        // JSON's longest way to write a byte is `\u001f`.
        let names: usize = names.into_iter().flatten().map(|name| 6 * name.0.len()).sum();
        AROUND + names
    }
}

/// What the agent is to do. Objects are named by their FUSE node id, which stays the same however the guest's names for
/// them change; [`STAGING_NODE`] as a parent is the staging directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Make an object: `mknodat`, `mkdirat` or `symlinkat`.
    Make {
        /// The directory to make it in.
        parent: u64,
        /// Its name.
        name: Name,
        /// What it is.
        what: What,
    },
    /// Remove an object: `unlinkat`.
    Remove {
        /// The directory it is in.
        parent: u64,
        /// Its name.
        name: Name,
        /// Whether it is a directory.
        directory: bool,
    },
    /// Rename an object, over what has the new name: `renameat2`.
    Rename {
        /// The directory it is in.
        from: u64,
        /// Its name.
        name: Name,
        /// The directory it goes to.
        to: u64,
        /// Its name there.
        new_name: Name,
        /// Whether the two change places instead.
        exchange: bool,
    },
    /// Act as somebody who writes to an object, or changes its attributes, and have its attributes asked for anew.
    Touch {
        /// The directory the object is in.
        parent: u64,
        /// Its name there; none for the directory itself.
        name: Option<Name>,
        /// Open it for writing and close it at the end, so that watchers see that. The rest is done also when it cannot
        /// be opened (a program that runs cannot). For regular files only: whoever reads from a FIFO would notice.
        open: bool,
        /// Let watchers see that its contents have changed: `utimensat` of the time of modification alone.
        modified: bool,
        /// Let watchers see that its attributes have changed: `utimensat` of both times.
        attributes: bool,
    },
    /// Have an object's attributes asked for anew, and its contents. No watcher sees that.
    Refresh {
        /// The object.
        node: u64,
    },
    /// Have it asked anew what a name stands for: `mkdirat`, which Linux does not answer from its cache and the file server
    /// refuses. No watcher sees that.
    Confirm {
        /// The directory.
        parent: u64,
        /// The name in it.
        name: Name,
    },
    /// Have the guest forget all names it does not need. No watcher sees that.
    DropCaches,
}

/// What an object is made as. Its mode, owner and device number are the file server's business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A symbolic link.
    Symlink {
        /// Where it leads.
        target: Name,
    },
}

/// A name, or a link's target: any bytes. In JSON it is a string where it is UTF-8, else an array of its bytes.
///
/// What came over the wire may be no name at all: see [`Name::is_file_name`] and [`Name::is_target`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Vec<u8>);

impl Name {
    /// These bytes as a name.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Name {
        Name(bytes.into())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether a file can be called so, and no other than the file of that name is meant: one component of a path, not `.`
    /// or `..`, of at most 255 bytes.
    pub fn is_file_name(&self) -> bool {
        (1..=LONGEST_NAME).contains(&self.0.len())
            && !matches!(&self.0[..], b"." | b"..")
            && !self.0.iter().any(|byte| matches!(byte, b'/' | 0))
    }

    /// Whether a symbolic link can lead there.
    pub fn is_target(&self) -> bool {
        (1..=LONGEST_TARGET).contains(&self.0.len()) && !self.0.contains(&0)
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Name {
        Name::new(name)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{}\"", self.0.escape_ascii())
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.collect_seq(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        deserializer.deserialize_any(NameVisitor)
    }
}

struct NameVisitor;

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Name;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string or an array of bytes")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Name, E> {
        Ok(Name::new(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Name, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = sequence.next_element()? {
            bytes.push(byte);
        }
        Ok(Name(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::frame;

    fn json(value: &impl Serialize) -> String {
        serde_json::to_string(value).unwrap()
    }

    #[test]
    fn the_guests_kernel_knows_the_agent_by_the_same_user() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../kernel-config/patches/0006-fuse-names-without-asking.patch"
        );
        let line = format!("+#define FUSE_BERTH_AGENT_UID\t{AGENT_UID:#x}\n");
        assert!(std::fs::read_to_string(path).unwrap().contains(&line), "{line}");
    }

    #[test]
    fn actions_have_stable_names_on_the_wire() {
        let make = |what| Action::Make {
            parent: u64::MAX,
            name: "a".into(),
            what,
        };
        for (action, wire) in [
            (
                make(What::File),
                r#"{"make":{"parent":18446744073709551615,"name":"a","what":"file"}}"#,
            ),
            (
                make(What::Symlink {
                    target: Name::new([0xff]),
                }),
                r#"{"make":{"parent":18446744073709551615,"name":"a","what":{"symlink":{"target":[255]}}}}"#,
            ),
            (Action::Refresh { node: 7 }, r#"{"refresh":{"node":7}}"#),
            (Action::DropCaches, r#""drop_caches""#),
        ] {
            assert_eq!(json(&action), wire);
        }
        let done = Done {
            number: 1,
            errors: vec![0, 116],
        };
        assert_eq!(json(&done), r#"{"number":1,"errors":[0,116]}"#);
    }

    #[test]
    fn a_name_is_readable_where_it_can_be() {
        assert_eq!(json(&Name::from("é\n")), r#""é\n""#);
        assert_eq!(json(&Name::new(*b"a\x80")), "[97,128]");
        assert_eq!(
            serde_json::from_str::<Name>("[195, 169]").unwrap(),
            Name::from("é")
        );
        for wrong in ["[256]", "[-1]", "[\"a\"]", "7", "null", "{}"] {
            assert!(serde_json::from_str::<Name>(wrong).is_err(), "{wrong}");
        }
        assert_eq!(format!("{:?}", Name::new(*b"a\xff")), r#""a\xff""#);
    }

    #[test]
    fn what_could_lead_elsewhere_is_no_file_name() {
        for name in ["a", "...", ".a", "a b", "-", "\\", &"x".repeat(255)] {
            assert!(Name::from(name).is_file_name(), "{name}");
        }
        assert!(Name::new([0xff, 0xfe]).is_file_name());
        for name in ["", ".", "..", "/", "a/b", "a/", "a\0", &"x".repeat(256)] {
            assert!(!Name::from(name).is_file_name(), "{name:?}");
        }
    }

    #[test]
    fn a_link_can_lead_nearly_anywhere() {
        for target in ["/", "../..", ".", &"x".repeat(4095)] {
            assert!(Name::from(target).is_target());
        }
        for target in ["", "a\0", &"x".repeat(4096)] {
            assert!(!Name::from(target).is_target());
        }
    }

    #[test]
    fn an_action_nobody_knows_is_an_error() {
        for wrong in [
            r#"{"number":1,"action":"dance"}"#,
            r#"{"number":1,"action":{"refresh":{}}}"#,
            r#"{"number":-1,"action":"drop_caches"}"#,
        ] {
            assert!(serde_json::from_str::<Numbered>(wrong).is_err(), "{wrong}");
        }
    }

    fn any_name() -> impl Strategy<Value = Name> {
        prop_oneof![
            "[a-z.]{0,12}".prop_map(Name::new),
            ".{0,40}".prop_map(Name::new),
            vec(any::<u8>(), 0..300).prop_map(Name::new),
            vec(0u8..32, 0..300).prop_map(Name::new),
        ]
    }

    fn any_what() -> impl Strategy<Value = What> {
        prop_oneof![
            Just(What::File),
            Just(What::Directory),
            Just(What::Fifo),
            Just(What::Socket),
            any_name().prop_map(|target| What::Symlink { target }),
        ]
    }

    fn any_action() -> impl Strategy<Value = Action> {
        prop_oneof![
            (any::<u64>(), any_name(), any_what()).prop_map(|(parent, name, what)| Action::Make {
                parent,
                name,
                what
            }),
            (any::<u64>(), any_name()).prop_map(|(parent, name)| Action::Confirm { parent, name }),
            (any::<u64>(), any_name(), any::<bool>()).prop_map(|(parent, name, directory)| Action::Remove {
                parent,
                name,
                directory
            }),
            (any::<u64>(), any_name(), any::<u64>(), any_name(), any::<bool>()).prop_map(
                |(from, name, to, new_name, exchange)| Action::Rename {
                    from,
                    name,
                    to,
                    new_name,
                    exchange
                }
            ),
            (any::<u64>(), proptest::option::of(any_name()), any::<[bool; 3]>()).prop_map(
                |(parent, name, [open, modified, attributes])| Action::Touch {
                    parent,
                    name,
                    open,
                    modified,
                    attributes
                }
            ),
            any::<u64>().prop_map(|node| Action::Refresh { node }),
            Just(Action::DropCaches),
        ]
    }

    fn any_batch() -> impl Strategy<Value = Batch> {
        let numbered = (any::<u32>(), any_action()).prop_map(|(number, action)| Numbered { number, action });
        (any::<u64>(), vec(numbered, 0..8)).prop_map(|(number, actions)| Batch { number, actions })
    }

    proptest! {
        #[test]
        fn every_batch_survives_the_wire_in_the_room_it_says(batch in any_batch()) {
            let wire = frame::encode(&batch).unwrap();
            prop_assert_eq!(&frame::read::<Batch>(&mut &wire[..]).unwrap(), &batch);
            let room: usize = batch.actions.iter().map(Numbered::room).sum();
            prop_assert!(wire.len() - 4 <= room + MAX_FRAME - Batch::ROOM);
        }

        #[test]
        fn every_answer_survives_the_wire(number in any::<u64>(), errors in vec(any::<i32>(), 0..20)) {
            let done = Done { number, errors };
            let wire = frame::encode(&done).unwrap();
            prop_assert_eq!(frame::read::<Done>(&mut &wire[..]).unwrap(), done);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..64)) {
            let _ = frame::read::<Batch>(&mut &bytes[..]);
        }
    }
}
