//! The host's time zone, which many compose files give their containers: `-v /etc/localtime:/etc/localtime:ro`.
//!
//! `/etc` is not shared, and a container that got a directory there instead would not say why its clock is off. So the guest
//! gets copies of the two files at its start, and the two paths lead to them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use protocol::shares::HOST_FILES;

/// The files, as containers name them, and what the copies are called.
const FILES: [(&str, &str); 2] = [("/etc/localtime", "localtime"), ("/etc/timezone", "timezone")];
/// The most a file may have, in bytes. Those of the database have up to four thousand.
const LIMIT: u64 = 64 << 10;

/// The copies, from the files in `etc`. `timezone`, which not every distribution has, is made from where `localtime` leads.
pub fn files(etc: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for (_, name) in FILES {
        let mut content = Vec::new();
        let read =
            fs::File::open(etc.join(name)).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut content));
        if read.is_ok() && content.len() as u64 <= LIMIT {
            files.insert(name.to_owned(), content);
        }
    }
    if !files.contains_key("timezone")
        && let Ok(link) = fs::read_link(etc.join("localtime"))
        && let Some((_, zone)) = link.to_string_lossy().split_once("zoneinfo/")
    {
        files.insert("timezone".into(), format!("{zone}\n").into_bytes());
    }
    files
}

/// Where the guest has the copy of `path`, if it is one of those files and this host has it.
pub(super) fn in_guest(path: &Path) -> Option<String> {
    let (_, name) = FILES.iter().find(|(file, _)| path == Path::new(file))?;
    files(Path::new("/etc"))
        .contains_key(*name)
        .then(|| format!("{HOST_FILES}/{name}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_zones_name_is_found_with_and_without_a_file_for_it() {
        let etc = tempfile::tempdir().unwrap();
        assert!(files(etc.path()).is_empty());
        let zone = etc.path().join("zoneinfo/Europe/Lisbon");
        fs::create_dir_all(zone.parent().unwrap()).unwrap();
        fs::write(&zone, b"TZif2").unwrap();
        symlink(&zone, etc.path().join("localtime")).unwrap();
        let both = files(etc.path());
        assert_eq!(both["localtime"], b"TZif2");
        assert_eq!(both["timezone"], b"Europe/Lisbon\n");
        fs::write(etc.path().join("timezone"), "Etc/UTC\n").unwrap();
        assert_eq!(files(etc.path())["timezone"], b"Etc/UTC\n");
    }

    #[test]
    fn what_cannot_be_a_zone_is_not_sent() {
        let etc = tempfile::tempdir().unwrap();
        fs::write(etc.path().join("localtime"), vec![0; 100_000]).unwrap();
        fs::create_dir(etc.path().join("timezone")).unwrap();
        assert!(files(etc.path()).is_empty());
    }
}
