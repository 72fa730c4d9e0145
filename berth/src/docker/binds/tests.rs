//! The bodies that docker's clients send, with shares of a host made for the test.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::json::Edits;
use super::{container, volume};
use crate::shares::Share;
use crate::shares::foreign::PathTable;
use crate::shares::sources::{Mounted, SourceError, Sources};

/// A host with a home that is shared at the same path, a disk that is shared elsewhere, and a directory that is not.
struct Host {
    base: PathBuf,
    sources: Sources,
    _dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        for name in ["home/src", "disk/goods", "outside"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        let table = PathTable::new([(r"C:\Users\me".to_owned(), base.join("home"))]).unwrap();
        let sources = Sources::new(table, base.join("docker.sock"), "berth share -m x".into());
        let mounted = |name: &str, target: Option<&str>| Mounted {
            share: Share::new(&base.join(name), target.map(Path::new), false, &[]).unwrap(),
            real: base.join(name),
            hidden: Vec::new(),
        };
        sources.set(vec![mounted("home", None), mounted("disk", Some("/disk"))]);
        Host {
            base,
            sources,
            _dir: dir,
        }
    }

    fn path(&self, name: &str) -> String {
        self.base.join(name).to_str().unwrap().to_owned()
    }

    /// What dockerd gets of `body`; none when that is `body` itself.
    fn passes(
        &self,
        find: impl Fn(&[u8], &Sources) -> Result<Edits, SourceError>,
        body: &Json,
    ) -> Result<Option<Json>, String> {
        let body = body.to_string();
        let edits = find(body.as_bytes(), &self.sources).map_err(|error| error.to_string())?;
        Ok((!edits.is_empty()).then(|| serde_json::from_slice(&edits.apply(body.as_bytes())).unwrap()))
    }

    fn binds(&self, binds: &[&str]) -> Result<Vec<String>, String> {
        let body = json!({"Image": "a", "HostConfig": {"Binds": binds}});
        let changed = self.passes(container::find, &body)?.unwrap_or(body);
        Ok(serde_json::from_value(changed["HostConfig"]["Binds"].clone()).unwrap())
    }
}

#[test]
fn binds_are_mapped_and_their_options_kept() {
    let host = Host::new();
    for (bind, expected) in [
        (host.path("home/src") + ":/src", None),
        (host.path("home/new") + ":/src:ro", None),
        ("volume:/data".into(), None),
        ("/data".into(), None),
        ("/var/run/docker.sock:/var/run/docker.sock".into(), None),
        (
            host.path("docker.sock") + ":/s",
            Some("/var/run/docker.sock:/s".to_owned()),
        ),
        (
            host.path("disk/goods") + ":/g:ro,z,rslave",
            Some("/disk/goods:/g:ro,z,rslave".into()),
        ),
        (host.path("disk") + ":/g", Some("/disk:/g".into())),
        (
            r"C:\Users\me\src:/src:ro".into(),
            Some(host.path("home/src") + ":/src:ro"),
        ),
        ("c:/users/me:/src".into(), Some(host.path("home") + ":/src")),
        (
            "//c/Users/me/src:/src".into(),
            Some(host.path("home/src") + ":/src"),
        ),
    ] {
        let expected = expected.unwrap_or_else(|| bind.clone());
        assert_eq!(host.binds(&[&bind]), Ok(vec![expected]), "{bind}");
    }
    let several = [
        host.path("disk") + ":/a",
        "v:/b".into(),
        host.path("disk/goods") + ":/c",
    ];
    let several: Vec<&str> = several.iter().map(String::as_str).collect();
    assert_eq!(
        host.binds(&several).unwrap(),
        ["/disk:/a", "v:/b", "/disk/goods:/c"]
    );
}

#[test]
fn a_source_outside_is_refused_wherever_it_stands() {
    let host = Host::new();
    let outside = host.path("outside");
    let refused = |result: Result<Option<Json>, String>| {
        let error = result.unwrap_err();
        assert!(error.starts_with(&outside), "{error}");
        assert!(
            error.ends_with(&format!("`berth share -m x add {outside}`")),
            "{error}"
        );
    };
    let config = |config: Json| host.passes(container::find, &json!({"HostConfig": config}));
    refused(config(
        json!({"Binds": [host.path("home") + ":/h", format!("{outside}:/o")]}),
    ));
    refused(config(
        json!({"Mounts": [{"Type": "bind", "Source": outside, "Target": "/o"}]}),
    ));
    let driver = json!({"Name": "local", "Options": {"type": "none", "o": "ro,rbind", "device": outside}});
    refused(config(
        json!({"Mounts": [{"Type": "volume", "VolumeOptions": {"DriverConfig": driver}}]}),
    ));
    let volume = json!({"Name": "v", "Driver": "local", "DriverOpts": {"type": "none", "o": "bind", "device": outside}});
    refused(host.passes(volume::find, &volume));
    let error = host.binds(&[r"D:\x:/x"]).unwrap_err();
    assert!(error.starts_with(r"D:\x is a path of Windows"), "{error}");
}

#[test]
fn mounts_are_mapped_when_they_are_binds() {
    let host = Host::new();
    let body = |source: &str| {
        json!({"HostConfig": {"Mounts": [
            {"Type": "volume", "Source": "v", "Target": "/v"},
            {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1_u64 << 40}},
            {"Type": "bind", "Source": source, "Target": "/s", "ReadOnly": true, "BindOptions": {"CreateMountpoint": true}},
        ]}})
    };
    let changed = host.passes(container::find, &body(&host.path("disk/goods")));
    assert_eq!(changed, Ok(Some(body("/disk/goods"))));
    assert_eq!(
        host.passes(container::find, &body(&host.path("home/src"))),
        Ok(None)
    );
}

#[test]
fn volumes_of_the_local_driver_that_bind_are_mapped_and_others_left_alone() {
    let host = Host::new();
    let disk = host.path("disk");
    let volume = |driver: &str, options: Json| {
        host.passes(volume::find, &json!({"Driver": driver, "DriverOpts": options}))
    };
    for driver in ["local", ""] {
        assert_eq!(
            volume(driver, json!({"type": "none", "o": "bind,ro", "device": disk})),
            Ok(Some(
                json!({"Driver": driver, "DriverOpts": {"type": "none", "o": "bind,ro", "device": "/disk"}})
            ))
        );
    }
    let outside = host.path("outside");
    for (driver, options) in [
        (
            "local",
            json!({"type": "nfs", "o": "addr=10.0.0.1,rw", "device": ":/export"}),
        ),
        (
            "local",
            json!({"type": "tmpfs", "o": "size=100m", "device": "tmpfs"}),
        ),
        ("local", json!({"o": "bindings", "device": outside})),
        ("other", json!({"o": "bind", "device": outside})),
        ("local", json!(null)),
    ] {
        assert_eq!(volume(driver, options.clone()), Ok(None), "{driver} {options}");
    }
}

#[test]
fn members_are_found_in_any_case_and_each_time_they_stand() {
    let host = Host::new();
    let disk = host.path("disk");
    let body = format!(
        r#"{{"hostconfig":{{"BINDS":["{disk}:/a"],"binds":["{disk}:/b"]}},"HostConfig":{{"Binds":["{disk}:/c"]}}}}"#
    );
    let edits = container::find(body.as_bytes(), &host.sources).unwrap();
    assert_eq!(
        String::from_utf8(edits.apply(body.as_bytes())).unwrap(),
        r#"{"hostconfig":{"BINDS":["/disk:/a"],"binds":["/disk:/b"]},"HostConfig":{"Binds":["/disk:/c"]}}"#
    );
}

#[test]
fn what_is_not_of_the_form_is_left_to_dockerd() {
    let host = Host::new();
    for body in [
        json!(null),
        json!([]),
        json!({"HostConfig": null}),
        json!({"HostConfig": {"Binds": null, "Mounts": {}}}),
        json!({"HostConfig": {"Binds": [1, null, {"a": "/outside:/x"}], "Mounts": ["/outside"]}}),
        json!({"HostConfig": {"Binds": "/outside:/x", "Mounts": [{"Type": "bind", "Source": 7}]}}),
    ] {
        assert_eq!(host.passes(container::find, &body), Ok(None), "{body}");
        assert_eq!(host.passes(volume::find, &body), Ok(None), "{body}");
    }
}
