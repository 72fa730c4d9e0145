use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

struct Home {
    store: Store,
    spec: ContextSpec,
    dir: tempfile::TempDir,
}

fn home() -> Home {
    let dir = tempfile::tempdir().unwrap();
    Home {
        store: Store {
            dir: dir.path().join("docker"),
        },
        spec: ContextSpec {
            name: "berth".into(),
            description: "berth machine default".into(),
            socket: "/run/user/1000/berth/default/docker.sock".into(),
            record: dir.path().join("state/previous"),
        },
        dir,
    }
}

impl Home {
    fn write_config(&self, text: &str) {
        fs::create_dir_all(&self.store.dir).unwrap();
        fs::write(self.store.dir.join("config.json"), text).unwrap();
    }

    fn read_config(&self) -> String {
        fs::read_to_string(self.store.dir.join("config.json")).unwrap()
    }
}

#[test]
fn a_context_is_where_the_docker_client_looks_for_it() {
    let home = home();
    home.store.create(&home.spec).unwrap();
    // The SHA-256 of "berth".
    let id = "5c2f64c7f21efd5fb5e3d6a499abe5eacb248ae6f6f0085387c9a056d10ef5fd";
    assert!(
        home.store
            .dir
            .join("contexts/meta")
            .join(id)
            .join("meta.json")
            .is_file()
    );
    home.store.create(&home.spec).unwrap();
    home.store.remove(&home.spec).unwrap();
    assert_eq!(
        fs::read_dir(home.store.dir.join("contexts/meta"))
            .unwrap()
            .count(),
        0
    );
    home.store.remove(&home.spec).unwrap();
}

#[test]
fn everything_else_in_config_json_keeps_its_value_and_its_place() {
    let home = home();
    let text = "{\n\t\"z\": 1.5,\n\t\"auths\": {\n\t\t\"r\": {}\n\t},\n\t\"currentContext\": \"other\",\n\t\"a\": 18446744073709551615\n}";
    home.write_config(text);
    let other = ContextSpec {
        name: "other".into(),
        ..home.spec.clone()
    };
    home.store.create(&other).unwrap();
    home.store.create(&home.spec).unwrap();
    home.store.make_current(&home.spec).unwrap();
    assert_eq!(home.read_config(), text.replace("\"other\"", "\"berth\""));
    home.store.give_back(&home.spec).unwrap();
    assert_eq!(home.read_config(), text);
    assert!(!home.spec.record.exists());
}

#[test]
fn default_is_given_back_by_naming_none() {
    let home = home();
    home.write_config("{}");
    home.store.create(&home.spec).unwrap();
    home.store.make_current(&home.spec).unwrap();
    assert_eq!(home.store.current().unwrap(), "berth");
    home.store.give_back(&home.spec).unwrap();
    assert_eq!(home.read_config(), "{}");
}

#[test]
fn a_context_the_user_chose_meanwhile_stays() {
    let home = home();
    home.store.create(&home.spec).unwrap();
    home.store.make_current(&home.spec).unwrap();
    home.write_config("{\"currentContext\":\"mine\"}");
    home.store.give_back(&home.spec).unwrap();
    assert_eq!(home.store.current().unwrap(), "mine");
}

#[test]
fn a_daemon_that_was_killed_does_not_make_berth_its_own_predecessor() {
    let home = home();
    home.write_config("{\"currentContext\":\"mine\"}");
    let mine = ContextSpec {
        name: "mine".into(),
        ..home.spec.clone()
    };
    home.store.create(&mine).unwrap();
    home.store.create(&home.spec).unwrap();
    home.store.make_current(&home.spec).unwrap();
    home.store.make_current(&home.spec).unwrap();
    home.store.give_back(&home.spec).unwrap();
    assert_eq!(home.store.current().unwrap(), "mine");
}

#[test]
fn a_context_that_is_gone_is_not_given_back() {
    let home = home();
    home.write_config("{\"currentContext\":\"gone\"}");
    home.store.create(&home.spec).unwrap();
    home.store.make_current(&home.spec).unwrap();
    home.store.give_back(&home.spec).unwrap();
    assert_eq!(home.store.current().unwrap(), "default");
}

#[test]
fn a_corrupt_config_json_is_an_error_and_stays_as_it_is() {
    for text in ["{\"auths\": ", "[]", "\"x\""] {
        let home = home();
        home.write_config(text);
        home.store.create(&home.spec).unwrap();
        let error = home.store.make_current(&home.spec).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
        assert!(home.store.give_back(&home.spec).is_err());
        assert_eq!(home.read_config(), text);
    }
}

#[test]
fn a_context_of_the_same_name_that_is_the_users_is_left_alone() {
    let home = home();
    let dir = home.store.meta_dir("berth");
    fs::create_dir_all(&dir).unwrap();
    let meta = r#"{"Name":"berth","Metadata":{},"Endpoints":{"docker":{"Host":"ssh://x"}}}"#;
    fs::write(dir.join("meta.json"), meta).unwrap();
    assert!(matches!(
        home.store.create(&home.spec),
        Err(ContextError::NotOurs { .. })
    ));
    home.store.remove(&home.spec).unwrap();
    assert_eq!(fs::read_to_string(dir.join("meta.json")).unwrap(), meta);
}

#[test]
fn permissions_and_symbolic_links_survive() {
    let home = home();
    fs::create_dir_all(&home.store.dir).unwrap();
    let real = home.dir.path().join("real.json");
    fs::write(&real, "{}").unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(&real, home.store.dir.join("config.json")).unwrap();
    home.store.make_current(&home.spec).unwrap();
    assert!(
        fs::symlink_metadata(home.store.dir.join("config.json"))
            .unwrap()
            .is_symlink()
    );
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(fs::read_to_string(&real).unwrap().contains("berth"));
}

#[test]
fn plugins_are_offered_only_where_there_are_none_and_withdrawn_without_a_trace() {
    let home = home();
    home.write_config("{\n\t\"cliPluginsExtraDirs\": [\n\t\t\"/theirs\"\n\t]\n}");
    let before = home.read_config();
    let ours = home.dir.path().join("ours");
    let system = [home.dir.path().join("system")];
    assert!(
        !home.store.offer_plugins(&ours, &system).unwrap(),
        "we have none either"
    );
    assert_eq!(home.read_config(), before);
    fs::create_dir_all(&ours).unwrap();
    for plugin in plugins::PLUGINS {
        fs::write(ours.join(plugin), "").unwrap();
    }
    for _ in 0..2 {
        assert!(home.store.offer_plugins(&ours, &system).unwrap());
    }
    assert_eq!(home.read_config().matches("ours").count(), 1);
    home.store.withdraw_plugins(&ours).unwrap();
    assert_eq!(home.read_config(), before);

    fs::create_dir_all(&system[0]).unwrap();
    for plugin in plugins::PLUGINS {
        fs::write(system[0].join(plugin), "").unwrap();
    }
    assert!(home.store.offer_plugins(&ours, &system).unwrap());
    assert_eq!(home.read_config(), before);
}

/// The docker client itself, where there is one.
#[test]
fn the_docker_client_sees_the_context() {
    let Some(cli) = crate::docker::client::find_cli() else {
        eprintln!("skipped: there is no docker client here");
        return;
    };
    let home = home();
    home.store.create(&home.spec).unwrap();
    home.store.make_current(&home.spec).unwrap();
    let docker = |arguments: &[&str]| {
        let output = std::process::Command::new(&cli.path)
            .args(arguments)
            .env("DOCKER_CONFIG", &home.store.dir)
            .env_remove("DOCKER_HOST")
            .env_remove("DOCKER_CONTEXT")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let line = docker(&[
        "context",
        "ls",
        "--format",
        "{{.Name}} {{.Current}} {{.DockerEndpoint}} {{.Description}}",
    ]);
    assert!(
        line.contains("berth true unix:///run/user/1000/berth/default/docker.sock berth machine default"),
        "{line}"
    );
    let inspected: Value = serde_json::from_str(&docker(&["context", "inspect", "berth"])).unwrap();
    assert_eq!(inspected[0]["Metadata"]["CreatedBy"], "berth");
    // What the client writes, we read.
    docker(&["context", "use", "default"]);
    assert_eq!(home.store.current().unwrap(), "default");
}
