//! A file system in memory. Small, but a real one: what is written is read back, names can be moved and linked, removed files
//! live while they are known or open, and it counts what it has handed out, so that tests see what the guest would leak.

mod operations;

use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::filesystem::{Attr, Context, Entry, Errno, Handle, Lock, NodeId, Opened, Result};
use crate::wire::ROOT_ID;

/// The largest file; more is ENOSPC.
pub(super) const MAX_SIZE: u64 = 1 << 20;

/// Answers may be cached for a second and a bit, so that both halves of a timeout are used.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// A file system in memory.
#[derive(Debug)]
pub struct RamFs {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    nodes: HashMap<NodeId, Node>,
    /// Which node each handle is of, and whether of a directory.
    handles: HashMap<Handle, (NodeId, bool)>,
    next: u64,
}

#[derive(Debug)]
struct Node {
    content: Content,
    attr: Attr,
    lookups: u64,
    opens: u64,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Whose lock is on it; one lock for the whole file.
    lock: Option<(u64, Lock)>,
}

#[derive(Debug)]
enum Content {
    File(Vec<u8>),
    Directory {
        parent: NodeId,
        names: BTreeMap<Vec<u8>, NodeId>,
    },
    Symlink(Vec<u8>),
    Other,
}

impl Default for RamFs {
    fn default() -> Self {
        Self::new()
    }
}

impl RamFs {
    /// An empty one.
    pub fn new() -> RamFs {
        let mut state = State {
            nodes: HashMap::new(),
            handles: HashMap::new(),
            next: ROOT_ID,
        };
        let names = BTreeMap::new();
        let root = Content::Directory {
            parent: ROOT_ID,
            names,
        };
        state.insert(root, libc::S_IFDIR | 0o755, &Context::default());
        RamFs {
            state: Mutex::new(state),
        }
    }

    /// How many lookups the guest holds, and how many handles.
    pub fn held(&self) -> (u64, usize) {
        let state = self.lock();
        let lookups = state.nodes.values().map(|node| node.lookups).sum();
        (lookups, state.handles.len())
    }

    /// How many nodes there are, the root among them.
    pub fn nodes(&self) -> usize {
        self.lock().nodes.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn error<T>(number: i32) -> Result<T> {
    Err(Errno(number))
}

impl State {
    fn insert(&mut self, content: Content, mode: u32, ctx: &Context) -> NodeId {
        let id = self.next;
        self.next += 1;
        let attr = Attr {
            ino: id,
            mode,
            // The caller gives it its first name.
            nlink: 0,
            uid: ctx.uid,
            gid: ctx.gid,
            blksize: 4096,
            ..Attr::default()
        };
        let node = Node {
            content,
            attr,
            lookups: 0,
            opens: 0,
            xattrs: BTreeMap::new(),
            lock: None,
        };
        self.nodes.insert(id, node);
        id
    }

    fn node(&mut self, id: NodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&id).ok_or(Errno(libc::ESTALE))
    }

    fn names(&mut self, id: NodeId) -> Result<&mut BTreeMap<Vec<u8>, NodeId>> {
        match &mut self.node(id)?.content {
            Content::Directory { names, .. } => Ok(names),
            _ => error(libc::ENOTDIR),
        }
    }

    /// The contents of an open file.
    fn file(&mut self, id: NodeId, handle: Handle) -> Result<&mut Vec<u8>> {
        self.opened(id, handle, false)?;
        match &mut self.node(id)?.content {
            Content::File(bytes) => Ok(bytes),
            _ => error(libc::EINVAL),
        }
    }

    fn opened(&self, id: NodeId, handle: Handle, directory: bool) -> Result<()> {
        match self.handles.get(&handle) {
            Some(&(node, is_directory)) if (node, is_directory) == (id, directory) => Ok(()),
            _ => error(libc::EBADF),
        }
    }

    fn open(&mut self, id: NodeId, directory: bool) -> Result<Opened> {
        self.node(id)?.opens += 1;
        let handle = self.next;
        self.next += 1;
        self.handles.insert(handle, (id, directory));
        Ok(Opened { handle, flags: 0 })
    }

    fn close(&mut self, id: NodeId, handle: Handle, directory: bool) -> Result<()> {
        self.opened(id, handle, directory)?;
        self.handles.remove(&handle);
        self.node(id)?.opens -= 1;
        self.collect(id);
        Ok(())
    }

    /// Removes a node that nobody can reach any more.
    fn collect(&mut self, id: NodeId) {
        let gone = |node: &Node| node.attr.nlink == 0 && node.lookups == 0 && node.opens == 0;
        if id != ROOT_ID && self.nodes.get(&id).is_some_and(gone) {
            self.nodes.remove(&id);
        }
    }

    fn attr(&mut self, id: NodeId) -> Result<Attr> {
        let node = self.node(id)?;
        let mut attr = node.attr;
        attr.size = match &node.content {
            Content::File(bytes) | Content::Symlink(bytes) => bytes.len() as u64,
            Content::Directory { names, .. } => names.len() as u64,
            Content::Other => 0,
        };
        attr.blocks = attr.size.div_ceil(512);
        Ok(attr)
    }

    /// Counts a lookup.
    fn entry(&mut self, id: NodeId) -> Result<Entry> {
        self.node(id)?.lookups += 1;
        Ok(Entry {
            node: id,
            generation: 0,
            attr: self.attr(id)?,
            attr_timeout: TIMEOUT,
            entry_timeout: TIMEOUT,
        })
    }

    fn make(
        &mut self,
        ctx: &Context,
        parent: NodeId,
        name: &CStr,
        content: Content,
        mode: u32,
    ) -> Result<NodeId> {
        if self.names(parent)?.contains_key(name.to_bytes()) {
            return error(libc::EEXIST);
        }
        self.alive(parent)?;
        let id = self.insert(content, mode, ctx);
        self.node(id)?.attr.nlink = 1;
        self.names(parent)?.insert(name.to_bytes().to_vec(), id);
        Ok(id)
    }

    /// Nothing is put into a directory that has been removed.
    fn alive(&mut self, directory: NodeId) -> Result<()> {
        if directory != ROOT_ID && self.node(directory)?.attr.nlink == 0 {
            return error(libc::ENOENT);
        }
        Ok(())
    }

    fn find(&mut self, parent: NodeId, name: &CStr) -> Result<NodeId> {
        let found = self.names(parent)?.get(name.to_bytes()).copied();
        found.ok_or(Errno(libc::ENOENT))
    }

    fn remove(&mut self, parent: NodeId, name: &CStr, directory: bool) -> Result<()> {
        let id = self.find(parent, name)?;
        match (&self.node(id)?.content, directory) {
            (Content::Directory { names, .. }, true) if !names.is_empty() => return error(libc::ENOTEMPTY),
            (Content::Directory { .. }, true) => {}
            (Content::Directory { .. }, false) => return error(libc::EISDIR),
            (_, true) => return error(libc::ENOTDIR),
            (_, false) => {}
        }
        self.names(parent)?.remove(name.to_bytes());
        self.node(id)?.attr.nlink -= 1;
        self.collect(id);
        Ok(())
    }

    /// Whether `id` is `directory` or above it.
    fn is_above(&self, id: NodeId, mut directory: NodeId) -> bool {
        loop {
            if directory == id {
                return true;
            }
            match self.nodes.get(&directory).map(|node| &node.content) {
                Some(&Content::Directory { parent, .. }) if directory != ROOT_ID => directory = parent,
                _ => return false,
            }
        }
    }
}

fn resize(bytes: &mut Vec<u8>, size: u64) -> Result<()> {
    if size > MAX_SIZE {
        return error(libc::ENOSPC);
    }
    bytes.resize(size as usize, 0);
    Ok(())
}
