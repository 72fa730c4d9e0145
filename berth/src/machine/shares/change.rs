//! Adding and removing shares while the machine runs, and keeping that for its next start.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{ChangeError, Entry, LiveShares, ShareReport, ShareState};
use crate::docker::client as docker;
use crate::exit::chain;
use crate::machine::control::Control;
use crate::machine::handle::Handle;
use crate::machine::record::{MachineRecord, RecordError};
use crate::machine::state::State;
use crate::shares::choice::ShareChanges;
use crate::shares::{Share, rules};

/// How long the guest may take to mount or unmount a share. Twice this is less than the daemon's clients wait for an answer.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(8);

/// Keeps a change of a machine's shares in its record at `path`.
///
/// # Errors
/// When the record cannot be read or written.
pub fn keep(path: &Path, change: impl FnOnce(&mut ShareChanges)) -> Result<(), RecordError> {
    MachineRecord::update(path, |chosen| change(&mut chosen.shares))
}

impl LiveShares {
    /// Shares a directory with the running machine. Doing so again changes nothing; a share that could not be had at the
    /// start is tried once more.
    ///
    /// # Errors
    /// When the machine does not run, the share cannot be with the others, or the guest cannot mount it. Then nothing is
    /// changed, but for [`ChangeError::NotKept`].
    pub async fn add(&self, machine: &Arc<Handle>, share: Share) -> Result<ShareReport, ChangeError> {
        let _one_at_a_time = self.changing.lock().await;
        let control = running(machine)?;
        let before = self.entries().all.clone();
        if let Some(same) = before
            .iter()
            .find(|entry| entry.share.path == share.path && entry.has_mount())
        {
            if same.share == share {
                return Ok(same.report());
            }
            return Err(ChangeError::SharedOtherwise {
                path: share.path,
                command: self.command.clone(),
            });
        }
        // One that could not be had is in nobody's way, but in that of its own successor.
        let others: Vec<Entry> = before
            .into_iter()
            .filter(|entry| entry.share.path != share.path)
            .collect();
        let shares: Vec<Share> = others.iter().map(|entry| entry.share.clone()).collect();
        rules::no_overlap(&share, &shares)?;
        let mut entry = self.entries().make(share.clone());
        self.mount(machine, &control, &mut entry, others).await?;
        {
            let mut entries = self.entries();
            entries.all.retain(|known| known.share.path != share.path);
            entries.all.push(entry.clone());
        }
        self.publish();
        machine.note(format!("{} is shared", share.path.display()));
        self.keep(|changes| changes.add(share, &self.base))?;
        Ok(entry.report())
    }

    async fn mount(
        &self,
        machine: &Arc<Handle>,
        control: &Control,
        entry: &mut Entry,
        others: Vec<Entry>,
    ) -> Result<(), ChangeError> {
        let shown = tokio::task::spawn_blocking({
            let (machine, entry) = (Arc::clone(machine), entry.clone());
            move || machine.shares.show(&entry.share, &entry.id, &others)
        })
        .await;
        (entry.real, entry.hidden) = shown
            .map_err(|error| ChangeError::Unusable(format!("looking at the directory broke off: {error}")))?
            .map_err(ChangeError::Unusable)?;
        if let Err(error) = control.mount_share(entry.mount(), MOUNT_TIMEOUT).await {
            // The guest may have mounted it all the same, and only have been slow to say so.
            if let Err(error) = control.unmount_share(&entry.id, MOUNT_TIMEOUT).await {
                tracing::warn!("{}", chain(&error.into()));
            }
            self.tree.remove(&entry.id);
            return Err(error.into());
        }
        entry.state = ShareState::Shared;
        Ok(())
    }

    /// Takes a share away from the running machine. With `force`, also from running containers.
    ///
    /// # Errors
    /// When the machine does not run, there is no such share, containers have it, or the guest cannot unmount it. Then
    /// nothing is changed, but for [`ChangeError::NotKept`].
    pub async fn remove(&self, machine: &Handle, path: &Path, force: bool) -> Result<(), ChangeError> {
        let _one_at_a_time = self.changing.lock().await;
        let control = running(machine)?;
        let entry = self
            .entries()
            .all
            .iter()
            .find(|entry| entry.share.path == path)
            .cloned();
        let Some(entry) = entry else {
            return Err(ChangeError::NoSuchShare {
                path: path.to_owned(),
                command: self.command.clone(),
            });
        };
        if entry.has_mount() {
            if !force {
                self.check_unused(&entry.share).await?;
            }
            // First, so that no container gets it from now on.
            self.set_state(
                &entry.id,
                ShareState::Failed {
                    message: "it is being removed".into(),
                },
            );
            if let Err(error) = control.unmount_share(&entry.id, MOUNT_TIMEOUT).await {
                self.set_state(&entry.id, ShareState::Shared);
                return Err(error.into());
            }
            self.tree.remove(&entry.id);
        }
        self.entries().all.retain(|known| known.id != entry.id);
        self.publish();
        machine.note(format!("{} is no longer shared", path.display()));
        self.keep(|changes| changes.remove(path, &self.base))
    }

    fn set_state(&self, id: &str, state: ShareState) {
        if let Some(entry) = self.entries().all.iter_mut().find(|entry| entry.id == id) {
            entry.state = state;
        }
        self.publish();
    }

    async fn check_unused(&self, share: &Share) -> Result<(), ChangeError> {
        match docker::containers_with(&self.docker_socket, &share.target).await {
            Ok(containers) if containers.is_empty() => Ok(()),
            Ok(containers) => Err(ChangeError::InUse {
                path: share.path.clone(),
                containers,
            }),
            Err(error) => {
                // A Docker that does not answer runs containers as well; whoever wants the share gone is not kept waiting.
                tracing::warn!("{}", chain(&error.into()));
                Ok(())
            }
        }
    }

    fn keep(&self, change: impl FnOnce(&mut ShareChanges)) -> Result<(), ChangeError> {
        keep(&self.record, change).map_err(ChangeError::NotKept)
    }
}

/// The way to a guest that can be asked.
fn running(machine: &Handle) -> Result<Control, ChangeError> {
    match (machine.state(), machine.dial()) {
        (State::Running, Some(dial)) => Ok(Control::new(dial)),
        (state, _) => Err(ChangeError::NotRunning(state)),
    }
}
