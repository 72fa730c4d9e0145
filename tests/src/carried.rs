//! Programs of the host, brought into a container: with the libraries they run with here, as the base image has none.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::options::on_path;
use crate::program::Program;

/// The program's name where it was brought to.
const PROGRAM: &str = "program";

/// Copies this program and its libraries into `dir`, and returns the words that run it where `dir` is at `target`.
///
/// # Errors
/// When something cannot be copied.
pub fn carry(dir: &Path, target: &str) -> Result<Vec<String>> {
    // Also right when the file has another program in it by now.
    copy(Path::new("/proc/self/exe"), &dir.join(PROGRAM))?;
    let own = fs::read_link("/proc/self/exe").context("cannot tell where this program is")?;
    let maps = fs::read_to_string("/proc/self/maps").context("cannot tell what this program has loaded")?;
    let libraries = code_in(&maps).into_iter().filter(|library| *library != own);
    with_libraries(libraries, dir, target, PROGRAM)
}

/// Copies a program that is on the path, with its libraries, and returns the words that run it as [`carry`] does.
///
/// # Errors
/// When there is none, or something cannot be copied.
pub fn carry_other(name: &str, dir: &Path, target: &str) -> Result<Vec<String>> {
    let program = on_path(name).with_context(|| format!("there is no {name}"))?;
    copy(&program, &dir.join(name))?;
    with_libraries(libraries_of(&program)?.into_iter(), dir, target, name)
}

/// The libraries that a program is linked with, and its loader; none when it is static.
///
/// # Errors
/// When that cannot be asked.
pub fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    // It says of a static program that it is none of its own, and fails.
    Ok(libraries_in(&Program::new("ldd").arg(program).run()?.text()))
}

fn with_libraries(
    libraries: impl Iterator<Item = PathBuf>,
    dir: &Path,
    target: &str,
    program: &str,
) -> Result<Vec<String>> {
    let mut loader = None;
    for library in libraries {
        let name = library.file_name().context("a library has a name")?;
        copy(&library, &dir.join(name))?;
        let name = name.to_string_lossy();
        if name.starts_with("ld-") {
            loader = Some(format!("{target}/{name}"));
        }
    }
    let program = format!("{target}/{program}");
    Ok(match loader {
        Some(loader) => vec![loader, "--library-path".to_owned(), target.to_owned(), program],
        // It is static.
        None => vec![program],
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// The files with code in a process's `maps`, each once.
fn code_in(maps: &str) -> Vec<PathBuf> {
    // "ADDRESSES PERMISSIONS OFFSET DEVICE INODE  PATH"
    let mut all: Vec<PathBuf> = maps
        .lines()
        .filter(|line| {
            line.split_whitespace()
                .nth(1)
                .is_some_and(|permissions| permissions.contains('x'))
        })
        .filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])))
        .collect();
    all.sort();
    all.dedup();
    all
}

/// The absolute paths in what ldd says.
fn libraries_in(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| {
            let path = line.split_once("=>").map_or(line, |(_, path)| path);
            path.split_whitespace().next()
        })
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_and_nothing_else() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                   \tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f19)\n\
                   \tlibgone.so => not found\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f1a)\n";
        assert_eq!(
            libraries_in(ldd),
            ["/lib/x86_64-linux-gnu/libz.so.1", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
        assert!(libraries_in("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn another_program_runs_where_it_was_brought_to() {
        let dir = tempfile::tempdir().unwrap();
        let command = carry_other("tar", dir.path(), dir.path().to_str().unwrap()).unwrap();
        let said = Program::new(&command[0])
            .args(&command[1..])
            .arg("--version")
            .ok()
            .unwrap();
        assert!(said.contains("tar"), "{said}");
        assert!(carry_other("no-such-program", dir.path(), "/").is_err());
    }

    #[test]
    fn code_is_found_and_nothing_else() {
        let maps = "55d0-55d1 r--p 00000000 08:01 11  /home/me/a program\n\
                    55d1-55d2 r-xp 00001000 08:01 11  /home/me/a program\n\
                    7f00-7f01 r-xp 00000000 08:01 12  /lib/libc.so.6\n\
                    7f01-7f02 r-xp 00001000 08:01 12  /lib/libc.so.6\n\
                    7f02-7f03 r--p 00000000 08:01 13  /lib/locale-archive\n\
                    7f03-7f04 rwxp 00000000 00:00 0\n\
                    7ffd-7ffe r-xp 00000000 00:00 0   [vdso]\n";
        assert_eq!(
            code_in(maps),
            ["/home/me/a program", "/lib/libc.so.6"].map(PathBuf::from)
        );
    }

    #[test]
    fn what_was_brought_along_runs() {
        let dir = tempfile::tempdir().unwrap();
        let command = carry(dir.path(), dir.path().to_str().unwrap()).unwrap();
        // Here this is the program of the unit tests, which can list them.
        let listed = Program::new(&command[0])
            .args(&command[1..])
            .arg("--list")
            .ok()
            .unwrap();
        assert!(listed.contains("what_was_brought_along_runs"), "{listed}");
    }
}
