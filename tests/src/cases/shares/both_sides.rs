//! The host and a container do whatever they like to the same few names at the same time, and in the end see the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::{bind, directory, told_of_changes, write};
use crate::api::sync;
use crate::base_image::IMAGE;
use crate::docker::Container;
use crate::program::Running;
use crate::suite::{Context, Verdict};

cases!("shares":
    both_sides_see_the_same_after_doing_whatever_they_like,
);

/// Runs, each from a seed of its own, and operations of each side; of a normal run and of a full one.
const SIZES: ((u64, usize), (u64, usize)) = ((1, 2500), (5, 10_000));
/// After so many operations the sides wait for each other, or the host would be through before the container has begun.
const AT_ONCE: usize = 10;
/// How long a container may take: two processes for most operations, on an emulated processor.
const LIMIT: Duration = Duration::from_secs(1800);
/// What nothing that the container does may say. That something is not there, is there already, is not empty, is a
/// directory or is none is what has to happen.
const FORBIDDEN: [&str; 9] = [
    "stale",
    "input/output",
    "not permitted",
    "permission denied",
    "busy",
    "not implemented",
    "bad file",
    "no space",
    "too many",
];

/// Numbers that look like chance, the same for the same seed (xorshift64*).
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Chance {
        Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or_default() % end
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// One of few paths, in the root or in what may be a directory there.
    fn path(&mut self) -> String {
        let name = |chance: &mut Chance| chance.one_of(&["a", "b", "c", "d"]);
        match self.below(10) {
            0..4 => name(self).to_owned(),
            4..9 => format!("{}/{}", name(self), name(self)),
            _ => format!("{}/{}/{}", name(self), name(self), name(self)),
        }
    }

    fn operation(&mut self) -> Operation {
        let path = self.path();
        match self.below(14) {
            0 => Operation::Create(path),
            1 | 2 => Operation::Write(path, self.below(6000), self.below(1000)),
            3 | 4 => Operation::Append(path, self.below(500), self.below(1000)),
            5 | 6 => Operation::Rename(path, self.path()),
            7 => Operation::Unlink(path),
            8 | 9 => Operation::MakeDirectory(path),
            10 => Operation::RemoveDirectory(path),
            // Never without what the owner needs, as on the host that may not be root.
            11 => Operation::Mode(
                path,
                self.one_of(&[0o700, 0o711, 0o744, 0o750, 0o755, 0o770, 0o777]),
            ),
            12 => Operation::Resize(path, self.below(9000)),
            _ => Operation::Look(path),
        }
    }
}

/// Something done to a path, whatever is there.
#[derive(Debug)]
enum Operation {
    /// Makes a file where nothing is.
    Create(String),
    /// Gives a file so many digits, zeros in front of a number.
    Write(String, usize, usize),
    /// Adds them to what is there.
    Append(String, usize, usize),
    Rename(String, String),
    Unlink(String),
    MakeDirectory(String),
    RemoveDirectory(String),
    Mode(String, u32),
    Resize(String, usize),
    /// Reads the file, or lists the directory: then it is in the caches.
    Look(String),
}

impl Operation {
    /// As a line for busybox's shell. Nothing of it ends the shell when it fails.
    fn line(&self) -> String {
        match self {
            Operation::Create(path) => format!("set -C; printf '' > {path}; set +C"),
            Operation::Write(path, length, number) => format!("printf '%0{length}d' {number} > {path}"),
            Operation::Append(path, length, number) => format!("printf '%0{length}d' {number} >> {path}"),
            Operation::Rename(from, to) => format!("mv -f {from} {to}"),
            Operation::Unlink(path) => format!("rm -f {path}"),
            Operation::MakeDirectory(path) => format!("mkdir {path}"),
            Operation::RemoveDirectory(path) => format!("rmdir {path}"),
            Operation::Mode(path, mode) => format!("chmod {mode:o} {path}"),
            Operation::Resize(path, length) => format!("truncate -s {length} {path}"),
            Operation::Look(path) => format!("{{ cat {path} || ls -l {path}; }} > /dev/null"),
        }
    }

    /// Does it here.
    fn perform(&self, dir: &Path) -> io::Result<()> {
        let digits = |length: &usize, number: &usize| format!("{number:00$}", *length);
        match self {
            Operation::Create(path) => fs::File::create_new(dir.join(path)).map(drop),
            Operation::Write(path, length, number) => fs::write(dir.join(path), digits(length, number)),
            Operation::Append(path, length, number) => fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(dir.join(path))?
                .write_all(digits(length, number).as_bytes()),
            Operation::Rename(from, to) => fs::rename(dir.join(from), dir.join(to)),
            Operation::Unlink(path) => fs::remove_file(dir.join(path)),
            Operation::MakeDirectory(path) => fs::create_dir(dir.join(path)),
            Operation::RemoveDirectory(path) => fs::remove_dir(dir.join(path)),
            Operation::Mode(path, mode) => {
                fs::set_permissions(dir.join(path), fs::Permissions::from_mode(*mode))
            }
            Operation::Resize(path, length) => fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(dir.join(path))?
                .set_len(*length as u64),
            Operation::Look(path) => match fs::read(dir.join(path)) {
                Err(error) if error.raw_os_error() == Some(Errno::ISDIR.raw_os_error()) => {
                    fs::read_dir(dir.join(path))?.try_for_each(|entry| entry.map(drop))
                }
                other => other.map(drop),
            },
        }
    }
}

/// Whether it is one of the errors that have to happen.
fn has_to_happen(error: &io::Error) -> bool {
    const KINDS: [Errno; 6] = [
        Errno::NOENT,
        Errno::EXIST,
        Errno::NOTEMPTY,
        Errno::ISDIR,
        Errno::NOTDIR,
        // A directory into itself.
        Errno::INVAL,
    ];
    KINDS
        .iter()
        .any(|kind| error.raw_os_error() == Some(kind.raw_os_error()))
}

/// What there is of something in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// Type and permissions.
    mode: u32,
    /// Of a file.
    size: u64,
    /// In seconds.
    modified: i64,
    /// SHA-256 in hex, of a file.
    content: String,
}

type Tree = BTreeMap<String, Seen>;

/// The tree as the host has it. Paths begin with a dot, as find(1) has them.
fn seen_here(path: &Path, name: &str, tree: &mut Tree) -> Result<()> {
    let metadata = fs::symlink_metadata(path).with_context(|| format!("cannot look at {name}"))?;
    let mut seen = Seen {
        mode: metadata.mode(),
        size: 0,
        modified: metadata.mtime(),
        content: String::new(),
    };
    if metadata.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("cannot list {name}"))? {
            let entry = entry.with_context(|| format!("cannot list {name}"))?;
            let below = format!("{name}/{}", entry.file_name().to_string_lossy());
            seen_here(&entry.path(), &below, tree)?;
        }
    } else {
        let content = fs::read(path).with_context(|| format!("cannot read {name}"))?;
        seen.size = metadata.len();
        for byte in Sha256::digest(content) {
            write!(seen.content, "{byte:02x}").context("cannot write to a string")?;
        }
    }
    tree.insert(name.to_owned(), seen);
    Ok(())
}

/// What prints the tree for [`parse`], in a container.
const LIST: &str =
    "cd /x && find . -exec stat -c '%f %s %Y %n' {} + && echo && find . -type f -exec sha256sum {} +";

/// The tree as a container has printed it.
fn parse(text: &str) -> Option<Tree> {
    const TYPE: u32 = 0o170_000;
    const DIRECTORY: u32 = 0o040_000;
    let mut tree = Tree::new();
    let mut lines = text.lines();
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let mut words = line.splitn(4, ' ');
        let mode = u32::from_str_radix(words.next()?, 16).ok()?;
        let size = words.next()?.parse().ok()?;
        let modified = words.next()?.parse().ok()?;
        let seen = Seen {
            mode,
            size: if mode & TYPE == DIRECTORY { 0 } else { size },
            modified,
            content: String::new(),
        };
        tree.insert(words.next()?.to_owned(), seen);
    }
    for line in lines {
        let (hash, name) = line.split_once("  ")?;
        tree.get_mut(name)?.content = hash.to_owned();
    }
    Some(tree)
}

/// What differs, a line for each side, of the first few names; nothing when they are equal.
fn differences(host: &Tree, guest: &Tree) -> String {
    const SHOWN: usize = 20;
    let other_names = guest.keys().filter(|name| !host.contains_key(*name));
    let names = host.keys().chain(other_names);
    let different: Vec<_> = names.filter(|name| host.get(*name) != guest.get(*name)).collect();
    let mut text = String::new();
    for name in different.iter().take(SHOWN) {
        let (here, there) = (host.get(*name), guest.get(*name));
        text.push_str(&format!(
            "{name}\n  host:      {here:?}\n  container: {there:?}\n"
        ));
    }
    if let Some(more) = different.len().checked_sub(SHOWN + 1) {
        text.push_str(&format!("and {} more\n", more + 1));
    }
    text
}

/// The container's half: `AT_ONCE` operations at a time, each time followed by a line.
fn script(operations: &[Operation]) -> String {
    let mut text = "cd /x || exit\n".to_owned();
    for part in operations.chunks(AT_ONCE) {
        for operation in part {
            text.push_str(&operation.line());
            text.push('\n');
        }
        text.push_str("echo\n");
    }
    text + "exit 0\n"
}

/// The host's half, as far as the container is with its own.
fn work(operations: &[Operation], dir: &Path, container: &Running) -> Result<()> {
    let mut heard = 0;
    for part in operations.chunks(AT_ONCE) {
        heard = container.stdout.wait_for("\n", heard, LIMIT).with_context(|| {
            let errors = container.stderr.bytes();
            format!("the container: {}", String::from_utf8_lossy(&errors))
        })?;
        for operation in part {
            match operation.perform(dir) {
                Err(error) if !has_to_happen(&error) => {
                    return Err(error).with_context(|| format!("on the host: {operation:?}"));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn both_sides_see_the_same_after_doing_whatever_they_like(context: &Context) -> Result<Verdict> {
    let machine = context.machine()?;
    if let Some(verdict) = told_of_changes(&machine)? {
        return Ok(verdict);
    }
    let (seeds, count) = if context.setup().options.full {
        SIZES.1
    } else {
        SIZES.0
    };
    for seed in 1..=seeds {
        let [ours, theirs] = [2 * seed, 2 * seed + 1].map(|seed| {
            let mut chance = Chance::new(seed);
            let operations = (0..count).map(|_| chance.operation());
            operations.collect::<Vec<_>>()
        });
        let dir = directory(context, &machine, "chance")?;
        let mount = bind(&dir, "/x");
        let scripts = directory(context, &machine, "script")?;
        write(&scripts.join("script"), &script(&theirs))?;
        // It has the tree in view all the time.
        let looking = Container::idle(&machine, context.name("looking"), &["-v", &mount])?;

        let container = machine
            .docker(["run", "--rm", "-v", &mount, "-v", &bind(&scripts, "/script")])
            .args([IMAGE, "sh", "/script/script"])
            .limit(LIMIT)
            .spawn()?;
        work(&ours, &dir, &container).with_context(|| format!("seed {seed}"))?;
        let finished = container.finish()?;
        ensure!(finished.code() == Some(0), "seed {seed}: {}", finished.describe());
        let errors = finished.errors();
        let forbidden = errors.lines().find(|line| {
            let line = line.to_lowercase();
            FORBIDDEN.iter().any(|words| line.contains(words))
        });
        ensure!(
            forbidden.is_none(),
            "seed {seed}: the container said {forbidden:?}"
        );

        sync(&machine)?;
        let listing = looking.exec(LIST).run()?;
        // busybox's find does not count what a program says that it ran for many files at once.
        ensure!(
            listing.errors().is_empty(),
            "seed {seed}: the container cannot look at all: {}",
            listing.describe()
        );
        let listed = listing.ok()?;
        let guest = parse(&listed).with_context(|| format!("not a tree: {listed}"))?;
        let mut host = Tree::new();
        seen_here(&dir, ".", &mut host)?;
        let differences = differences(&host, &guest);
        if !differences.is_empty() {
            bail!("seed {seed}: the sides see different things:\n{differences}");
        }
        ensure!(host.len() > 1, "seed {seed}: nothing is left to compare");
    }
    Ok(Verdict::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::on_path;
    use crate::program::Program;

    #[test]
    fn chance_is_the_same_for_the_same_seed_and_leaves_nothing_out() {
        let operations = |seed| {
            let mut chance = Chance::new(seed);
            let operations = (0..500).map(|_| format!("{:?}", chance.operation()));
            operations.collect::<Vec<_>>()
        };
        assert_eq!(operations(1), operations(1));
        assert_ne!(operations(1), operations(2));
        for kind in [
            "Create", "Write", "Append", "Rename", "Unlink", "Make", "Remove", "Mode", "Resize", "Look",
        ] {
            let found = operations(3).iter().any(|operation| operation.starts_with(kind));
            assert!(found, "{kind}");
        }
    }

    /// The comparison, and both ways of doing an operation: on the host alone, each in its turn.
    #[test]
    fn both_ways_of_an_operation_do_the_same() {
        let Some(busybox) = on_path("busybox") else {
            return;
        };
        let root = tempfile::tempdir().unwrap();
        let [by_shell, here] = ["shell", "here"].map(|name| {
            let dir = root.path().join(name);
            fs::create_dir(&dir).unwrap();
            dir
        });
        let mut chance = Chance::new(7);
        let operations: Vec<_> = (0..400)
            .map(|_| chance.operation())
            // busybox's mv moves into what is a directory, and not in its place.
            .filter(|operation| !matches!(operation, Operation::Rename(..)))
            .collect();
        let in_shell = |script: &str| {
            let script = script.replace("/x", &by_shell.display().to_string());
            let sh = Program::new(&busybox).args(["sh", "-s"]).input(script);
            sh.run().unwrap()
        };
        let finished = in_shell(&script(&operations));
        assert_eq!(finished.code(), Some(0), "{}", finished.describe());
        assert_eq!(finished.stdout.len(), operations.len().div_ceil(AT_ONCE));
        for operation in &operations {
            let result = operation.perform(&here);
            assert!(
                result.as_ref().map_or_else(has_to_happen, |()| true),
                "{operation:?}: {result:?}"
            );
        }

        let listed = in_shell(LIST);
        let without_times = |mut tree: Tree| {
            for seen in tree.values_mut() {
                seen.modified = 0;
            }
            tree
        };
        let printed = parse(&listed.text()).unwrap();
        let [mut same_tree, mut other] = [Tree::new(), Tree::new()];
        seen_here(&by_shell, ".", &mut same_tree).unwrap();
        seen_here(&here, ".", &mut other).unwrap();
        assert_eq!(differences(&same_tree, &printed), "");
        assert_eq!(differences(&without_times(other), &without_times(printed)), "");
        assert!(same_tree.len() > 5, "{same_tree:?}");
    }
}
