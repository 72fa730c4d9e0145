//! Performing actions.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use protocol::replay::{Action, LARGEST_NUMBER, Name, Numbered, STAGING_NODE, What};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, StatxFlags, Timespec, Timestamps, UTIME_OMIT, futimens,
    mkdirat, mknodat, openat, renameat_with, statx, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::directories::Directories;

/// How objects are opened that are there to be named, not to be used.
const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
/// How files are opened for the sake of the watchers. It must wait for nobody: not for the other end of a FIFO, nor for
/// the holder of a lease.
const WRITE: OFlags = OFlags::WRONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// A time that is not now: the file server answers with the true ones, and only an explicit time reaches it as a change of
/// times and of nothing else.
const SOME_TIME: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
const LEFT_ALONE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_OMIT as _,
};

/// How often the file server is asked for a name that is to be there. On a busy host a program that does nothing but look for
/// the name wins every second time, so that a few tries are not enough.
const TRIES: usize = 200;

/// What the agent has of the machine it runs on.
pub(super) trait System {
    /// Makes `number` known to the file server with every request of this thread from now on.
    fn carry(&self, number: u32) -> Result<(), Errno>;

    /// Opens the object with the node id `node`; the flags are those of open(2).
    fn open(&self, node: u64, flags: OFlags) -> Result<OwnedFd, Errno>;

    /// Opens the staging directory, to be named only.
    fn staging(&self) -> Result<OwnedFd, Errno>;

    /// Has Linux forget the names it does not need.
    fn drop_caches(&self) -> Result<(), Errno>;
}

/// Performs actions, one after the other.
pub(super) struct Agent {
    system: Box<dyn System>,
    directories: Directories,
}

impl Agent {
    /// An agent that has not done anything.
    pub(super) fn new(system: Box<dyn System>) -> Agent {
        Agent {
            system,
            directories: Directories::default(),
        }
    }

    /// Performs actions in order. Returns what became of each: 0 or an errno; nothing when `wanted` said no before it was
    /// through.
    pub(super) fn perform_all(
        &mut self,
        actions: &[Numbered],
        wanted: impl Fn() -> bool,
    ) -> Option<Vec<i32>> {
        // Somebody in the guest may have removed some since.
        self.directories.let_go_of_removed();
        let mut results = Vec::with_capacity(actions.len());
        for numbered in actions {
            if !wanted() {
                return None;
            }
            results.push(match self.perform(numbered) {
                Ok(()) => 0,
                Err(e) => e.raw_os_error(),
            });
        }
        Some(results)
    }

    /// Whether nothing is kept that [`Agent::rest`] would let go of.
    pub(super) fn is_idle(&self) -> bool {
        self.directories.is_empty()
    }

    /// Lets go of everything that is kept for the next action.
    pub(super) fn rest(&mut self) {
        self.directories.clear();
    }

    fn perform(&mut self, numbered: &Numbered) -> Result<(), Errno> {
        if !is_sound(numbered) {
            return Err(Errno::INVAL);
        }
        self.system.carry(numbered.number)?;
        match &numbered.action {
            Action::Make { parent, name, what } => make(&*self.directory(*parent)?, name, what),
            Action::Remove {
                parent,
                name,
                directory,
            } => self.remove(*parent, name, *directory),
            Action::Rename {
                from,
                name,
                to,
                new_name,
                exchange,
            } => self.rename((*from, name), (*to, new_name), *exchange),
            Action::Touch {
                parent,
                name,
                open,
                modified,
                attributes,
            } => self.touch(*parent, name.as_ref(), *open, *modified, *attributes),
            Action::Refresh { node } => self.refresh(*node),
            Action::Confirm { parent, name } => confirm(&*self.directory(*parent)?, name),
            Action::DropCaches => self.drop_caches(),
        }
    }

    fn remove(&mut self, parent: u64, name: &Name, directory: bool) -> Result<(), Errno> {
        let parent = self.directory(parent)?;
        let flags = if directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        sought(&parent, name, || unlinkat(&parent, name.as_bytes(), flags))?;
        if directory {
            self.directories.let_go_of_removed();
        }
        Ok(())
    }

    fn rename(
        &mut self,
        (from, name): (u64, &Name),
        (to, new_name): (u64, &Name),
        exchange: bool,
    ) -> Result<(), Errno> {
        let from = self.directory(from)?;
        let to = self.directory(to)?;
        let flags = if exchange {
            RenameFlags::EXCHANGE
        } else {
            RenameFlags::empty()
        };
        let attempt = || {
            sought(&from, name, || {
                renameat_with(&from, name.as_bytes(), &to, new_name.as_bytes(), flags)
            })
        };
        match attempt() {
            // Somebody has asked for the directory at its new place, and Linux could not move it there because the old one was
            // locked. Nor can a rename, which locks both itself. A look that locks nothing can.
            Err(Errno::STALE) => {
                let _ = statx(
                    &to,
                    new_name.as_bytes(),
                    AtFlags::SYMLINK_NOFOLLOW,
                    StatxFlags::TYPE,
                );
                attempt()?;
            }
            other => other?,
        }
        // An empty directory may have had the new name.
        self.directories.let_go_of_removed();
        Ok(())
    }

    fn touch(
        &mut self,
        parent: u64,
        name: Option<&Name>,
        open: bool,
        modified: bool,
        attributes: bool,
    ) -> Result<(), Errno> {
        let directory = self.directory(parent)?;
        let (path, flags) = match name {
            Some(name) => (name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW),
            None => (&b""[..], AtFlags::EMPTY_PATH),
        };
        // A program that runs, a file whose lease somebody holds, and whatever else cannot be opened: there is no opening
        // to be seen then, but the rest is.
        let opened = match name {
            _ if !open => None,
            Some(name) => {
                let open = || openat(&directory, name.as_bytes(), WRITE, Mode::empty());
                sought(&directory, name, open).ok()
            }
            None => self.system.open(parent, WRITE).ok(),
        };
        let set_times = |last_access| {
            let times = Timestamps {
                last_access,
                last_modification: SOME_TIME,
            };
            let by_path = || utimensat(&directory, path, &times, flags);
            match (&opened, name) {
                (Some(file), _) => futimens(file, &times),
                (None, Some(name)) => sought(&directory, name, by_path),
                (None, None) => by_path(),
            }
        };
        let mut result = Ok(());
        if modified {
            result = result.and(set_times(LEFT_ALONE));
        }
        if attributes {
            result = result.and(set_times(SOME_TIME));
        }
        drop(opened);
        // Last, and also after a failure: what the caches hold from here on is what the host has.
        result.and(ask_anew(&directory, path, flags))
    }

    fn refresh(&self, node: u64) -> Result<(), Errno> {
        let object = self.system.open(node, PATH)?;
        // Twice: Linux drops a file's contents when its attributes change, so the file server may have to answer with
        // other ones before the true ones.
        ask_anew(&object, b"", AtFlags::EMPTY_PATH)?;
        ask_anew(&object, b"", AtFlags::EMPTY_PATH)
    }

    fn drop_caches(&mut self) -> Result<(), Errno> {
        self.directories.clear();
        self.system.drop_caches()
    }

    /// The directory `node`, to be named only.
    fn directory(&mut self, node: u64) -> Result<Rc<OwnedFd>, Errno> {
        let system = &self.system;
        self.directories.get(node, || {
            if node == STAGING_NODE {
                system.staging()
            } else {
                system.open(node, PATH)
            }
        })
    }
}

/// Whether an action can be meant. What could lead out of a directory or be taken for somebody else's request must not
/// come to a system call.
fn is_sound(numbered: &Numbered) -> bool {
    let names = match &numbered.action {
        Action::Make {
            name,
            what: What::Symlink { target },
            ..
        } => name.is_file_name() && target.is_target(),
        Action::Make { name, .. } | Action::Remove { name, .. } | Action::Confirm { name, .. } => {
            name.is_file_name()
        }
        Action::Rename { name, new_name, .. } => name.is_file_name() && new_name.is_file_name(),
        Action::Touch { name, .. } => name.as_ref().is_none_or(Name::is_file_name),
        Action::Refresh { .. } | Action::DropCaches => true,
    };
    names && (1..=LARGEST_NUMBER).contains(&numbered.number)
}

fn make(directory: &OwnedFd, name: &Name, what: &What) -> Result<(), Errno> {
    let name = name.as_bytes();
    let node = |kind| mknodat(directory, name, kind, Mode::from_raw_mode(0o644), 0);
    match what {
        What::File => node(FileType::RegularFile),
        What::Fifo => node(FileType::Fifo),
        What::Socket => node(FileType::Socket),
        What::Directory => mkdirat(directory, name, Mode::from_raw_mode(0o755)),
        What::Symlink { target } => symlinkat(target.as_bytes(), directory, name),
    }
}

/// Has Linux ask the file server what a name stands for, whatever it has in its cache: as it must for what is to be made new.
fn confirm(directory: &OwnedFd, name: &Name) -> Result<(), Errno> {
    match mkdirat(directory, name.as_bytes(), Mode::empty()) {
        // There it is; or there is nothing, and the file server lets nothing be made.
        Err(Errno::EXIST | Errno::PERM) => Ok(()),
        result => result,
    }
}

/// Does something to what is at a name.
///
/// A program that has asked for the name since it is gone from the host has left in Linux's cache that there is none. The file
/// server has one for the agent, but is not asked: so it is, and again when such a program comes in between.
fn sought<T>(
    directory: &OwnedFd,
    name: &Name,
    mut act: impl FnMut() -> Result<T, Errno>,
) -> Result<T, Errno> {
    for _ in 0..TRIES {
        match act() {
            Err(Errno::NOENT) => confirm(directory, name)?,
            result => return result,
        }
    }
    act()
}

/// Has Linux ask the file server for an object's attributes, whatever it has in its cache.
fn ask_anew(directory: &OwnedFd, path: &[u8], flags: AtFlags) -> Result<(), Errno> {
    statx(
        directory,
        path,
        flags | AtFlags::STATX_FORCE_SYNC,
        StatxFlags::BASIC_STATS,
    )
    .map(drop)
}

#[cfg(test)]
pub(crate) mod tests;
