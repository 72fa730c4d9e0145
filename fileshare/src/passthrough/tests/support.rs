//! A share on a temporary directory, and short words for what tests do with it.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::buffers::memory::{MemoryReply, MemoryRequest};
use crate::filesystem::{Attr, Context, DirSink, Entry, FileSystem, NodeId, Opened, Result, SetAttr};
use crate::passthrough::{CachePolicy, Passthrough, PassthroughConfig, ShareConfig};
use crate::wire::ROOT_ID;

pub(super) use crate::filesystem::Errno;

/// Root in the guest.
pub(super) const ROOT: Context = Context {
    uid: 0,
    gid: 0,
    pid: 1,
};

/// Another user in the guest.
pub(super) fn user(uid: u32) -> Context {
    Context {
        uid,
        gid: uid,
        pid: 2,
    }
}

/// A name for a request.
pub(super) fn name(name: &str) -> CString {
    CString::new(name).unwrap()
}

/// Whether the tests run with root's privileges on the host.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Without timeouts, so that users need not wait for one another.
pub(super) fn config() -> PassthroughConfig {
    PassthroughConfig {
        attr_timeout: Duration::ZERO,
        entry_timeout: Duration::ZERO,
        ..PassthroughConfig::with_cache(CachePolicy::Auto)
    }
}

/// One share.
pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) fs: Passthrough,
}

impl World {
    pub(super) fn new() -> World {
        World::with(config(), |_| {})
    }

    /// With the share's configuration changed by `change`.
    pub(super) fn with(config: PassthroughConfig, change: impl FnOnce(&mut ShareConfig)) -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut share = ShareConfig::new(dir.path());
        change(&mut share);
        World {
            fs: Passthrough::single(share, config).unwrap(),
            dir,
        }
    }

    /// Where something of the share is on the host.
    pub(super) fn host(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Looks a path up, name by name.
    pub(super) fn walk(&self, path: &str) -> Result<Entry> {
        let mut at = self.fs.lookup_self(&ROOT, ROOT_ID)?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = self.fs.lookup(&ROOT, at.node, &name(part))?;
        }
        Ok(at)
    }

    /// The node at a path, which must exist.
    pub(super) fn node(&self, path: &str) -> NodeId {
        self.walk(path)
            .unwrap_or_else(|error| panic!("{path}: {error:?}"))
            .node
    }

    pub(super) fn attr(&self, ctx: &Context, node: NodeId) -> Attr {
        self.fs.getattr(ctx, node, None).unwrap().0
    }

    pub(super) fn open(&self, node: NodeId, flags: libc::c_int) -> Result<Opened> {
        self.fs.open(&ROOT, node, flags as u32, false)
    }

    /// A new file in the root, open for reading and writing.
    pub(super) fn create(&self, ctx: &Context, file: &str, mode: u32) -> (NodeId, u64) {
        self.create_in(ctx, ROOT_ID, file, mode).unwrap()
    }

    pub(super) fn create_in(
        &self,
        ctx: &Context,
        parent: NodeId,
        file: &str,
        mode: u32,
    ) -> Result<(NodeId, u64)> {
        let flags = libc::O_RDWR as u32;
        let (entry, opened) = self.fs.create(ctx, parent, &name(file), mode, flags, 0, false)?;
        Ok((entry.node, opened.handle))
    }

    pub(super) fn write(&self, node: NodeId, handle: u64, offset: u64, bytes: &[u8]) -> Result<usize> {
        self.write_with(node, handle, offset, bytes, 0, false)
    }

    pub(super) fn write_with(
        &self,
        node: NodeId,
        handle: u64,
        offset: u64,
        bytes: &[u8],
        flags: libc::c_int,
        kill_suidgid: bool,
    ) -> Result<usize> {
        let mut from = MemoryRequest::new(bytes);
        let size = bytes.len() as u32;
        self.fs.write(
            &ROOT,
            node,
            handle,
            offset,
            size,
            &mut from,
            false,
            kill_suidgid,
            flags as u32,
        )
    }

    pub(super) fn read(&self, node: NodeId, handle: u64, offset: u64, size: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; size];
        let read = self.fs.read(
            &ROOT,
            node,
            handle,
            offset,
            size as u32,
            &mut MemoryReply::new(&mut bytes),
        )?;
        bytes.truncate(read);
        Ok(bytes)
    }

    pub(super) fn chmod(&self, ctx: &Context, node: NodeId, mode: u32) -> Result<Attr> {
        let set = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        self.fs.setattr(ctx, node, None, &set).map(|(attr, _)| attr)
    }

    pub(super) fn chown(&self, node: NodeId, uid: u32, gid: u32) -> Result<Attr> {
        // As Linux asks for it.
        let set = SetAttr {
            uid: Some(uid),
            gid: Some(gid),
            kill_suidgid: true,
            ..SetAttr::default()
        };
        self.fs.setattr(&ROOT, node, None, &set).map(|(attr, _)| attr)
    }

    /// Names in a directory, sorted, without the dots.
    pub(super) fn list(&self, node: NodeId) -> Vec<String> {
        let mut names: Vec<String> = self
            .entries(node, usize::MAX)
            .into_iter()
            .map(|entry| String::from_utf8(entry.name).unwrap())
            .filter(|name| name != "." && name != "..")
            .collect();
        names.sort();
        names
    }

    /// Entries of a directory as they come, read `at_once` at a time.
    pub(super) fn entries(&self, node: NodeId, at_once: usize) -> Vec<Listed> {
        let opened = self.fs.opendir(&ROOT, node, 0).unwrap();
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let mut sink = Sink {
                room: at_once,
                ..Sink::default()
            };
            let from = all.last().map_or(0, |entry| entry.next);
            self.fs
                .readdir(&ROOT, node, opened.handle, from, &mut sink)
                .unwrap();
            if sink.entries.is_empty() {
                break;
            }
            all.append(&mut sink.entries);
        }
        self.fs.releasedir(&ROOT, node, opened.handle).unwrap();
        all
    }
}

/// An entry as the sink got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: Vec<u8>,
    pub(super) ino: u64,
    pub(super) kind: u8,
    pub(super) next: u64,
    pub(super) entry: Option<Entry>,
}

/// Takes so many entries.
#[derive(Default)]
pub(super) struct Sink {
    pub(super) room: usize,
    pub(super) plus: bool,
    pub(super) entries: Vec<Listed>,
}

impl DirSink for Sink {
    fn plus(&self) -> bool {
        self.plus
    }

    fn add(&mut self, ino: u64, next: u64, kind: u8, name: &[u8]) -> bool {
        self.add_plus(None, ino, next, kind, name)
    }

    fn add_plus(&mut self, entry: Option<&Entry>, ino: u64, next: u64, kind: u8, name: &[u8]) -> bool {
        if self.entries.len() >= self.room {
            return false;
        }
        self.entries.push(Listed {
            name: name.into(),
            ino,
            kind,
            next,
            entry: entry.copied(),
        });
        true
    }
}

/// Runs `test` in a thread with mounts of its own, which go with the thread. Only root can; without, the test is left
/// out.
pub(super) fn with_private_mounts(test: impl FnOnce() + Send + 'static) {
    if !is_root() {
        eprintln!("left out: needs root, to mount");
        return;
    }
    let run = move || {
        // SAFETY: gives this thread a mount namespace and a working directory of its own; nothing in memory changes.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNS) };
        if unshared != 0 {
            eprintln!(
                "left out: no mount namespace: {}",
                std::io::Error::last_os_error()
            );
            return;
        }
        mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE, c"");
        test();
    };
    std::thread::spawn(run).join().unwrap();
}

/// mount(2), which must work.
pub(super) fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong, data: &CStr) {
    // SAFETY: all are strings with a NUL at the end, which the kernel only reads.
    let mounted = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    };
    assert_eq!(
        mounted,
        0,
        "mount {kind:?} on {target:?}: {}",
        std::io::Error::last_os_error()
    );
}

/// A path for [`mount`].
pub(super) fn c_path(path: &Path) -> CString {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).unwrap()
}
