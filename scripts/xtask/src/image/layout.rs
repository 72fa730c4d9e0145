//! What the image has beside its packages: directories, links, busybox's tools, our own files, the bundle of
//! certificates.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The parsed `layout` and the files under `files/`.
pub(super) struct Layout {
    text: String,
    entries: Vec<Entry>,
    files: Vec<(PathBuf, Vec<u8>)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Dir { path: PathBuf, mode: u32 },
    Link { path: PathBuf, target: String },
    Applets { dir: PathBuf, names: Vec<String> },
}

impl Layout {
    /// Reads `layout` and `files/` in the given directory.
    ///
    /// # Errors
    /// When one cannot be read, or a line of `layout` is wrong; the error has its number.
    pub(super) fn load(sources: &Path) -> Result<Self> {
        let path = sources.join("layout");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let entries = parse(&text).with_context(|| format!("in {}", path.display()))?;
        let mut files = Vec::new();
        collect(&sources.join("files"), Path::new(""), &mut files)?;
        Ok(Self { text, entries, files })
    }

    /// The text of `layout`, for the image's hash.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Our own files: path in the image and content, sorted by path.
    pub(super) fn files(&self) -> &[(PathBuf, Vec<u8>)] {
        &self.files
    }

    /// Makes everything in the tree at `root`. What is replaced is unlinked first, never written into: the tree shares
    /// its files with the cache.
    ///
    /// # Errors
    /// When the tree cannot be changed, or busybox lacks a tool that the layout names.
    pub(super) fn apply(&self, root: &Path) -> Result<()> {
        for entry in &self.entries {
            match entry {
                Entry::Dir { path, mode } => make_dir(&root.join(path), *mode)?,
                Entry::Link { path, target } => link(target, &root.join(path))?,
                Entry::Applets { dir, names } => applets(root, dir, names)?,
            }
        }
        for (path, content) in &self.files {
            let target = root.join(path);
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            }
            remove(&target)?;
            fs::write(&target, content).with_context(|| format!("cannot write {}", target.display()))?;
            set_mode(&target, 0o644)?;
        }
        Ok(())
    }
}

/// Joins the certificates of the package ca-certificates into the one file that programs read.
///
/// # Errors
/// When there are none, or the file cannot be written.
pub(super) fn certificates(root: &Path) -> Result<()> {
    let mut found = Vec::new();
    collect(&root.join("usr/share/ca-certificates"), Path::new(""), &mut found)?;
    let mut bundle = Vec::new();
    for (_, content) in &found {
        bundle.extend_from_slice(content);
        if !content.ends_with(b"\n") {
            bundle.push(b'\n');
        }
    }
    if bundle.is_empty() {
        bail!(
            "the package ca-certificates brought no certificates; the guest could not pull from a registry"
        );
    }
    make_dir(&root.join("etc/ssl/certs"), 0o755)?;
    let path = root.join("etc/ssl/certs/ca-certificates.crt");
    remove(&path)?;
    fs::write(&path, bundle).with_context(|| format!("cannot write {}", path.display()))?;
    set_mode(&path, 0o644)
}

/// Copies a program into the tree.
///
/// # Errors
/// When it cannot be read or written.
pub(super) fn install(program: &Path, target: &Path, mode: u32) -> Result<()> {
    remove(target)?;
    fs::copy(program, target)
        .with_context(|| format!("cannot copy {} to {}", program.display(), target.display()))?;
    set_mode(target, mode)
}

fn parse(text: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(entry) = parse_line(line).with_context(|| format!("line {}: {line:?}", index + 1))? {
            entries.push(entry);
        }
    }
    Ok(entries)
}

fn parse_line(line: &str) -> Result<Option<Entry>> {
    let content = line.trim();
    if content.is_empty() || content.starts_with('#') {
        return Ok(None);
    }
    let words: Vec<_> = content.split_whitespace().collect();
    let entry = match words[..] {
        ["dir", path] => Entry::Dir {
            path: inside(path)?,
            mode: 0o755,
        },
        ["dir", path, mode] => {
            let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777);
            Entry::Dir {
                path: inside(path)?,
                mode: mode.context("the mode is not an octal number up to 7777")?,
            }
        }
        ["link", path, target] => Entry::Link {
            path: inside(path)?,
            target: target.to_owned(),
        },
        ["applets", dir, ref names @ ..] if !names.is_empty() => Entry::Applets {
            dir: inside(dir)?,
            names: names.iter().map(|&name| name.to_owned()).collect(),
        },
        _ => bail!("it is neither `dir PATH [MODE]`, `link PATH TARGET` nor `applets DIR NAME...`"),
    };
    Ok(Some(entry))
}

/// An absolute path in the image, made relative to its root.
fn inside(path: &str) -> Result<PathBuf> {
    let relative = path.strip_prefix('/').context("the path is not absolute")?;
    let relative = PathBuf::from(relative);
    if relative
        .components()
        .any(|part| !matches!(part, Component::Normal(_)))
    {
        bail!("the path has a \".\" or \"..\" in it");
    }
    Ok(relative)
}

fn applets(root: &Path, dir: &Path, names: &[String]) -> Result<()> {
    let busybox = root.join("usr/bin/busybox");
    let program = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    // The table of names is NUL-separated text. Asking the program itself would mean running the guest's libraries on
    // the host.
    let known: HashSet<&[u8]> = program.split(|byte| *byte == 0).collect();
    for name in names {
        if !known.contains(name.as_bytes()) {
            bail!("busybox has no {name}; take it out of the layout");
        }
        let provided = ["usr/bin", "usr/sbin"]
            .iter()
            .any(|bin| root.join(bin).join(name).symlink_metadata().is_ok());
        if !provided {
            link("/usr/bin/busybox", &root.join(dir).join(name))?;
        }
    }
    Ok(())
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    set_mode(path, mode)
}

fn link(target: &str, path: &Path) -> Result<()> {
    if path.is_dir() && !path.is_symlink() {
        fs::remove_dir(path)
            .with_context(|| format!("cannot put a link in the place of {}", path.display()))?;
    } else {
        remove(path)?;
    }
    symlink(target, path).with_context(|| format!("cannot make the link {}", path.display()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// Every regular file under `dir`, with its path relative to it, sorted.
fn collect(dir: &Path, under: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) -> Result<()> {
    let mut entries = fs::read_dir(dir)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot list {}", dir.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let relative = under.join(entry.file_name());
        if path.is_dir() {
            collect(&path, &relative, files)?;
        } else {
            files.push((
                relative,
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?,
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    #[test]
    fn the_layout_of_this_checkout_is_readable() {
        let layout = Layout::load(&paths::workspace_root().unwrap().join("guest-init/image")).unwrap();

        let links = |path: &str| {
            layout
                .entries
                .iter()
                .any(|entry| matches!(entry, Entry::Link { path: p, .. } if p == Path::new(path)))
        };
        for path in ["etc/resolv.conf", "etc/hosts", "etc/hostname", "etc/docker"] {
            assert!(links(path), "{path} is not a link");
        }
    }

    #[test]
    fn wrong_lines_are_refused_with_their_number() {
        for line in [
            "dir tmp",
            "dir /tmp 8",
            "dir /tmp 77777",
            "dir /a/../b",
            "link /a",
            "applets /usr/bin",
            "file /a",
        ] {
            let error = parse(&format!("# fine\n{line}\n")).unwrap_err();
            assert!(format!("{error:#}").starts_with("line 2: "), "{error:#}");
        }
    }

    #[test]
    fn what_is_replaced_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (cached, root) = (dir.path().join("cached"), dir.path().join("root"));
        fs::create_dir_all(root.join("etc/empty")).unwrap();
        fs::write(&cached, "package").unwrap();
        fs::hard_link(&cached, root.join("etc/passwd")).unwrap();
        let layout = Layout {
            text: String::new(),
            entries: parse("link /etc/empty /run/x\nlink /etc/new y\ndir /tmp 1777\n").unwrap(),
            files: vec![(PathBuf::from("etc/passwd"), b"ours".to_vec())],
        };

        layout.apply(&root).unwrap();
        layout.apply(&root).unwrap();

        assert_eq!(fs::read_to_string(cached).unwrap(), "package");
        assert_eq!(fs::read_to_string(root.join("etc/passwd")).unwrap(), "ours");
        assert_eq!(
            fs::read_link(root.join("etc/empty")).unwrap(),
            Path::new("/run/x")
        );
        assert_eq!(
            fs::metadata(root.join("tmp")).unwrap().permissions().mode() & 0o7777,
            0o1777
        );
    }

    #[test]
    fn tools_are_linked_unless_a_package_has_them_and_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("usr/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("busybox"), b"code\0ls\0ps\0code").unwrap();
        fs::write(bin.join("ps"), "procps").unwrap();
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();

        applets(dir.path(), Path::new("usr/bin"), &names(&["ls", "ps"])).unwrap();
        let missing = applets(dir.path(), Path::new("usr/bin"), &names(&["l"]));

        assert_eq!(
            fs::read_link(bin.join("ls")).unwrap(),
            Path::new("/usr/bin/busybox")
        );
        assert_eq!(fs::read_to_string(bin.join("ps")).unwrap(), "procps");
        assert!(missing.is_err());
    }

    #[test]
    fn certificates_become_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("usr/share/ca-certificates/mozilla");
        fs::create_dir_all(&source).unwrap();
        assert!(certificates(dir.path()).is_err());
        fs::write(source.join("b.crt"), "B\n").unwrap();
        fs::write(source.join("a.crt"), "A").unwrap();

        certificates(dir.path()).unwrap();

        let bundle = dir.path().join("etc/ssl/certs/ca-certificates.crt");
        assert_eq!(fs::read_to_string(bundle).unwrap(), "A\nB\n");
    }
}
