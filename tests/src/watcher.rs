//! Watching directories by inotify, and a program that does so in a container.
//!
//! busybox, as Debian builds it, has no such program, so it is this one ([`crate::carried`]). Events are left in the kernel's
//! queue until somebody asks for them: what is told is what had come by then, and nothing has to be waited for.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;

/// The argument that makes a program of this crate a watcher ([`serve`]); the directory it works in follows.
pub const ARGUMENT: &str = "--serve-as-watcher";

/// What is watched for, each with its letter, which is busybox's inotifyd's. Opening and reading are not.
const KINDS: [(ReadFlags, char); 9] = [
    (ReadFlags::CREATE, 'n'),
    (ReadFlags::MODIFY, 'c'),
    (ReadFlags::ATTRIB, 'e'),
    (ReadFlags::CLOSE_WRITE, 'w'),
    (ReadFlags::DELETE, 'd'),
    (ReadFlags::MOVED_FROM, 'm'),
    (ReadFlags::MOVED_TO, 'y'),
    (ReadFlags::MOVE_SELF, 'M'),
    (ReadFlags::DELETE_SELF, 'D'),
];
/// Bytes of events that are read at once.
const BUFFER: usize = 64 << 10;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What, by its letter in [`KINDS`].
    pub letter: char,
    /// What the two halves of a move have in common; 0 otherwise.
    pub cookie: u32,
    /// The watched directory as it was called when the watching began, and the name in it. A directory has a `/` at the
    /// end; `.` is the watched directory itself.
    pub path: String,
}

impl Event {
    /// The event as a line.
    fn line(&self) -> String {
        format!("{} {} {}", self.letter, self.cookie, self.path)
    }

    /// Reads what [`Event::line`] has made.
    pub fn parse(line: &str) -> Option<Event> {
        let mut words = line.splitn(3, ' ');
        let letter = words.next()?;
        let letter = KINDS.iter().find(|(_, known)| letter == known.to_string())?.1;
        Some(Event {
            letter,
            cookie: words.next()?.parse().ok()?,
            path: words.next()?.to_owned(),
        })
    }
}

/// Directories that are watched.
pub struct Watcher {
    inotify: OwnedFd,
    root: PathBuf,
    /// What the kernel's numbers stand for.
    names: BTreeMap<i32, String>,
}

impl Watcher {
    /// Watches nothing yet. Names are relative to `root`.
    ///
    /// # Errors
    /// When the user has too many already.
    pub fn new(root: &Path) -> Result<Watcher> {
        Ok(Watcher {
            inotify: init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context("cannot use inotify")?,
            root: root.to_owned(),
            names: BTreeMap::new(),
        })
    }

    /// Watches this directory too.
    ///
    /// # Errors
    /// When it is not there.
    pub fn watch(&mut self, dir: &str) -> Result<()> {
        let kinds = KINDS
            .iter()
            .fold(ReadFlags::empty(), |all, (kind, _)| all | *kind);
        let flags = WatchFlags::from_bits_retain(kinds.bits()) | WatchFlags::ONLYDIR;
        let watch = add_watch(&self.inotify, self.root.join(dir), flags)
            .with_context(|| format!("cannot watch {dir}"))?;
        self.names.insert(watch, dir.to_owned());
        Ok(())
    }

    /// What has happened since this was last asked.
    ///
    /// # Errors
    /// When the kernel has lost events.
    pub fn events(&self) -> Result<Vec<Event>> {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut events = Vec::new();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(events),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error).context("cannot read from inotify"),
            };
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                bail!("inotify has lost events");
            }
            let Some((_, letter)) = KINDS.iter().find(|(kind, _)| flags.contains(*kind)) else {
                // A directory is no longer watched, because it is gone.
                continue;
            };
            let dir = self.names.get(&event.wd()).context("an event of nothing")?;
            let path = match event.file_name() {
                None => format!("{dir}/."),
                Some(name) => {
                    let slash = if flags.contains(ReadFlags::ISDIR) { "/" } else { "" };
                    format!("{dir}/{}{slash}", name.to_bytes().escape_ascii())
                }
            };
            events.push(Event {
                letter: *letter,
                cookie: event.cookie(),
                path,
            });
        }
    }
}

/// Does what lines of `input` say, until they end: `watch DIRECTORY`, answered by `watching DIRECTORY`, and `tell MARK`,
/// answered by the events and `told MARK`.
///
/// # Errors
/// When something of it cannot be done.
pub fn serve(root: &Path, input: impl BufRead, mut output: impl Write) -> Result<()> {
    let mut watcher = Watcher::new(root)?;
    for line in input.lines() {
        let line = line.context("cannot read what to do")?;
        let answer = match line.split_once(' ') {
            Some(("watch", dir)) => {
                watcher.watch(dir)?;
                format!("watching {dir}\n")
            }
            Some(("tell", mark)) => {
                let events = watcher.events()?;
                let lines: String = events.iter().map(|event| event.line() + "\n").collect();
                format!("{lines}told {mark}\n")
            }
            _ => bail!("{line:?} is nothing to do"),
        };
        output
            .write_all(answer.as_bytes())
            .and_then(|()| output.flush())
            .context("cannot answer")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufReader, pipe};
    use std::thread;

    use super::*;

    #[test]
    fn events_are_told_when_they_are_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        fs::create_dir(root.join("a")).unwrap();
        let (orders, mut to_server) = pipe().unwrap();
        let (from_server, answers) = pipe().unwrap();
        let server = thread::spawn({
            let root = root.clone();
            move || serve(&root, BufReader::new(orders), answers)
        });
        let mut answers = BufReader::new(from_server).lines().map(Result::unwrap);

        writeln!(to_server, "watch a").unwrap();
        assert_eq!(answers.next().unwrap(), "watching a");
        fs::create_dir(root.join("a/dir")).unwrap();
        fs::rename(root.join("a/dir"), root.join("a/b")).unwrap();
        fs::remove_dir(root.join("a/b")).unwrap();
        fs::rename(root.join("a"), root.join("c")).unwrap();
        writeln!(to_server, "tell 1").unwrap();
        let told: Vec<String> = answers.by_ref().take_while(|line| line != "told 1").collect();
        writeln!(to_server, "tell 2").unwrap();
        assert_eq!(answers.next().unwrap(), "told 2");
        drop(to_server);
        server.join().unwrap().unwrap();

        let events: Vec<Event> = told.iter().map(|line| Event::parse(line).unwrap()).collect();
        let found: Vec<_> = events
            .iter()
            .map(|event| (event.letter, event.path.as_str()))
            .collect();
        let expected = [
            ('n', "a/dir/"),
            ('m', "a/dir/"),
            ('y', "a/b/"),
            ('d', "a/b/"),
            ('M', "a/."),
        ];
        assert_eq!(found, expected);
        assert!(events[1].cookie != 0 && events[1].cookie == events[2].cookie);
        assert_eq!(Event::parse("? 0 a"), None);
    }
}
