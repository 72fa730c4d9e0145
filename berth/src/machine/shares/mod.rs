//! The shares of a machine that has a daemon: offered to the guest, mounted there, added and removed while it runs.
//!
//! A share exists in three places: in the file system the guest sees ([`tree`]), as a mount in the guest, and as a rule for
//! the sources of bind mounts ([`Sources`]). They are made in this order and undone in the other, so that a container never
//! gets a source that is not there.
//!
//! What the host changes in them is told to the guest ([`coherence`]) by way of its agent ([`keeper`], [`agent`]).

mod agent;
mod change;
mod coherence;
mod keeper;
mod report;
mod tree;

#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fileshare_virtio::VirtioFsError;
use protocol::shares::ShareMount;
use vmm::virtio::VirtioDevice;

pub use self::change::keep;
#[cfg(test)]
pub(crate) use self::coherence::testing::FakeReplay;
pub use self::coherence::{Heard, HostChanges, NotTold, directories};
pub(super) use self::keeper::AgentKeeper;
pub use self::report::{ChangeError, ShareReport, ShareState};
use self::tree::Tree;
use super::handle::Handle;
use crate::config::Config;
use crate::name::MachineName;
use crate::paths::MachinePaths;
use crate::shares::health::{self, Health};
use crate::shares::rules::{self, ShareError};
use crate::shares::sources::{Mounted, Sources, resolve};
use crate::shares::{Share, nested};

/// The shares of one machine.
pub struct LiveShares {
    tree: Tree,
    sources: Sources,
    entries: Mutex<Entries>,
    /// Held while a share is added or removed.
    changing: tokio::sync::Mutex<()>,
    /// Directories of berth that no share may show: the machine could write to its own disk.
    own: Vec<PathBuf>,
    /// Those the machine would have without changes, and whether the configuration names them.
    base: Vec<Share>,
    configured: bool,
    record: PathBuf,
    docker_socket: PathBuf,
    command: String,
}

#[derive(Debug, Default)]
struct Entries {
    all: Vec<Entry>,
    /// How many ids were given out. None is given twice, so that what the guest still knows of an old share cannot be taken
    /// for a new one.
    ids: u32,
}

#[derive(Debug, Clone)]
struct Entry {
    share: Share,
    /// Its directory without symbolic links; as it was given, while that cannot be told.
    real: PathBuf,
    /// What of it the guest does not see.
    hidden: Vec<PathBuf>,
    id: String,
    state: ShareState,
}

/// `berth share`, as the user would type it for the machine `name`.
pub fn command(name: &MachineName) -> String {
    if name.is_default() {
        "berth share".into()
    } else {
        format!("berth share -m {name}")
    }
}

impl LiveShares {
    /// Those of `shares`, none of them offered yet.
    pub fn new(name: &MachineName, paths: &MachinePaths, shares: &[Share], config: &Config) -> LiveShares {
        let command = command(name);
        let mut entries = Entries::default();
        for share in shares {
            let entry = entries.make(share.clone());
            entries.all.push(entry);
        }
        let own = [paths.data_dir.parent(), Some(paths.runtime_dir.as_path())];
        LiveShares {
            tree: Tree::new(),
            sources: Sources::new(config.path_table(), paths.docker_socket(), command.clone()),
            entries: Mutex::new(entries),
            changing: tokio::sync::Mutex::default(),
            own: own.into_iter().flatten().map(resolve).collect(),
            base: super::settings::base_shares(config),
            configured: config.shares().is_some(),
            record: paths.record(),
            docker_socket: paths.docker_socket(),
            command,
        }
    }

    /// The device the guest reaches them by. There is one also without shares, for those that are added later.
    pub(super) fn device(&self, cpus: u8) -> Result<Box<dyn VirtioDevice>, VirtioFsError> {
        self.tree.device(cpus)
    }

    /// What the host changes in them.
    pub fn changes(&self) -> &HostChanges {
        self.tree.changes()
    }

    /// The host's path of what the file system has as `path`: the id of a share, and the way from its root. Of a share that
    /// is no more, `path` itself. What is not UTF-8 is replaced.
    pub fn host_path(&self, path: &[u8]) -> String {
        let (id, rest) = match path.iter().position(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], Some(&path[slash + 1..])),
            None => (path, None),
        };
        let found = self
            .entries()
            .all
            .iter()
            .find(|entry| entry.id.as_bytes() == id)
            .map(|entry| entry.share.path.clone());
        let found = match (found, rest) {
            (None, _) => return String::from_utf8_lossy(path).into_owned(),
            (Some(root), None) => root,
            (Some(root), Some(rest)) => root.join(OsStr::from_bytes(rest)),
        };
        found.to_string_lossy().into_owned()
    }

    #[cfg(test)]
    pub(crate) fn set_replay(&mut self, fake: std::sync::Arc<FakeReplay>) {
        self.tree.set_changes(HostChanges::fake(Ok(fake)));
    }

    /// What bind mounts may have.
    pub(super) fn sources(&self) -> Sources {
        self.sources.clone()
    }

    /// Whether the configuration says what is shared.
    pub(super) fn are_configured(&self) -> bool {
        self.configured
    }

    /// Puts every share that can be had into the file system the guest sees; what the guest is to mount. One that cannot be
    /// had is a warning and no more. Looks at the host's file systems, which may take its time.
    pub(super) fn offer(&self, machine: &Handle) -> Vec<ShareMount> {
        let mut all = self.entries().all.clone();
        let mut offered = Vec::new();
        for index in 0..all.len() {
            let (before, entry) = all.split_at_mut(index);
            let entry = &mut entry[0];
            match self.show(&entry.share, &entry.id, before) {
                Ok(shown) => {
                    (entry.real, entry.hidden) = shown;
                    offered.push(entry.mount());
                }
                Err(message) => {
                    machine.warn(format!("{message}; the machine goes on without this share"));
                    entry.state = ShareState::Failed { message };
                }
            }
        }
        self.entries().all = all;
        self.publish();
        for warning in self.tree.warnings() {
            machine.warn(warning);
        }
        offered
    }

    /// The guest has mounted what it was offered, or said that it has not.
    pub(super) fn settled(&self) {
        for entry in &mut self.entries().all {
            if entry.state == ShareState::Configured {
                entry.state = ShareState::Shared;
            }
        }
    }

    /// The guest could not mount a share.
    pub(super) fn failed(&self, id: &str, message: String, machine: &Handle) {
        machine.warn(format!("{message}; the machine goes on without this share"));
        if let Some(entry) = self.entries().all.iter_mut().find(|entry| entry.id == id) {
            entry.state = ShareState::Failed { message };
        }
        self.tree.remove(id);
        self.publish();
    }

    /// How they are.
    pub fn list(&self) -> Vec<ShareReport> {
        self.entries().all.iter().map(Entry::report).collect()
    }

    /// What the user should know of them, of a machine that is `running` or not.
    pub fn warnings(&self, running: bool) -> Vec<String> {
        let mut warnings = self.tree.warnings();
        warnings.extend(self.changes().warnings(running));
        warnings
    }

    /// Shows one share's directory to the guest; the directory without symbolic links and what of it is hidden, or why it
    /// cannot be shown.
    fn show(&self, share: &Share, id: &str, others: &[Entry]) -> Result<(PathBuf, Vec<PathBuf>), String> {
        if let Health::Unusable(why) = health::look(share) {
            return Err(why);
        }
        let real = resolve(&share.path);
        // It may be a link to what cannot be shared under its own name.
        rules::path(&real).map_err(|error| error.to_string())?;
        // Two names of one directory: what the rules cannot see in the names.
        for other in others.iter().filter(|other| other.has_mount()) {
            if nested(&real, &other.real) {
                return Err(ShareError::SharesOverlap {
                    a: other.real.clone(),
                    b: real,
                }
                .to_string());
            }
        }
        let mut hidden = share.exclude.clone();
        for own in &self.own {
            if real.starts_with(own) {
                return Err(format!(
                    "{} is where berth keeps its machines and cannot be shared",
                    share.path.display()
                ));
            }
            hidden.extend(own.strip_prefix(&real).map(Path::to_owned));
        }
        self.tree
            .add(id, real.clone(), share.read_only, hidden.clone())
            .map_err(|error| format!("cannot share {}: {error}", share.path.display()))?;
        Ok((real, hidden))
    }

    /// Tells [`Sources`] what the guest has.
    fn publish(&self) {
        let mounted = self
            .entries()
            .all
            .iter()
            .filter(|entry| entry.has_mount())
            .map(Entry::mounted)
            .collect();
        self.sources.set(mounted);
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for LiveShares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveShares")
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

impl Entries {
    /// An entry for `share` with an id of its own; not in the list yet.
    fn make(&mut self, share: Share) -> Entry {
        let id = format!("s{}", self.ids);
        self.ids += 1;
        Entry {
            real: share.path.clone(),
            hidden: share.exclude.clone(),
            share,
            id,
            state: ShareState::Configured,
        }
    }
}

impl Entry {
    fn has_mount(&self) -> bool {
        !matches!(self.state, ShareState::Failed { .. })
    }

    fn mount(&self) -> ShareMount {
        ShareMount {
            id: self.id.clone(),
            // The rules let only UTF-8 pass.
            target: self.share.target.to_string_lossy().into_owned(),
            read_only: self.share.read_only,
        }
    }

    fn mounted(&self) -> Mounted {
        Mounted {
            share: self.share.clone(),
            real: self.real.clone(),
            hidden: self.hidden.clone(),
        }
    }

    fn report(&self) -> ShareReport {
        ShareReport {
            share: self.share.clone(),
            state: self.state.clone(),
        }
    }
}
