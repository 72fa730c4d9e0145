//! What the menu says of a machine.

use super::*;
use crate::daemon::follow::Told;
use crate::daemon::types::{Event, Profiles, Status};
use crate::machines::{FileId, Files};
use crate::model::{Source, Update};

const MIB: u64 = 1 << 20;

fn world_with(events: &str, status: Option<&str>) -> World {
    let mut world = World::new("default".into());
    let socket = FileId::of(std::path::Path::new("/")).unwrap();
    let files = Files {
        record: None,
        socket: Some(socket),
    };
    let now = Instant::now();
    let followed = |told| Update::Followed {
        machine: "default".into(),
        socket,
        told,
    };
    let machines = [
        ("default".to_owned(), files),
        (
            "work".to_owned(),
            Files {
                record: Some(socket),
                socket: None,
            },
        ),
    ];
    world.apply(Update::Machines(machines.into()), now);
    world.apply(followed(Told::Began), now);
    for line in events.lines() {
        let event: Event = serde_json::from_str(line).unwrap();
        world.apply(followed(Told::Event(event)), now);
    }
    if let Some(status) = status {
        let status: Status = serde_json::from_str(status).unwrap();
        world.apply(
            Update::Facts {
                machine: "default".into(),
                source: Source::Daemon,
                status: Ok(Box::new(status)),
            },
            now,
        );
    }
    world
}

/// The menu as text: what can be done in brackets, what is chosen with a star.
fn written(entries: &[Entry]) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in entries {
        match entry {
            Entry::Text(None) | Entry::Menu { visible: false, .. } => {}
            Entry::Text(Some(text)) => lines.push(text.clone()),
            Entry::Item { label, action } => lines.push(match action {
                Some(_) => format!("[{label}]"),
                None => format!("({label})"),
            }),
            Entry::Menu { label, entries, .. } => {
                lines.push(format!("{label}:"));
                lines.extend(written(entries).into_iter().map(|line| format!("  {line}")));
            }
            Entry::Choice { selected, options } => {
                for (at, option) in options.iter().enumerate() {
                    let mark = if *selected == Some(at) { "*" } else { "-" };
                    lines.push(format!("{mark} {}", option.label));
                }
            }
            Entry::Separator => lines.push("--".into()),
        }
    }
    lines
}

#[test]
fn a_running_machine_is_told_as_the_command_line_tells_it() {
    let events = r#"{"event":"state","state":"running","at_ms":9}
{"event":"containers","containers":[{"id":"abc","name":"web_1","image":"nginx","state":"running","host_network":false,
"ports":[{"transport":"tcp","address":"0.0.0.0","port":8080,"container_port":80},{"transport":"udp","address":"::","port":53,"container_port":53}]}]}"#
        .replace(",\n", ",");
    let status = format!(
        r#"{{"state":"running","settings":{{"profile":"small","cpus":1,"max_cpus":2,"memory":{0},"max_memory":{1}}},
        "engine":{{"engine":"qemu","accelerator":"tcg"}},"uptime_seconds":65,"memory":{{"given":{0},"used":{2},"resident":{3}}},
        "disk":{{"size":{1},"allocated":{2},"used":{3}}},"docker":{{"version":"26.1.5"}},"guest":{{"load":[0.5,1,2]}},
        "warnings":["something is not as it should be"]}}"#,
        512 * MIB,
        1024 * MIB,
        100 * MIB,
        200 * MIB
    );
    let mut world = world_with(&events, Some(&status));
    let profiles: Profiles = serde_json::from_str(
        r#"{"current":"small","profiles":[{"name":"small","cpus":1,"memory":536870912},{"name":"odd","network":false}]}"#,
    )
    .unwrap();
    let machine = "default".into();
    world.apply(Update::Profiles { machine, profiles }, Instant::now());

    assert_eq!(
        written(&menu(&world, Instant::now())),
        [
            "Machine default: running",
            "Engine: qemu, tcg",
            "Docker: 26.1.5",
            "Uptime: 1 min 5 s",
            "1 warning:",
            "  something is not as it should be",
            "--",
            "(Start)",
            "[Stop]",
            "[Restart]",
            "--",
            "Machines:",
            "  * default: running",
            "  - work: stopped",
            "Profile: small:",
            "  - none",
            "  * small: 1 CPU, 512 MiB",
            "  - odd",
            "Containers: 1:",
            "  web_1:",
            "    nginx",
            "    [Open 8080 → 80/tcp]",
            "    (53 → 53/udp)",
            "    --",
            "    [Stop]",
            "    [Logs]",
            "--",
            "CPUs: 1 of at most 2, load 0.50",
            "Memory: 100 MiB used of 512 MiB (at most 1 GiB); 200 MiB of the host's",
            "Disk: 200 MiB used of 1 GiB; 100 MiB of the host's",
            "--",
            "[Copy the path of the Docker socket]",
            "[Doctor]",
            "[Quit]",
        ]
    );
}

#[test]
fn without_a_machine_one_can_be_made() {
    let world = World::new("work".into());
    let lines = written(&menu(&world, Instant::now()));
    assert_eq!(
        lines[..4],
        ["Machine work: not made yet", "--", "[Start]", "(Stop)"]
    );
    assert!(lines.contains(&"  * work: not made yet".to_owned()), "{lines:?}");
}

#[test]
fn a_failure_says_why() {
    let events = "{\"event\":\"state\",\"state\":\"failed\",\"reason\":\"there is no kernel\",\"at_ms\":9}";
    let lines = written(&menu(&world_with(events, None), Instant::now()));
    assert_eq!(
        lines[..3],
        [
            "Machine default: failed",
            "Why it failed:",
            "  there is no kernel"
        ]
    );
}

#[test]
fn the_top_level_is_the_same_in_every_state() {
    let number = |events: &str| menu(&world_with(events, None), Instant::now()).len();
    let starting = number("{\"event\":\"phase\",\"phase\":\"kernel\"}");
    assert_eq!(starting, number("{\"event\":\"state\",\"state\":\"running\"}"));
    assert_eq!(starting, number("{\"event\":\"state\",\"state\":\"failed\"}"));
    assert_eq!(
        starting,
        menu(&World::new("default".into()), Instant::now()).len()
    );
}

#[test]
fn addresses_are_what_a_browser_takes() {
    assert_eq!(url("0.0.0.0", 8080, 80), "http://localhost:8080/");
    assert_eq!(url("::", 9443, 8443), "https://localhost:9443/");
    assert_eq!(url("192.168.1.2", 80, 80), "http://192.168.1.2:80/");
    assert_eq!(url("fd00::1", 80, 80), "http://[fd00::1]:80/");
    let port = Port {
        transport: "tcp".into(),
        host: "[::]:3000".into(),
        ..Port::default()
    };
    let Entry::Item { action, .. } = describe_host_port(&port) else {
        panic!("an item");
    };
    assert_eq!(action, Some(Action::Open("http://localhost:3000/".into())));
}
