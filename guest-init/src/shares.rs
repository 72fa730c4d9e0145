//! The host's shares: one virtio-fs file system, of which each share's directory is bound to the place the host names.
//!
//! The binds lie in the mount namespace of dockerd, whose mounts are shared: a container that asks for a directory with
//! `rslave` or `rshared` sees shares come and go below it as well. A container that has a share keeps its own copy of the
//! mount when the share is removed; the host answers its requests with ESTALE from then on.
//!
//! Mounting talks to the host and may block for as long as the host takes, so all of it runs on threads of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail, ensure};
use protocol::boot::GuestEvent;
use protocol::shares::{MOUNT_POINT, ShareMount, TAG, is_id};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use crate::console::{notice, warning};
use crate::host_link::Events;
use crate::lock::lock;
use crate::root::Root;

/// How the shared file system is mounted. Device nodes in a share are not the guest's devices. Setuid programs keep their
/// bit, as on a folder of the host.
pub(crate) const FLAGS: MountFlags = MountFlags::NODEV;

/// All shares of the machine.
#[derive(Debug)]
pub(crate) struct Shares {
    root: Root,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The file system all shares are in is mounted.
    file_system: bool,
    mounted: BTreeMap<String, Mounted>,
}

#[derive(Debug)]
struct Mounted {
    target: PathBuf,
    /// Directories that were made for it.
    made: Vec<PathBuf>,
}

impl Shares {
    /// No share yet; mount points are made by `root`.
    pub(crate) fn new(root: Root) -> Arc<Shares> {
        Arc::new(Shares {
            root,
            state: Mutex::default(),
        })
    }

    /// Mounts what the machine has from its start. What fails is told as an event, and the machine goes on without it.
    pub(crate) async fn mount_all(self: &Arc<Self>, shares: &[ShareMount], events: &Events) {
        let (me, shares) = (Arc::clone(self), shares.to_vec());
        let failures = tokio::task::spawn_blocking(move || me.mount_each(&shares)).await;
        // A panic has been reported on the console.
        for (id, message) in failures.unwrap_or_default() {
            warning!("{message}");
            events.send(GuestEvent::ShareFailed { id, message });
        }
    }

    fn mount_each(&self, shares: &[ShareMount]) -> Vec<(String, String)> {
        let mut failures = Vec::new();
        for share in shares {
            match self.mount_now(share) {
                Ok(()) => notice!("share {} is mounted on {}", share.id, share.target),
                Err(e) => failures.push((share.id.clone(), format!("{e:#}"))),
            }
        }
        // With no share at all it is mounted too: one may be added later, and whatever is wrong shows now.
        if shares.is_empty()
            && let Err(e) = self.mount_file_system(&mut lock(&self.state))
        {
            warning!("{e:#}");
        }
        failures
    }

    /// Mounts one share.
    ///
    /// # Errors
    /// When it cannot be mounted, or is already, or another is where it is to be.
    pub(crate) async fn mount(self: &Arc<Self>, share: ShareMount) -> anyhow::Result<()> {
        let me = Arc::clone(self);
        tokio::task::spawn_blocking(move || me.mount_now(&share))
            .await
            .context("mounting the share broke off")?
    }

    fn mount_now(&self, share: &ShareMount) -> anyhow::Result<()> {
        ensure!(is_id(&share.id), "{:?} is not the id of a share", share.id);
        let target = Path::new(&share.target);
        let cannot = || {
            format!(
                "cannot mount a share of the host on {} in the guest",
                share.target
            )
        };
        let mut state = lock(&self.state);
        for (id, other) in &state.mounted {
            if *id == share.id || other.target == target {
                bail!(
                    "{}: the share {id} is mounted on {} already",
                    cannot(),
                    other.target.display()
                );
            }
        }
        self.mount_file_system(&mut state).with_context(cannot)?;
        let source = Path::new(MOUNT_POINT).join(&share.id);
        // Before anything is made for it: the host may not have it.
        fs::metadata(&source).with_context(|| format!("{}: the host does not offer it", cannot()))?;
        let made = self.root.make_dir(target).with_context(cannot)?;
        if let Err(e) = bind(&source, target, share.read_only) {
            self.root.remove(&made);
            return Err(e.context(cannot()));
        }
        let target = target.to_owned();
        state.mounted.insert(share.id.clone(), Mounted { target, made });
        Ok(())
    }

    /// Mounts the file system the shares are in, once.
    fn mount_file_system(&self, state: &mut State) -> anyhow::Result<()> {
        if state.file_system {
            return Ok(());
        }
        fs::create_dir_all(MOUNT_POINT).with_context(|| format!("cannot make {MOUNT_POINT}"))?;
        match mount(TAG, MOUNT_POINT, "virtiofs", FLAGS, None) {
            Ok(()) => {}
            Err(Errno::INVAL) => bail!("the machine has no virtio-fs device with the tag {TAG}"),
            Err(e) => return Err(e).context("cannot mount the host's shared file system"),
        }
        state.file_system = true;
        Ok(())
    }

    /// Unmounts a share; one that is not mounted is no error.
    ///
    /// # Errors
    /// When it cannot be unmounted.
    pub(crate) async fn unmount(self: &Arc<Self>, id: String) -> anyhow::Result<()> {
        let me = Arc::clone(self);
        tokio::task::spawn_blocking(move || me.unmount_now(&id))
            .await
            .context("unmounting the share broke off")?
    }

    fn unmount_now(&self, id: &str) -> anyhow::Result<()> {
        let mut state = lock(&self.state);
        let Some(share) = state.mounted.get(id) else {
            return Ok(());
        };
        let unmounted = match unmount(&share.target, UnmountFlags::NOFOLLOW) {
            // A process of the guest itself is in it (`berth shell`): it may stay there, nobody new gets in.
            Err(Errno::BUSY) => unmount(&share.target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW),
            // Somebody has unmounted it by hand.
            Err(Errno::INVAL) => Ok(()),
            result => result,
        };
        unmounted.with_context(|| format!("cannot unmount the share on {}", share.target.display()))?;
        if let Some(share) = state.mounted.remove(id) {
            self.root.remove(&share.made);
        }
        Ok(())
    }
}

fn bind(source: &Path, target: &Path, read_only: bool) -> anyhow::Result<()> {
    mount_bind(source, target)?;
    if read_only && let Err(e) = mount_remount(target, MountFlags::BIND | MountFlags::RDONLY | FLAGS, c"") {
        // It was mounted a moment ago; should it not go, the host refuses writes all the same.
        let _ = unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        return Err(e).context("cannot make it read-only");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(id: &str) -> ShareMount {
        ShareMount {
            id: id.into(),
            target: "/nonexistent/target".into(),
            read_only: false,
        }
    }

    #[tokio::test]
    async fn an_id_that_would_lead_elsewhere_is_refused() {
        let shares = Shares::new(Root::default());
        for id in ["..", "", "a/b"] {
            let error = shares.mount(share(id)).await.unwrap_err();
            assert!(error.to_string().contains("not the id"), "{error:#}");
        }
    }

    #[tokio::test]
    async fn what_is_not_mounted_is_unmounted_without_a_word() {
        let shares = Shares::new(Root::default());
        shares.unmount("s7".into()).await.unwrap();
    }
}
