//! What is measured, on what, and how large: chosen on the host, handed to the guest as JSON.

use serde::{Deserialize, Serialize};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// berth-fileshare, with the settings of a machine of berth's.
    Berth,
    /// virtiofsd that lets the guest keep names, attributes and pages for a second.
    VirtiofsdAuto,
    /// virtiofsd that lets the guest keep them as long as it likes.
    VirtiofsdAlways,
    /// The guest's own disk.
    Ext4,
}

impl Contender {
    /// All of them, in the order in which the table has them.
    pub const ALL: [Contender; 4] = [
        Contender::Berth,
        Contender::VirtiofsdAuto,
        Contender::VirtiofsdAlways,
        Contender::Ext4,
    ];

    /// Its name in results, and its tag and mount point in the guest.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Berth => "berth",
            Contender::VirtiofsdAuto => "virtiofsd-auto",
            Contender::VirtiofsdAlways => "virtiofsd-always",
            Contender::Ext4 => "ext4",
        }
    }
}

/// Rows that are measured together, because one prepares what the next needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Reading many small files.
    Small,
    /// Making, renaming and removing files.
    Changes,
    /// Unpacking and removing a source tree.
    Unpack,
    /// git status.
    Git,
    /// Finding modules as Node.js does.
    Packages,
    /// One large file.
    Large,
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// Its name in results.
    pub id: &'static str,
    /// What the share of berth's time in that of virtiofsd's cache=auto may be.
    pub bar: f64,
}

/// Not slower than virtiofsd.
const LEVEL: f64 = 1.0;
/// Twice as fast.
const TWICE: f64 = 0.5;

impl Group {
    /// All of them, in the order in which they run.
    pub const ALL: [Group; 6] = [
        Group::Small,
        Group::Changes,
        Group::Unpack,
        Group::Git,
        Group::Packages,
        Group::Large,
    ];

    /// Its rows, in the order in which they run.
    pub fn rows(self) -> &'static [Row] {
        const fn level(id: &'static str) -> Row {
            Row { id, bar: LEVEL }
        }
        const fn twice(id: &'static str) -> Row {
            Row { id, bar: TWICE }
        }
        const SMALL: &[Row] = &[
            level("find-cold"),
            level("find-warm"),
            level("stat-cold"),
            level("stat-warm"),
            level("cat-cold"),
            level("cat-warm"),
            level("missing"),
        ];
        const CHANGES: &[Row] = &[twice("create"), twice("rename"), twice("remove")];
        const UNPACK: &[Row] = &[level("untar"), level("remove-tree")];
        const GIT: &[Row] = &[level("git-status-cold"), level("git-status-warm")];
        const PACKAGES: &[Row] = &[level("modules-cold"), level("modules-warm")];
        const LARGE: &[Row] = &[
            level("write-1"),
            level("read-1"),
            level("reread-1"),
            level("random-read-1"),
            level("random-write-1"),
            level("write-4"),
            level("read-4"),
            level("reread-4"),
            level("random-read-4"),
            level("random-write-4"),
        ];
        match self {
            Group::Small => SMALL,
            Group::Changes => CHANGES,
            Group::Unpack => UNPACK,
            Group::Git => GIT,
            Group::Packages => PACKAGES,
            Group::Large => LARGE,
        }
    }
}

/// How many files are in a directory of the trees that only serve to have many files.
pub const FILES_PER_DIRECTORY: u32 = 30;

/// Sizes of everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How often everything is measured.
    pub rounds: u32,
    /// On what.
    pub contenders: Vec<Contender>,
    /// Which rows.
    pub groups: Vec<Group>,
    /// Files of the tree that is listed and read.
    pub small_files: u32,
    /// Files that are created, renamed and removed.
    pub changes: u32,
    /// Files of the archive that is unpacked.
    pub source_files: u32,
    /// Files under git.
    pub tracked_files: u32,
    /// Packages of the tree that modules are looked up in.
    pub packages: u32,
    /// MiB of the large file.
    pub large_mib: u32,
    /// Random reads, and as many writes.
    pub random_operations: u32,
}

impl Plan {
    /// The sizes that results are quoted with.
    pub fn full() -> Plan {
        Plan {
            rounds: 3,
            contenders: Contender::ALL.to_vec(),
            groups: Group::ALL.to_vec(),
            small_files: 3000,
            changes: 1000,
            source_files: 2000,
            tracked_files: 20_000,
            packages: 150,
            large_mib: 64,
            random_operations: 2000,
        }
    }

    /// Sizes that show whether it works and which way things go.
    pub fn quick() -> Plan {
        Plan {
            rounds: 1,
            small_files: 600,
            changes: 200,
            source_files: 300,
            tracked_files: 3000,
            packages: 40,
            large_mib: 16,
            random_operations: 400,
            ..Plan::full()
        }
    }

    /// What the table says of a row.
    pub fn describe(&self, row: &Row) -> String {
        let Plan {
            small_files,
            changes,
            source_files,
            tracked_files,
            packages,
            large_mib,
            random_operations,
            ..
        } = self;
        let (name, threads) = match row.id.rsplit_once('-') {
            Some((name, "1")) => (name, ", 1 thread"),
            Some((name, "4")) => (name, ", 4 threads"),
            Some((name, "cold")) => (name, ", cold"),
            Some((name, "warm")) => (name, ", warm"),
            _ => (row.id, ""),
        };
        let what = match name {
            "find" => format!("find {small_files} files"),
            "stat" => format!("stat {small_files} files"),
            "cat" => format!("cat {small_files} files"),
            "missing" => format!("stat {small_files} missing names"),
            "create" | "rename" | "remove" => format!("{name} {changes} files"),
            "untar" => format!("untar {source_files} files"),
            "remove-tree" => format!("rm -r {source_files} files"),
            "git-status" => format!("git status, {tracked_files} files"),
            "modules" => format!("find modules, {packages} packages"),
            "write" => format!("write {large_mib} MiB"),
            "read" => format!("read {large_mib} MiB, cold"),
            "reread" => format!("read {large_mib} MiB, warm"),
            "random-read" => format!("random read {random_operations} x 4 KiB"),
            "random-write" => format!("random write {random_operations} x 4 KiB"),
            other => other.to_owned(),
        };
        format!("{what}{threads}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn rows_have_names_and_descriptions_of_their_own() {
        let rows: Vec<&Row> = Group::ALL.iter().flat_map(|group| group.rows()).collect();
        let ids: HashSet<_> = rows.iter().map(|row| row.id).collect();
        let texts: HashSet<_> = rows.iter().map(|row| Plan::full().describe(row)).collect();
        assert_eq!(ids.len(), rows.len());
        assert_eq!(texts.len(), rows.len());
        for row in rows {
            assert_ne!(Plan::full().describe(row), row.id);
        }
    }

    #[test]
    fn the_guest_reads_the_plan_that_the_host_wrote() {
        let text = serde_json::to_string(&Plan::quick()).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), Plan::quick());
    }
}
