//! What the probe found.

use std::{
    fmt,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// Everything the probe found about one KVM device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProbeReport {
    /// The device.
    pub kvm_path: PathBuf,
    /// The version of the KVM interface; none: the device could not be opened.
    pub api_version: Option<i32>,
    /// How long the probe took, in microseconds.
    pub elapsed_us: u64,
    /// How many turns of a loop of two instructions ring 0 makes in a second: the best of a few rounds.
    pub loop_turns_per_second: Option<u64>,
    /// Whether ring 0 can use cmpxchg16b, which 64-bit kernels are built on.
    pub cmpxchg16b: StepResult,
    /// Whether ring 0 can enable and use XSAVE.
    pub xsave: StepResult,
    /// Whether ring 0 can use XSAVES, which kernels use where it is offered.
    pub xsaves: StepResult,
    /// What to make of it.
    pub verdict: Verdict,
}

/// What came of trying one instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepResult {
    /// The probe did not get to it.
    NotTried,
    /// The host does not offer it to guests, and a kernel will not use it.
    NotOffered,
    /// It does what it should.
    Works,
    /// It does not; how the guest ended.
    Failed(String),
}

/// Whether a guest can be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Verdict {
    /// It can.
    Usable,
    /// There is no such device: no KVM on this host.
    Missing,
    /// There is a device, which this user may not use.
    NoPermission {
        /// The group that owns the device; joining it is the usual remedy. None: it has no name, or the device is not
        /// open to its group.
        group: Option<String>,
    },
    /// Ring 0 is emulated: a kernel would take hours to boot, or die.
    Emulated {
        /// Measured; 0: not one round was completed.
        loop_turns_per_second: u64,
        /// The least that counts as not emulated.
        threshold: u64,
    },
    /// It does not work.
    Broken {
        /// In what way.
        what: String,
    },
}

impl ProbeReport {
    pub(super) fn new(kvm_path: &Path) -> ProbeReport {
        ProbeReport {
            kvm_path: kvm_path.to_owned(),
            api_version: None,
            elapsed_us: 0,
            loop_turns_per_second: None,
            cmpxchg16b: StepResult::NotTried,
            xsave: StepResult::NotTried,
            xsaves: StepResult::NotTried,
            verdict: Verdict::Missing,
        }
    }

    /// Whether a guest can be run.
    pub fn is_usable(&self) -> bool {
        self.verdict == Verdict::Usable
    }
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kvm_path.display(), self.verdict)?;
        let mut figures = Vec::new();
        if let Some(rate) = self.loop_turns_per_second {
            figures.push(format!("{} million loop turns/s in ring 0", in_millions(rate)));
        }
        for (name, result) in [
            ("cmpxchg16b", &self.cmpxchg16b),
            ("xsave", &self.xsave),
            ("xsaves", &self.xsaves),
        ] {
            match result {
                StepResult::NotTried => {}
                StepResult::NotOffered => figures.push(format!("{name} not offered")),
                StepResult::Works => figures.push(format!("{name} works")),
                StepResult::Failed(how) => figures.push(format!("{name} fails ({how})")),
            }
        }
        if !figures.is_empty() {
            write!(f, " [{}]", figures.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Usable => f.write_str("usable"),
            Verdict::Missing => f.write_str("there is no KVM on this host"),
            Verdict::NoPermission { group: Some(group) } => {
                write!(f, "no permission; the group {group} has it")
            }
            Verdict::NoPermission { group: None } => f.write_str("no permission"),
            Verdict::Emulated {
                loop_turns_per_second,
                threshold,
            } => write!(
                f,
                "this host emulates guest kernels, too slowly to boot one: {} million loop turns/s, {} or more are needed",
                in_millions(*loop_turns_per_second),
                in_millions(*threshold),
            ),
            Verdict::Broken { what } => write!(f, "broken: {what}"),
        }
    }
}

fn in_millions(count: u64) -> String {
    format!("{}.{}", count / 1_000_000, count / 100_000 % 10)
}

/// The verdict for a device that may not be opened, with what is known of who may.
pub(super) fn no_permission(kvm_path: &Path) -> Verdict {
    const GROUP_MAY_READ_AND_WRITE: u32 = 0o060;
    let group = std::fs::metadata(kvm_path)
        .ok()
        .filter(|metadata| metadata.mode() & GROUP_MAY_READ_AND_WRITE == GROUP_MAY_READ_AND_WRITE)
        .and_then(|metadata| {
            let groups = std::fs::read_to_string("/etc/group").ok()?;
            group_name(&groups, metadata.gid())
        });
    Verdict::NoPermission { group }
}

/// Finds a group's name in the text of group(5).
fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let this_gid: u32 = fields.nth(1)?.parse().ok()?;
        (this_gid == gid).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_number() {
        let groups = "root:x:0:\nnonsense\nkvm:x:104:anna,bert\nlast:x:105:\n";
        assert_eq!(group_name(groups, 104).as_deref(), Some("kvm"));
        assert_eq!(group_name(groups, 7), None);
    }

    #[test]
    fn a_report_reads_well() {
        let report = ProbeReport {
            loop_turns_per_second: Some(1_049_000),
            cmpxchg16b: StepResult::Failed("the guest crashed".into()),
            verdict: Verdict::Emulated {
                loop_turns_per_second: 1_049_000,
                threshold: 10_000_000,
            },
            ..ProbeReport::new(Path::new("/dev/kvm"))
        };
        assert_eq!(
            report.to_string(),
            "/dev/kvm: this host emulates guest kernels, too slowly to boot one: 1.0 million loop turns/s, 10.0 or more \
             are needed [1.0 million loop turns/s in ring 0, cmpxchg16b fails (the guest crashed)]"
        );
    }
}
