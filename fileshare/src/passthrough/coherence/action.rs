//! What the agent in the guest is asked to do, and who asks it.

use std::io;

use crate::filesystem::NodeId;

/// The directory of the root that only the agent sees: what moves into a share comes from there, what moves out goes there.
pub const STAGING: &str = ".berth-staging";

/// In place of a node id in an action: the directory [`STAGING`].
pub const STAGING_PARENT: NodeId = 0;

/// Something that happened on the host, to be done again in the guest. Directories are named by their node ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make `name` in `parent`.
    Make {
        /// The directory.
        parent: NodeId,
        /// The new name.
        name: Box<[u8]>,
        /// What it is.
        what: What,
    },
    /// Remove `name` from `parent`.
    Remove {
        /// The directory.
        parent: NodeId,
        /// The name.
        name: Box<[u8]>,
        /// It is a directory.
        directory: bool,
    },
    /// Move `name` of `from` to `new_name` in `to`.
    Rename {
        /// The directory it is in; may be [`STAGING_PARENT`].
        from: NodeId,
        /// Its name.
        name: Box<[u8]>,
        /// The directory it comes to; may be [`STAGING_PARENT`].
        to: NodeId,
        /// Its name there.
        new_name: Box<[u8]>,
        /// RENAME_EXCHANGE.
        exchange: bool,
    },
    /// Contents or attributes of `name` in `parent` have changed, or of `parent` itself.
    Touch {
        /// The directory.
        parent: NodeId,
        /// The name; none for the directory itself.
        name: Option<Box<[u8]>>,
        /// What the guest was known to have there. Not for the agent: should it be elsewhere by then, it is refreshed.
        node: Option<NodeId>,
        /// It was opened for writing and is closed again.
        open: bool,
        /// The contents have changed.
        modified: bool,
        /// The attributes have changed.
        attributes: bool,
    },
    /// Ask for the attributes of a node anew, and drop what is cached of its contents. Raises no event.
    Refresh {
        /// The node.
        node: NodeId,
    },
    /// Ask anew what a name stands for. Raises no event.
    Confirm {
        /// The directory.
        parent: NodeId,
        /// The name.
        name: Box<[u8]>,
    },
    /// Drop all cached names that are not in use. Raises no event.
    DropCaches,
}

/// What [`Action::Make`] makes.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        /// Its target.
        target: Box<[u8]>,
    },
}

impl What {
    /// Its type, S_IF*.
    pub(super) fn kind(&self) -> u32 {
        match self {
            What::File => libc::S_IFREG,
            What::Directory => libc::S_IFDIR,
            What::Fifo => libc::S_IFIFO,
            What::Socket => libc::S_IFSOCK,
            What::Symlink { .. } => libc::S_IFLNK,
        }
    }
}

/// An action with the number by which the server recognises the requests it causes: the group id of the agent's thread
/// while it performs the action. 1 to 2^31 - 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// The number.
    pub number: u32,
    /// The action.
    pub action: Action,
}

/// The way to the agent in the guest.
pub trait Agent: Send {
    /// Has the actions performed one after the other. One error number for each, 0 for one that was done. An error, or an
    /// answer of another length, means that the agent is lost.
    fn perform(&mut self, batch: &[Numbered]) -> io::Result<Vec<i32>>;
}
