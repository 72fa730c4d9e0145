//! Random operations, through the file system on one directory and by system calls on another: the same answers, the
//! same tree, and what is held stays what it is.

use std::os::fd::OwnedFd;

use proptest::prelude::*;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};

use super::support::*;
use crate::filesystem::{Errno, FileSystem, NodeId, Result};
use crate::passthrough::PassthroughConfig;
use crate::passthrough::discovery::kind;
use crate::passthrough::sys;
use crate::wire::ROOT_ID;

/// A directory, the root or one of two in it, and a name in it.
type Spot = (u8, u8);

#[derive(Debug, Clone)]
enum Step {
    Mkdir(Spot),
    Make(Spot),
    Symlink(Spot),
    Unlink(Spot),
    Rmdir(Spot),
    Link(Spot, Spot),
    Rename(Spot, Spot, u8),
    /// Look up and keep.
    Hold(Spot),
    Write(u8, u8),
    Evict,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let spot = || (0u8..3, 0u8..4);
    let step = prop_oneof![
        2 => spot().prop_map(Step::Mkdir),
        3 => spot().prop_map(Step::Make),
        1 => spot().prop_map(Step::Symlink),
        2 => spot().prop_map(Step::Unlink),
        2 => spot().prop_map(Step::Rmdir),
        2 => (spot(), spot()).prop_map(|(from, to)| Step::Link(from, to)),
        4 => (spot(), spot(), 0u8..3).prop_map(|(from, to, flags)| Step::Rename(from, to, flags)),
        3 => spot().prop_map(Step::Hold),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(held, byte)| Step::Write(held, byte)),
        1 => Just(Step::Evict),
    ];
    prop::collection::vec(step, 1..60)
}

/// Names; two of them are those of the directories.
const NAMES: [&std::ffi::CStr; 4] = [c"d1", c"d2", c"x", c"y"];

/// The directory that plain system calls work on.
struct Plain {
    dir: tempfile::TempDir,
    root: OwnedFd,
}

impl Plain {
    fn parent(&self, (dir, _): Spot) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let name = if dir == 0 {
            c"."
        } else {
            NAMES[usize::from(dir) - 1]
        };
        Ok(rustix::fs::openat(&self.root, name, flags, Mode::empty())?)
    }
}

fn spot_name((_, name): Spot) -> &'static std::ffi::CStr {
    NAMES[usize::from(name)]
}

fn parent(world: &World, (dir, _): Spot) -> Result<NodeId> {
    if dir == 0 {
        return Ok(ROOT_ID);
    }
    let entry = world.fs.lookup(&ROOT, ROOT_ID, NAMES[usize::from(dir) - 1])?;
    if entry.attr.mode & libc::S_IFMT == libc::S_IFDIR {
        Ok(entry.node)
    } else {
        Err(Errno(libc::ENOTDIR))
    }
}

const RENAMES: [RenameFlags; 3] = [
    RenameFlags::empty(),
    RenameFlags::NOREPLACE,
    RenameFlags::EXCHANGE,
];

fn through_the_file_system(world: &World, step: &Step) -> Result<()> {
    let fs = &world.fs;
    match *step {
        Step::Mkdir(at) => fs
            .mkdir(&ROOT, parent(world, at)?, spot_name(at), 0o755, 0)
            .map(drop),
        Step::Make(at) => {
            let mode = libc::S_IFREG | 0o644;
            fs.mknod(&ROOT, parent(world, at)?, spot_name(at), mode, 0, 0)
                .map(drop)
        }
        Step::Symlink(at) => fs
            .symlink(&ROOT, parent(world, at)?, spot_name(at), c"x")
            .map(drop),
        Step::Unlink(at) => fs.unlink(&ROOT, parent(world, at)?, spot_name(at)),
        Step::Rmdir(at) => fs.rmdir(&ROOT, parent(world, at)?, spot_name(at)),
        Step::Link(from, to) => {
            let to_parent = parent(world, to)?;
            let from_node = fs.lookup(&ROOT, parent(world, from)?, spot_name(from))?.node;
            fs.link(&ROOT, from_node, to_parent, spot_name(to)).map(drop)
        }
        Step::Rename(from, to, flags) => {
            let flags = RENAMES[usize::from(flags)].bits();
            let to = (parent(world, to)?, spot_name(to));
            let from = (parent(world, from)?, spot_name(from));
            let look = |at: (NodeId, &std::ffi::CStr)| fs.lookup(&ROOT, at.0, at.1).map(|entry| entry.node);
            match fs.rename(&ROOT, from.0, from.1, to.0, to.1, flags) {
                // Linux looks again, and does nothing where both are names of one file.
                Err(Errno(libc::ESTALE)) if look(from)? == look(to)? => Ok(()),
                result => result,
            }
        }
        Step::Hold(_) | Step::Write(..) => Ok(()),
        Step::Evict => {
            fs.close_cached();
            Ok(())
        }
    }
}

fn by_system_calls(plain: &Plain, step: &Step) -> Result<()> {
    let mode = Mode::from_raw_mode(0o644);
    match *step {
        Step::Mkdir(at) => rustix::fs::mkdirat(plain.parent(at)?, spot_name(at), Mode::from_raw_mode(0o755))?,
        Step::Make(at) => {
            rustix::fs::mknodat(plain.parent(at)?, spot_name(at), FileType::RegularFile, mode, 0)?;
        }
        Step::Symlink(at) => rustix::fs::symlinkat(c"x", plain.parent(at)?, spot_name(at))?,
        Step::Unlink(at) => rustix::fs::unlinkat(plain.parent(at)?, spot_name(at), AtFlags::empty())?,
        Step::Rmdir(at) => rustix::fs::unlinkat(plain.parent(at)?, spot_name(at), AtFlags::REMOVEDIR)?,
        Step::Link(from, to) => {
            let to_parent = plain.parent(to)?;
            let from_parent = plain.parent(from)?;
            sys::stat_name(&from_parent, spot_name(from))?;
            rustix::fs::linkat(
                from_parent,
                spot_name(from),
                to_parent,
                spot_name(to),
                AtFlags::empty(),
            )?;
        }
        Step::Rename(from, to, flags) => {
            let to_parent = plain.parent(to)?;
            let flags = RENAMES[usize::from(flags)];
            rustix::fs::renameat_with(
                plain.parent(from)?,
                spot_name(from),
                to_parent,
                spot_name(to),
                flags,
            )?;
        }
        Step::Hold(_) | Step::Write(..) | Step::Evict => {}
    }
    Ok(())
}

/// What there is, by path: type, links, contents.
fn tree(dir: &std::path::Path) -> Vec<(String, u32, u64, Vec<u8>)> {
    use std::os::unix::fs::MetadataExt;
    let mut all = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let data = std::fs::symlink_metadata(&path).unwrap();
            let contents = if data.is_file() {
                std::fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            let links = if data.is_dir() { 0 } else { data.nlink() };
            all.push((name, data.mode() & libc::S_IFMT, links, contents));
            if data.is_dir() {
                open.push(path);
            }
        }
    }
    all.sort();
    all
}

fn same_answers(file_handles: bool, steps: &[Step]) -> std::result::Result<(), TestCaseError> {
    let world = World::with(
        PassthroughConfig {
            file_handles,
            ..config()
        },
        |_| {},
    );
    let dir = tempfile::tempdir().unwrap();
    let root = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
    let plain = Plain { dir, root };
    let mut held: Vec<(NodeId, OwnedFd)> = Vec::new();
    for step in steps {
        let ours = through_the_file_system(&world, step);
        let theirs = by_system_calls(&plain, step);
        prop_assert_eq!(ours, theirs, "{:?}", step);
        match *step {
            Step::Hold(at) => {
                let node = parent(&world, at).and_then(|dir| world.fs.lookup(&ROOT, dir, spot_name(at)));
                let fd = plain
                    .parent(at)
                    .and_then(|dir| Ok(sys::open_path(dir, spot_name(at))?));
                prop_assert_eq!(node.as_ref().map(drop).ok(), fd.as_ref().map(drop).ok());
                held.extend(node.ok().map(|entry| entry.node).zip(fd.ok()));
            }
            Step::Write(which, byte) if !held.is_empty() => {
                let (node, fd) = &held[usize::from(which) % held.len()];
                let is_file = kind(&sys::stat(fd).unwrap()) == libc::S_IFREG;
                if is_file {
                    let at = u64::from(byte) % 16;
                    prop_assert_eq!(world.write(*node, 0, at, &[byte]), Ok(1));
                    let file = world.fs.proc().unwrap().reopen(fd, OFlags::WRONLY).unwrap();
                    rustix::io::pwrite(&file, &[byte], at).unwrap();
                }
            }
            _ => {}
        }
        for (node, fd) in &held {
            let (attr, st) = (world.attr(&ROOT, *node), sys::stat(fd).unwrap());
            prop_assert_eq!(attr.mode & libc::S_IFMT, kind(&st));
            if attr.mode & libc::S_IFMT != libc::S_IFDIR {
                prop_assert_eq!((attr.nlink, attr.size), (st.stx_nlink, st.stx_size));
            }
        }
    }
    prop_assert_eq!(tree(world.dir.path()), tree(plain.dir.path()));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_have_the_hosts_results(steps in steps()) {
        same_answers(true, &steps)?;
    }

    #[test]
    fn random_operations_without_file_handles(steps in steps()) {
        same_answers(false, &steps)?;
    }
}
