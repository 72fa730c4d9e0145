//! The whole server over a temporary directory, while the host changes that directory: nothing outside of it is seen or touched.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags};

use super::client::Client;
use super::input::Input;
use super::script::run_script;
use crate::passthrough::{CachePolicy, Passthrough, PassthroughConfig, ShareConfig, Unowned};
use crate::wire::Opcode;

/// In the contents of everything that must not be seen, and in names there.
const SECRET: &[u8] = b"nobody-may-see-this";

/// A share, and what lies around it and must stay as it is.
struct Ground {
    directory: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Ground {
    fn new(read_only: bool) -> std::io::Result<Ground> {
        let directory = tempfile::tempdir()?;
        let path = directory.path();
        let name = String::from_utf8_lossy(SECRET).into_owned();
        for closed in ["outside", "share/hidden"] {
            let closed = path.join(closed);
            fs::create_dir_all(closed.join("directory"))?;
            for file in ["secret", "directory/secret", &name] {
                fs::write(closed.join(file), SECRET)?;
            }
        }
        let share = path.join("share");
        for entry in ["dir/a", "dir/b"] {
            fs::create_dir_all(share.join(entry))?;
        }
        fs::write(share.join("file"), b"contents")?;
        symlink("../outside", share.join("out-dir"))?;
        symlink(path.join("outside/secret"), share.join("out-file"))?;
        symlink("..", share.join("up"))?;
        let mut ground = Ground {
            directory,
            before: BTreeMap::new(),
        };
        ground.before = ground.closed(read_only)?;
        Ok(ground)
    }

    fn share(&self) -> PathBuf {
        self.directory.path().join("share")
    }

    /// The state of everything that must stay as it is.
    fn closed(&self, read_only: bool) -> std::io::Result<BTreeMap<PathBuf, String>> {
        let mut found = BTreeMap::new();
        let mut roots = vec!["outside", "share/hidden"];
        if read_only {
            roots.push("share");
        }
        for root in roots {
            describe(&self.directory.path().join(root), &mut found)?;
        }
        Ok(found)
    }

    /// Something that happens on the host between two requests: mostly nothing, else a name in the share becomes something
    /// else, among that what leads outside. When `alone`, no request is handled meanwhile.
    fn change(&self, input: &mut Input<'_>, alone: bool) {
        if input.byte() < 200 {
            return;
        }
        let share = self.share();
        let path = |input: &mut Input<'_>| {
            let name = input.pick(&["a", "b", "dir", "file", "dir/a", "dir/b"]);
            let directory = || fs::symlink_metadata(share.join("dir")).is_ok_and(|dir| dir.is_dir());
            // What is to happen in the share must not go through a link out of it.
            if name.contains('/') && !(alone && directory()) {
                return share.join("file");
            }
            share.join(name)
        };
        let (one, two) = (path(input), path(input));
        let exchange =
            |one: &Path, two: &Path| rustix::fs::renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE);
        let remove = |path: &Path| fs::remove_dir_all(path).or_else(|_| fs::remove_file(path));
        // Failures are as good as changes: what is there differs from run to run.
        let _ = match input.byte() % 8 {
            0 => exchange(&one, &two).map_err(Into::into),
            1 => exchange(&one, &share.join("out-dir")).map_err(Into::into),
            2 => fs::rename(&one, &two),
            3 => fs::create_dir(&one),
            _ if !alone => Ok(()),
            4 => remove(&one),
            5 => remove(&one).and_then(|()| symlink(self.directory.path().join("outside"), &one)),
            6 => remove(&one).and_then(|()| symlink("../outside/secret", &one)),
            _ => match fs::symlink_metadata(&one) {
                // Not through a link, and not waiting for somebody at the other end.
                Ok(metadata) if !metadata.is_file() => Ok(()),
                _ => fs::write(&one, b"from the host"),
            },
        };
    }
}

/// Everything about what lies at and below `path` that a change would change. Reading changes nothing of it.
fn describe(path: &Path, found: &mut BTreeMap<PathBuf, String>) -> std::io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let mut about = format!(
        "inode {} mode {:o} links {} owner {}:{} size {} mtime {}.{} ctime {}.{}",
        meta.ino(),
        meta.mode(),
        meta.nlink(),
        meta.uid(),
        meta.gid(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    );
    if meta.is_file() {
        // The start: files with secrets are small, and those that scripts make may be large.
        let mut start = Vec::new();
        fs::File::open(path)?.take(64).read_to_end(&mut start)?;
        about += &format!(" contents {:?}", String::from_utf8_lossy(&start));
    }
    found.insert(path.to_path_buf(), about);
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            describe(&entry?.path(), found)?;
        }
    }
    Ok(())
}

/// The body of the fuzz target `session`.
pub fn fuzz_session(bytes: &[u8]) {
    session(bytes, 1);
}

/// Panics when something outside the share was seen or has changed, when what the share excludes was, when a read-only share
/// has changed, or when nodes are left after the guest has forgotten all. Each queue gets its part of `bytes`.
pub(super) fn session(bytes: &[u8], queues: usize) {
    let mut input = Input::new(bytes);
    let choices = input.byte();
    let set = |bit: u8| choices & 1 << bit != 0;
    let read_only = set(0) && set(1);
    // The host's changes would be taken for the guest's.
    let quiet = read_only || set(2);
    let ground = Ground::new(read_only).expect("a temporary directory");
    let share = ShareConfig {
        root: ground.share(),
        read_only,
        exclude: vec!["hidden".into()],
    };
    let cache = if set(3) {
        CachePolicy::Never
    } else {
        CachePolicy::Auto
    };
    let config = PassthroughConfig {
        negative_timeout: Duration::from_secs(u64::from(set(4))),
        unowned: if set(5) { Unowned::Host } else { Unowned::Asker },
        // Without them nodes are found again by name, along paths that the host may have changed.
        file_handles: !set(6),
        // So few that nodes have to be found again all the time.
        descriptors: set(7).then_some(64),
        ..PassthroughConfig::with_cache(cache)
    };
    let fs = Arc::new(Passthrough::single(share, config).expect("the share is there"));
    let client = Client::new(fs);
    client.init();
    let look = |opcode, reply: &[u8]| {
        // A target is what a link says; what is there is another question.
        if opcode != Opcode::Readlink {
            let seen = reply.windows(SECRET.len()).any(|window| window == SECRET);
            assert!(!seen, "{opcode:?} shows what is outside");
        }
    };
    let run = |input: &mut Input<'_>| {
        let change = |input: &mut Input<'_>| {
            if !quiet {
                ground.change(input, queues == 1);
            }
        };
        run_script(&client, input, change, look);
    };
    if queues == 1 {
        run(&mut input);
    } else {
        std::thread::scope(|scope| {
            for part in bytes.chunks(bytes.len() / queues + 1) {
                scope.spawn(move || run(&mut Input::new(part)));
            }
        });
    }
    let nodes = client.fs().node_count();
    drop(client);
    let after = ground.closed(read_only).expect("all is still there");
    for path in ground.before.keys().chain(after.keys()) {
        let (before, after) = (ground.before.get(path), after.get(path));
        assert_eq!(after, before, "{} has changed", path.display());
    }
    // The root is known always.
    assert_eq!(nodes, 1, "nodes that the guest has forgotten are left");
}
