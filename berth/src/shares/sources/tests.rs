//! A host with links, shares and things that are in none.

use std::os::unix::fs::symlink;

use super::*;

/// A host directory with a home that is a link, a share of it, and things around.
struct Host {
    dir: tempfile::TempDir,
    sources: Sources,
}

impl Host {
    fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        for name in ["real/me/src", "real/me/.ssh", "data/deep", "disk/a b"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        symlink(base.join("real"), base.join("home")).unwrap();
        symlink(base.join("data"), base.join("real/me/out")).unwrap();
        symlink(base.join("home/me/src"), base.join("data/in")).unwrap();
        symlink(base.join("real/me/none"), base.join("real/me/dangling")).unwrap();
        fs::write(base.join("data/file"), "").unwrap();
        let table = PathTable::new([
            ("C:".to_owned(), base.join("home")),
            ("/Users".to_owned(), base.join("home")),
        ]);
        let sources = Sources::new(table.unwrap(), base.join("run/docker.sock"), "berth share".into());
        let share = |path: &str, target: &str, exclude: &[PathBuf]| Mounted {
            share: Share::new(&base.join(path), Some(Path::new(target)), false, exclude).unwrap(),
            real: base.join(path).canonicalize().unwrap(),
            hidden: exclude.to_vec(),
        };
        sources.set(vec![
            share("home/me", "/home/me", &[".ssh".into()]),
            share("disk", "/mnt/host/disk", &[]),
        ]);
        Host { dir, sources }
    }

    fn path(&self, name: &str) -> String {
        let base = self.dir.path().canonicalize().unwrap();
        base.join(name).to_str().unwrap().to_owned()
    }

    fn find(&self, source: &str) -> Result<String, String> {
        let found = self.sources.find(source).map_err(|error| error.to_string())?;
        Ok(found.unwrap_or_else(|| source.to_owned()))
    }

    fn at(&self, name: &str) -> Result<String, String> {
        self.find(&self.path(name))
    }
}

#[test]
fn a_source_in_a_share_is_found_under_its_target_by_any_of_its_names() {
    let host = Host::new();
    for (name, found) in [
        ("home/me", "/home/me"),
        ("home/me/", "/home/me"),
        ("real/me/src", "/home/me/src"),
        ("home/me/src/../src/.", "/home/me/src"),
        ("data/in", "/home/me/src"),
        ("disk/a b", "/mnt/host/disk/a b"),
    ] {
        assert_eq!(host.at(name), Ok(found.into()), "{name}");
    }
    for (source, found) in [
        (r"C:\me\src", "/home/me/src"),
        ("/c/me/src/new", "/home/me/src/new"),
        ("/Users/me", "/home/me"),
    ] {
        assert_eq!(host.find(source), Ok(found.into()), "{source}");
    }
}

#[test]
fn a_path_that_only_the_guest_has_is_taken_for_the_guests() {
    let host = Host::new();
    assert_eq!(host.find("/mnt/host/disk/a b"), Ok("/mnt/host/disk/a b".into()));
    assert!(host.find("/mnt/host/other").is_err());
}

#[test]
fn what_is_missing_is_missing_where_it_was_meant() {
    let host = Host::new();
    assert_eq!(
        host.at("home/me/src/new/deep"),
        Ok("/home/me/src/new/deep".into())
    );
    // dockerd is to find the link itself, which is in its way.
    assert_eq!(host.at("home/me/dangling"), Ok("/home/me/dangling".into()));
    assert_eq!(host.at("home/me/dangling/x"), Ok("/home/me/dangling/x".into()));
}

#[test]
fn a_source_outside_is_refused_with_the_command_that_shares_it() {
    let host = Host::new();
    let data = host.path("data");
    for (name, dir) in [
        ("data", "data"),
        ("data/deep", "data/deep"),
        ("data/file", "data"),
        ("data/new/deep", "data"),
    ] {
        let error = host.at(name).unwrap_err();
        assert!(error.starts_with(&host.path(name)), "{error}");
        assert!(
            error.ends_with(&format!("`berth share add {}`", host.path(dir))),
            "{error}"
        );
    }
    let error = host.at("home/me/out").unwrap_err();
    assert!(
        error.contains(&format!("home/me/out (that is {data}) is on the host")),
        "{error}"
    );
    // A share's name at the beginning of another's is not the share.
    fs::create_dir(host.path("real/mean")).unwrap();
    assert!(host.at("real/mean").is_err());
    let error = host.find("/usr/share").unwrap_err();
    assert!(
        error.ends_with("`berth share add /usr/share --target /mnt/host/usr/share`"),
        "{error}"
    );
    let error = host.find("/tmp").unwrap_err();
    assert!(
        error.contains("berth share add /tmp --target /mnt/host/tmp"),
        "{error}"
    );
    let error = host.find("/no-such-directory/x").unwrap_err();
    assert!(error.contains("cannot be shared"), "{error}");
}

#[test]
fn an_excluded_source_and_what_is_in_it_is_refused() {
    let host = Host::new();
    for name in ["home/me/.ssh", "real/me/.ssh/id"] {
        let error = host.at(name).unwrap_err();
        assert!(error.contains("is excluded from the share"), "{error}");
    }
}

#[test]
fn the_guests_own_paths_pass_and_the_docker_socket_is_the_guests() {
    let host = Host::new();
    for path in [
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/var/lib/docker/containers",
        "/dev/fuse",
        "/proc",
        "/sys/fs/cgroup",
        "/lib/modules",
        "/",
        "/var/run",
    ] {
        assert_eq!(host.find(path), Ok(path.into()), "{path}");
    }
    assert_eq!(host.at("run/docker.sock"), Ok("/var/run/docker.sock".into()));
    for path in ["/run/user/1000/bus", "/var/lib/dockerx", "/device"] {
        assert!(host.find(path).is_err(), "{path}");
    }
}

#[test]
fn the_hosts_time_zone_is_the_guests_copy_of_it() {
    let host = Host::new();
    for name in ["localtime", "timezone"] {
        let path = format!("/etc/{name}");
        let copy = format!("/run/berth/host/{name}");
        // A minimal host may have neither.
        let there = time_zone::files(Path::new("/etc")).contains_key(name);
        assert_eq!(host.find(&path).ok(), there.then_some(copy));
    }
    assert!(host.find("/etc/passwd").is_err());
}

#[test]
fn what_is_no_path_of_the_host_is_dockerds() {
    let host = Host::new();
    for source in ["volume", "", "./x", "~/x"] {
        assert_eq!(host.sources.find(source), Ok(None), "{source}");
    }
    let error = host.find(r"D:\src").unwrap_err();
    assert!(
        error.starts_with(r"D:\src is a path of Windows") && error.contains("`paths`"),
        "{error}"
    );
}

#[test]
fn a_path_with_a_space_is_quoted_in_the_fix() {
    assert_eq!(quoted(Path::new("/a b")), "'/a b'");
    assert_eq!(quoted(Path::new("/it's")), r"'/it'\''s'");
    assert_eq!(quoted(Path::new("/a-b/c.d")), "/a-b/c.d");
}
