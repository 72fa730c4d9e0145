//! What to execute: the program found, its arguments, its environment.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use protocol::exec::{ExecErrorKind, ExecRequest};

use crate::tool;

/// root's home.
const HOME: &str = "/root";
/// root's shell when `/etc/passwd` does not say.
const SHELL: &str = "/bin/sh";

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// There is no such program.
    #[error("there is no program {0:?} in the guest")]
    NotFound(String),
    /// It cannot be executed.
    #[error("{program:?} cannot be executed in the guest: {reason}")]
    NotExecutable {
        /// The program.
        program: String,
        /// Why not.
        reason: String,
    },
    /// The working directory cannot be used.
    #[error("cannot work in the directory {directory:?} of the guest: {reason}")]
    Directory {
        /// The directory.
        directory: String,
        /// Why not.
        reason: io::Error,
    },
    /// Something else.
    #[error("cannot start {program:?}: {reason}")]
    Other {
        /// The program.
        program: String,
        /// What happened.
        reason: io::Error,
    },
}

impl StartError {
    /// As shells tell it apart.
    pub(super) fn kind(&self) -> ExecErrorKind {
        match self {
            StartError::NotFound(_) => ExecErrorKind::NotFound,
            StartError::NotExecutable { .. } => ExecErrorKind::NotExecutable,
            StartError::Directory { .. } | StartError::Other { .. } => ExecErrorKind::Other,
        }
    }

    /// Reads the error of starting a program that was found.
    pub(super) fn of_spawn(program: &str, error: io::Error) -> StartError {
        match error.raw_os_error() {
            // The file is there, so it is its interpreter that is not.
            Some(libc::ENOENT) => StartError::NotExecutable {
                program: program.to_owned(),
                reason: "its interpreter does not exist".to_owned(),
            },
            Some(libc::EACCES | libc::ENOEXEC | libc::EPERM | libc::ETXTBSY | libc::ELOOP) => {
                StartError::NotExecutable {
                    program: program.to_owned(),
                    reason: error.to_string(),
                }
            }
            _ => StartError::Other {
                program: program.to_owned(),
                reason: error,
            },
        }
    }
}

/// A program, ready to be started.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// The file.
    pub(super) path: PathBuf,
    /// Its arguments, the zeroth included.
    pub(super) argv: Vec<OsString>,
    /// Its whole environment.
    pub(super) env: Vec<(String, String)>,
    /// Where it runs.
    pub(super) directory: PathBuf,
}

impl Program {
    /// Finds what a request asks for.
    pub(super) fn find(request: &ExecRequest) -> Result<Program, StartError> {
        let shell = || login_shell(&fs::read_to_string("/etc/passwd").unwrap_or_default());
        let env = environment(&request.env, request.tty.is_some(), &shell());
        let directory = match &request.cwd {
            Some(directory) => usable_directory(directory)?,
            // root's home is on the data disk; without it there is still a root.
            None => usable_directory(HOME).unwrap_or_else(|_| PathBuf::from("/")),
        };
        if request.argv.is_empty() {
            let path = PathBuf::from(shell());
            // What login shells know themselves by.
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let argv = vec![format!("-{name}").into()];
            return Ok(Program {
                path,
                argv,
                env,
                directory,
            });
        }
        let search = env
            .iter()
            .find(|(key, _)| key == "PATH")
            .map_or("", |(_, value)| value);
        let path = look_up(&request.argv[0], search, &directory)?;
        Ok(Program {
            path,
            argv: request.argv.iter().map(OsString::from).collect(),
            env,
            directory,
        })
    }
}

fn usable_directory(directory: &str) -> Result<PathBuf, StartError> {
    let error = |reason| StartError::Directory {
        directory: directory.to_owned(),
        reason,
    };
    let found = fs::metadata(directory).map_err(error)?;
    if !found.is_dir() {
        return Err(error(io::ErrorKind::NotADirectory.into()));
    }
    Ok(PathBuf::from(directory))
}

/// The environment: ours, with what the request adds on top. The last of several settings of one name counts.
fn environment(added: &[(String, String)], terminal: bool, shell: &str) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = [
        ("PATH", tool::PATH),
        ("HOME", HOME),
        ("USER", "root"),
        ("LOGNAME", "root"),
        ("SHELL", shell),
        ("LANG", "C.UTF-8"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    if terminal {
        env.push(("TERM".to_owned(), "xterm-256color".to_owned()));
    }
    for (key, value) in added {
        env.retain(|(existing, _)| existing != key);
        env.push((key.clone(), value.clone()));
    }
    env
}

/// root's shell in the text of `/etc/passwd`.
fn login_shell(passwd: &str) -> String {
    let mut fields = passwd.lines().map(|line| line.split(':'));
    fields
        .find_map(|mut fields| (fields.next() == Some("root")).then(|| fields.nth(5)).flatten())
        .filter(|shell| shell.starts_with('/'))
        .unwrap_or(SHELL)
        .to_owned()
}

/// Finds a program: in the directories of `search` when its name has no slash. A file there that cannot be executed is
/// passed over, and is the error when there is no other.
fn look_up(name: &str, search: &str, directory: &Path) -> Result<PathBuf, StartError> {
    if name.contains('/') {
        let path = directory.join(name);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(e) => Err(e.into_error(name)),
        };
    }
    let mut result = Err(StartError::NotFound(name.to_owned()));
    if name.is_empty() {
        return result;
    }
    for entry in search.split(':').filter(|entry| !entry.is_empty()) {
        let path = directory.join(entry).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(NotThis::Missing) => {}
            Err(e) => result = Err(e.into_error(name)),
        }
    }
    result
}

enum NotThis {
    Missing,
    Unusable(String),
}

impl NotThis {
    fn into_error(self, name: &str) -> StartError {
        match self {
            NotThis::Missing => StartError::NotFound(name.to_owned()),
            NotThis::Unusable(reason) => StartError::NotExecutable {
                program: name.to_owned(),
                reason,
            },
        }
    }
}

fn executable(path: &Path) -> Result<(), NotThis> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(NotThis::Unusable("it is a directory".into())),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => {
            Err(NotThis::Unusable("it has no permission to execute".into()))
        }
        Ok(_) => Ok(()),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(NotThis::Missing)
        }
        // A name with a zero byte in it: left to the start itself, which says so.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        Err(e) => Err(NotThis::Unusable(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_shell_is_roots() {
        let passwd = "daemon:x:1:1::/:/usr/sbin/nologin\nroot:x:0:0:root:/root:/bin/bash\n";
        assert_eq!(login_shell(passwd), "/bin/bash");
        assert_eq!(login_shell(""), "/bin/sh");
        assert_eq!(login_shell("root:x:0:0:root:/root:\n"), "/bin/sh");
    }

    #[test]
    fn an_empty_request_is_a_login_shell() {
        let request = ExecRequest {
            argv: vec![],
            env: vec![],
            cwd: None,
            tty: None,
        };
        let program = Program::find(&request).unwrap();
        assert!(program.argv[0].to_str().unwrap().starts_with('-'));
        assert_eq!(program.argv.len(), 1);
    }

    #[test]
    fn the_last_setting_of_a_name_counts() {
        let pair = |value: &str| ("PATH".to_owned(), value.to_owned());
        let env = environment(&[pair("/a"), pair("/b")], false, SHELL);
        let paths: Vec<_> = env.iter().filter(|(key, _)| key == "PATH").collect();
        assert_eq!(paths, [&pair("/b")]);
    }

    #[test]
    fn a_file_that_cannot_be_executed_is_passed_over_for_one_that_can() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
        for (place, mode) in [(&first, 0o644), (&second, 0o755)] {
            fs::create_dir(place).unwrap();
            fs::write(place.join("tool"), "").unwrap();
            fs::set_permissions(place.join("tool"), fs::Permissions::from_mode(mode)).unwrap();
        }
        let found = look_up("tool", "first:second", directory.path()).unwrap();
        assert_eq!(found, second.join("tool"));
        let refused = look_up("tool", "first", directory.path()).unwrap_err();
        assert_eq!(refused.kind(), ExecErrorKind::NotExecutable);
        let missing = look_up("", "first", directory.path()).unwrap_err();
        assert_eq!(missing.kind(), ExecErrorKind::NotFound);
    }
}
