//! Landlock: takes from threads the right to open anything but the shared directories.
//!
//! The second line of defence. The first is that the server resolves every name beneath its share's root; what gets past
//! that fails here with EACCES. Only opening is restricted: what a thread has open already, and the descriptors it is given
//! later, it may use.
//!
//! Who can open files by their handles (root, with CAP_DAC_READ_SEARCH) can reach any file of a file system without a path,
//! and before Linux 6.18 landlock refuses what was reached so, inside the fence as well. So this goes too.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus,
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// Below this version, a directory under landlock is one that nothing can be moved out of or into: `mv` between the
/// directories of a share would fail. Better none of it there (Linux 5.13 to 5.18).
const NEEDED: ABI = ABI::V2;
/// What is asked for as far as the kernel has it. The version adds ioctl on devices, the one before TCP.
const WANTED: ABI = ABI::V5;

/// A directory that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area<'a> {
    /// Everything below it too, on other file systems as well.
    pub root: &'a Path,
    /// For reading only.
    pub read_only: bool,
}

/// How far threads are restricted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// In everything this module knows of.
    Full,
    /// In opening and changing files, as far as this kernel's landlock goes.
    Partial,
    /// Not at all: this kernel's landlock is off, missing or too old (Linux 5.19 has what is needed).
    None,
}

/// Why threads could not be restricted.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A directory cannot be opened.
    #[error("a shared directory cannot be confined to")]
    Area(#[from] PathFdError),
    /// The kernel has landlock and refuses the rules.
    #[error("the kernel refused the confinement to the shared directories")]
    Rules(#[from] RulesetError),
    /// Too many open files.
    #[error("the rules of the confinement cannot be passed on")]
    Descriptor(#[source] io::Error),
    /// The kernel refused that a capability is given up.
    #[error("CAP_DAC_READ_SEARCH cannot be given up")]
    Capability(#[source] rustix::io::Errno),
}

/// A set of directories that threads can be confined to.
#[derive(Debug)]
pub struct Fence(Option<RulesetCreated>);

impl Fence {
    /// A fence around `areas`, which are looked up now.
    pub fn new<'a>(areas: impl IntoIterator<Item = Area<'a>>) -> Result<Fence, ConfineError> {
        let Some(rules) = rules()? else {
            return Ok(Fence(None));
        };
        let areas = areas
            .into_iter()
            .map(|area| Ok((PathFd::new(area.root)?, area.read_only)))
            .collect::<Result<Vec<_>, PathFdError>>()?;
        Ok(Fence(Some(with_areas(rules, areas)?)))
    }

    /// A fence around directories that are open already, each with whether it is for reading only: those directories, whatever
    /// their names are now.
    pub fn around<'a>(
        directories: impl IntoIterator<Item = (BorrowedFd<'a>, bool)>,
    ) -> Result<Fence, ConfineError> {
        let rules = rules()?.map(|rules| with_areas(rules, directories));
        Ok(Fence(rules.transpose()?))
    }

    /// Whether threads inside are restricted: false where the kernel cannot do it.
    pub fn confines(&self) -> bool {
        self.0.is_some()
    }

    /// Confines the calling thread, and all threads that it starts from now on, for good. Fences add up: what any of them
    /// is against fails.
    pub fn enter(&self) -> Result<Confinement, ConfineError> {
        let Some(rules) = &self.0 else {
            return Ok(Confinement::None);
        };
        let rules = rules.try_clone().map_err(ConfineError::Descriptor)?;
        give_up_file_handles().map_err(ConfineError::Capability)?;
        let RestrictionStatus { ruleset, .. } = rules.restrict_self()?;
        Ok(match ruleset {
            RulesetStatus::FullyEnforced => Confinement::Full,
            RulesetStatus::PartiallyEnforced => Confinement::Partial,
            RulesetStatus::NotEnforced => Confinement::None,
        })
    }
}

/// Of the calling thread.
fn give_up_file_handles() -> rustix::io::Result<()> {
    let mut sets = capabilities(None)?;
    let handles = CapabilitySet::DAC_READ_SEARCH;
    if !(sets.permitted | sets.inheritable).contains(handles) {
        return Ok(());
    }
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        set.remove(handles);
    }
    set_capabilities(None, sets)
}

/// `rules` that let through what is below these directories, which may be for reading only.
fn with_areas<F: AsFd>(
    mut rules: RulesetCreated,
    areas: impl IntoIterator<Item = (F, bool)>,
) -> Result<RulesetCreated, RulesetError> {
    for (root, read_only) in areas {
        let access: BitFlags<AccessFs> = if read_only {
            AccessFs::from_read(WANTED)
        } else {
            AccessFs::from_all(WANTED)
        };
        rules = rules.add_rule(PathBeneath::new(root, access))?;
    }
    Ok(rules)
}

/// Rules that forbid everything; none when the kernel cannot do what is needed.
fn rules() -> Result<Option<RulesetCreated>, ConfineError> {
    let needed = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(NEEDED));
    let Ok(needed) = needed else {
        return Ok(None);
    };
    let rules = needed
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(AccessNet::from_all(WANTED))?
        .create()?;
    Ok(Some(rules))
}

#[cfg(test)]
mod tests;
