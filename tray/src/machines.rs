//! Which machines there are, and which of them have a daemon: seen in their directories, and seen again when these change.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc::UnboundedSender;

use crate::directories::{Directories, is_dir};
use crate::paths::Paths;

/// A file at one moment: another one in its place, or the same written anew, is not equal to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    inode: u64,
    changed: (i64, i64),
}

impl FileId {
    /// Of the file that is there.
    pub(crate) fn of(path: &Path) -> Option<FileId> {
        let metadata = fs::symlink_metadata(path).ok()?;
        Some(FileId {
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// The files of a machine that say something of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Files {
    /// What it is; none when it is being made.
    pub(crate) record: Option<FileId>,
    /// Where its daemon listens, or a killed one did.
    pub(crate) socket: Option<FileId>,
}

/// All machines by name.
pub(crate) type Machines = BTreeMap<String, Files>;

/// Tells which machines there are, now and whenever that changes, until nobody listens.
///
/// # Errors
/// When directories cannot be watched.
pub(crate) async fn watch<T>(
    paths: Paths,
    tell: UnboundedSender<T>,
    wrap: impl Fn(Machines) -> T,
) -> io::Result<()> {
    let mut directories = Directories::new()?;
    let mut known = None;
    let mut found = Machines::new();
    loop {
        // A directory that is found is watched before it is looked into; what comes in between is found by the second look.
        loop {
            directories.watch(&wanted(&paths, &found))?;
            let now = look(&paths);
            let same = now.keys().eq(found.keys());
            found = now;
            if same {
                break;
            }
        }
        // A directory with none of the files is watched, and is no machine yet.
        let mut machines = found.clone();
        machines.retain(|_, files| *files != Files::default());
        if known.as_ref() != Some(&machines) {
            known = Some(machines.clone());
            if tell.send(wrap(machines)).is_err() {
                return Ok(());
            }
        }
        directories.changed().await?;
    }
}

fn wanted(paths: &Paths, found: &Machines) -> Vec<PathBuf> {
    [&paths.machines, &paths.runtime]
        .into_iter()
        .flat_map(|base| std::iter::once(base.clone()).chain(found.keys().map(move |name| base.join(name))))
        .collect()
}

/// All directories that can be a machine's, with the files that make it one.
fn look(paths: &Paths) -> Machines {
    let mut found = Machines::new();
    for base in [&paths.machines, &paths.runtime] {
        let Ok(entries) = fs::read_dir(base) else {
            continue;
        };
        for entry in entries.flatten() {
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            if is_name(&name) && is_dir(&entry.path()) {
                found.entry(name).or_default();
            }
        }
    }
    for (name, files) in &mut found {
        files.record = FileId::of(&paths.machines.join(name).join("machine.json"));
        files.socket = FileId::of(&paths.api_socket(name));
    }
    found
}

/// Whether something can be a machine's name: `[a-z0-9][a-z0-9_.-]{0,62}`.
pub(crate) fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 63
        && name.bytes().next().is_some_and(letter)
        && name.bytes().all(|byte| letter(byte) || b"_.-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tokio::sync::mpsc;

    use super::*;

    fn paths(base: &Path) -> Paths {
        Paths {
            machines: base.join("share/berth/machines"),
            runtime: base.join("run/berth"),
            docker_client: base.join("docker"),
            autostart: base.join("autostart"),
        }
    }

    #[tokio::test]
    async fn machines_are_seen_from_their_making_to_their_end() {
        let base = tempfile::tempdir().unwrap();
        let paths = paths(base.path());
        let (tell, mut told) = mpsc::unbounded_channel();
        let watcher = tokio::spawn(watch(paths.clone(), tell, |machines| machines));
        assert_eq!(told.recv().await, Some(Machines::new()));

        fs::create_dir_all(paths.machines.join("default")).unwrap();
        fs::write(paths.machines.join("default/machine.json"), "{}").unwrap();
        let made = told.recv().await.unwrap();
        assert!(made["default"].record.is_some() && made["default"].socket.is_none());

        fs::create_dir_all(paths.runtime.join("default")).unwrap();
        let socket = paths.api_socket("default");
        let daemon = UnixListener::bind(&socket).unwrap();
        let up = told.recv().await.unwrap()["default"];
        assert!(up.socket.is_some());

        // Killed, its socket stays; the next daemon's is another.
        drop(daemon);
        // Moved and not removed: in the same moment, the next could get its inode.
        fs::rename(&socket, base.path().join("old")).unwrap();
        let _next = UnixListener::bind(&socket).unwrap();
        let mut again = told.recv().await.unwrap()["default"];
        if again.socket.is_none() {
            again = told.recv().await.unwrap()["default"];
        }
        assert_ne!(again.socket, up.socket);

        fs::remove_dir_all(base.path().join("share")).unwrap();
        fs::remove_dir_all(base.path().join("run")).unwrap();
        while !told.recv().await.unwrap().is_empty() {}
        watcher.abort();
    }

    #[tokio::test]
    async fn a_daemon_is_seen_that_comes_long_after_its_directory() {
        let base = tempfile::tempdir().unwrap();
        let paths = paths(base.path());
        let (tell, mut told) = mpsc::unbounded_channel();
        let watcher = tokio::spawn(watch(paths.clone(), tell, |machines| machines));
        assert_eq!(told.recv().await, Some(Machines::new()));
        for dir in [paths.runtime.clone(), paths.runtime.join("default")] {
            fs::create_dir_all(dir).unwrap();
            // The watcher has its turn, and has nothing to tell.
            let quiet = tokio::time::timeout(std::time::Duration::from_millis(20), told.recv()).await;
            assert!(quiet.is_err());
        }
        let _daemon = UnixListener::bind(paths.api_socket("default")).unwrap();
        assert!(told.recv().await.unwrap()["default"].socket.is_some());
        watcher.abort();
    }

    #[test]
    fn what_is_no_machine_is_passed_over() {
        let base = tempfile::tempdir().unwrap();
        let paths = paths(base.path());
        for name in ["Work", ".hidden", "ok-1", "no record"] {
            fs::create_dir_all(paths.machines.join(name)).unwrap();
            fs::write(paths.machines.join(name).join("machine.json"), "").unwrap();
        }
        std::os::unix::fs::symlink("ok-1", paths.machines.join("link")).unwrap();
        assert_eq!(look(&paths).keys().collect::<Vec<_>>(), ["ok-1"]);
    }
}
