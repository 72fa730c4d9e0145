//! The menu: what it says and what its items do, computed from what is known.
//!
//! The lines at the top level are always the same ones, some of them invisible: panels take a menu whose structure changes
//! for a new one and may close it, or take a click for one on what stood there before.

use std::time::Instant;

use crate::daemon::types::{Container, ContainerPort, Port, Profile, State};
use crate::model::{Doing, Machine, World};
use crate::words;

/// How many characters a line of text may have.
const WIDTH: usize = 64;

/// What an item does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the machine that is shown.
    Start(String),
    /// Stop it.
    Stop(String),
    /// Stop and start it.
    Restart(String),
    /// Show another one.
    Show(String),
    /// Switch a machine to a profile.
    UseProfile {
        /// The machine.
        machine: String,
        /// The profile, or `none`.
        profile: String,
    },
    /// Show an address in the browser.
    Open(String),
    /// Stop a container.
    StopContainer {
        /// Its machine.
        machine: String,
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
    /// Show what a container prints.
    ContainerLogs {
        /// Its machine.
        machine: String,
        /// Its id.
        id: String,
    },
    /// Put the path of a machine's Docker socket into the clipboard.
    CopySocket(String),
    /// Check the host.
    Doctor(String),
    /// End the icon.
    Quit,
}

/// A line of the menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Something to read; not there when there is nothing to say.
    Text(Option<String>),
    /// Something to do.
    Item {
        /// What it says.
        label: String,
        /// What it does; nothing when that cannot be done now.
        action: Option<Action>,
    },
    /// A menu of its own.
    Menu {
        /// What it says.
        label: String,
        /// Whether there is reason to show it.
        visible: bool,
        /// What is in it.
        entries: Vec<Entry>,
    },
    /// Items of which one holds.
    Choice {
        /// Which; none when none does.
        selected: Option<usize>,
        /// All.
        options: Vec<Choice>,
    },
    /// A line across.
    Separator,
}

/// One of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// What it says.
    pub(crate) label: String,
    /// What choosing it does; nothing when that cannot be done now.
    pub(crate) action: Option<Action>,
}

/// The menu now.
pub(crate) fn menu(world: &World, now: Instant) -> Vec<Entry> {
    let none = Machine::default();
    let name = world.shown();
    let known = world.machine(name);
    let machine = known.unwrap_or(&none);
    let mut entries = head(name, known, now);
    entries.push(Entry::Separator);
    entries.extend(life(name, machine));
    entries.push(Entry::Separator);
    entries.push(machines(world));
    entries.push(profiles(name, machine));
    entries.push(containers(name, machine));
    entries.push(Entry::Separator);
    entries.extend(in_use(machine));
    entries.push(Entry::Separator);
    entries.push(Entry::Item {
        label: "Copy the path of the Docker socket".into(),
        action: Some(Action::CopySocket(name.to_owned())),
    });
    entries.push(Entry::Item {
        label: "Doctor".into(),
        action: Some(Action::Doctor(name.to_owned())),
    });
    entries.push(Entry::Item {
        label: "Quit".into(),
        action: Some(Action::Quit),
    });
    entries
}

/// A line about the machine, as the icon's tool tip has it.
pub(crate) fn headline(name: &str, machine: Option<&Machine>) -> String {
    let Some(machine) = machine else {
        return format!("Machine {name}: not made yet");
    };
    match machine.doing() {
        Some(Doing::Profile(profile)) => {
            format!("Machine {name}: {}, switching to {profile}", machine.state_text())
        }
        _ => format!("Machine {name}: {}", machine.state_text()),
    }
}

fn head(name: &str, machine: Option<&Machine>, now: Instant) -> Vec<Entry> {
    let facts = machine.and_then(Machine::facts);
    let live = machine.is_some_and(Machine::is_live);
    let engine = facts.filter(|_| live).and_then(|facts| facts.engine.as_ref());
    let engine = engine.map(|engine| {
        if engine.accelerator.is_empty() || engine.accelerator == engine.engine {
            format!("Engine: {}", engine.engine)
        } else {
            format!("Engine: {}, {}", engine.engine, engine.accelerator)
        }
    });
    let docker = facts
        .filter(|_| live)
        .and_then(|facts| facts.docker.version.as_ref())
        .map(|version| format!("Docker: {version}"));
    let uptime = machine.and_then(|machine| machine.uptime(now));
    let uptime = uptime.map(|uptime| format!("Uptime: {}", words::duration(uptime.as_secs())));
    let failure = machine.and_then(Machine::failure);
    let warnings = machine.map(Machine::warnings).unwrap_or_default();
    vec![
        Entry::Text(Some(headline(name, machine))),
        Entry::Text(engine),
        Entry::Text(docker),
        Entry::Text(uptime),
        Entry::Menu {
            label: "Why it failed".into(),
            visible: failure.is_some(),
            entries: text(failure.unwrap_or_default()),
        },
        Entry::Menu {
            label: match warnings.len() {
                1 => "1 warning".into(),
                number => format!("{number} warnings"),
            },
            visible: !warnings.is_empty(),
            entries: separated(warnings.into_iter().map(text)),
        },
    ]
}

fn text(text: &str) -> Vec<Entry> {
    let lines = words::wrapped(text, WIDTH).into_iter();
    lines.map(|line| Entry::Text(Some(line))).collect()
}

fn separated(parts: impl Iterator<Item = Vec<Entry>>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for part in parts {
        if !entries.is_empty() {
            entries.push(Entry::Separator);
        }
        entries.extend(part);
    }
    entries
}

fn life(name: &str, machine: &Machine) -> Vec<Entry> {
    let busy = matches!(machine.doing(), Some(Doing::Start | Doing::Stop | Doing::Restart));
    let item = |label: &str, possible: bool, action: fn(String) -> Action| Entry::Item {
        label: label.into(),
        action: possible.then(|| action(name.to_owned())),
    };
    let live = machine.is_live();
    // A start resumes a paused machine.
    let startable = !busy && (!live || *machine.state() == State::Paused);
    vec![
        item("Start", startable, Action::Start),
        // A start that takes too long can be stopped.
        item(
            "Stop",
            live && *machine.state() != State::Stopping && machine.doing() != Some(&Doing::Stop),
            Action::Stop,
        ),
        item("Restart", live && !busy, Action::Restart),
    ]
}

fn machines(world: &World) -> Entry {
    let mut names: Vec<_> = world.machines().map(|(name, _)| name).collect();
    if !names.contains(&world.shown()) {
        names.push(world.shown());
    }
    let options = names.iter().map(|name| Choice {
        label: match world.machine(name) {
            Some(machine) => format!("{name}: {}", machine.state_text()),
            None => format!("{name}: not made yet"),
        },
        action: Some(Action::Show((*name).to_owned())),
    });
    Entry::Menu {
        label: "Machines".into(),
        visible: true,
        entries: vec![Entry::Choice {
            selected: names.iter().position(|name| *name == world.shown()),
            options: options.collect(),
        }],
    }
}

fn profiles(name: &str, machine: &Machine) -> Entry {
    let profiles = machine.profiles();
    // Of a machine that is stopped it is the next start that has it.
    let possible = machine.doing().is_none() && (machine.is_running() || !machine.is_live());
    let choice = |label: String, profile: &str| Choice {
        label,
        action: possible.then(|| Action::UseProfile {
            machine: name.to_owned(),
            profile: profile.to_owned(),
        }),
    };
    let all = profiles.map(|profiles| profiles.profiles.as_slice());
    let all = all.unwrap_or_default();
    let mut options = vec![choice("none".into(), "none")];
    options.extend(
        all.iter()
            .map(|profile| choice(describe_profile(profile), &profile.name)),
    );
    let current = profiles.and_then(|profiles| profiles.current.as_ref());
    let selected = match current {
        None => Some(0),
        Some(current) => all
            .iter()
            .position(|profile| profile.name == *current)
            .map(|at| at + 1),
    };
    Entry::Menu {
        label: match current {
            Some(current) => format!("Profile: {current}"),
            None => "Profile: none".into(),
        },
        visible: profiles.is_some(),
        entries: vec![Entry::Choice { selected, options }],
    }
}

fn describe_profile(profile: &Profile) -> String {
    let cpus = profile.cpus.map(words::cpus);
    let memory = profile.memory.map(words::size);
    let parts: Vec<_> = cpus.into_iter().chain(memory).collect();
    if parts.is_empty() {
        profile.name.clone()
    } else {
        format!("{}: {}", profile.name, parts.join(", "))
    }
}

fn containers(machine_name: &str, machine: &Machine) -> Entry {
    let containers = machine.containers();
    let mut entries: Vec<_> = containers
        .iter()
        .map(|container| describe_container(machine_name, container))
        .collect();
    // Which of the containers with the host's network listens there is not known.
    let of_host: Vec<_> = machine
        .ports()
        .iter()
        .filter(|port| port.by == "host_network" && port.listening)
        .map(describe_host_port)
        .collect();
    if !of_host.is_empty() {
        entries.push(Entry::Separator);
        entries.extend(of_host);
    }
    if entries.is_empty() {
        entries.push(Entry::Text(Some("no container is running".into())));
    }
    Entry::Menu {
        label: format!("Containers: {}", containers.len()),
        visible: machine.is_live(),
        entries,
    }
}

fn describe_container(machine: &str, container: &Container) -> Entry {
    let mut entries = vec![Entry::Text(Some(container.image.clone()))];
    entries.extend(container.ports.iter().map(describe_port));
    if container.host_network {
        entries.push(Entry::Text(Some("has the host's network".into())));
    }
    entries.push(Entry::Separator);
    entries.push(Entry::Item {
        label: "Stop".into(),
        action: Some(Action::StopContainer {
            machine: machine.to_owned(),
            id: container.id.clone(),
            name: container.name.clone(),
        }),
    });
    entries.push(Entry::Item {
        label: "Logs".into(),
        action: Some(Action::ContainerLogs {
            machine: machine.to_owned(),
            id: container.id.clone(),
        }),
    });
    Entry::Menu {
        label: match container.state.as_str() {
            "" | "running" => container.name.clone(),
            state => format!("{} ({state})", container.name),
        },
        visible: true,
        entries,
    }
}

/// `8080 → 80/tcp`, which opens in the browser when it can.
fn describe_port(port: &ContainerPort) -> Entry {
    let label = format!("{} → {}/{}", port.port, port.container_port, port.transport);
    if port.transport != "tcp" {
        return Entry::Item { label, action: None };
    }
    let address = url(&port.address, port.port, port.container_port);
    Entry::Item {
        label: format!("Open {label}"),
        action: Some(Action::Open(address)),
    }
}

fn describe_host_port(port: &Port) -> Entry {
    let parsed = port.host.rsplit_once(':').and_then(|(address, number)| {
        let address = address.trim_start_matches('[').trim_end_matches(']');
        Some((address, number.parse::<u16>().ok()?))
    });
    match parsed {
        Some((address, number)) if port.transport == "tcp" => Entry::Item {
            label: format!("Open {number}/tcp (host network)"),
            action: Some(Action::Open(url(address, number, number))),
        },
        _ => Entry::Item {
            label: format!("{}/{} (host network)", port.host, port.transport),
            action: None,
        },
    }
}

/// Where a browser finds a port. What listens everywhere is found on `localhost`.
fn url(address: &str, port: u16, container_port: u16) -> String {
    let scheme = match container_port {
        443 | 8443 => "https",
        _ => "http",
    };
    match address {
        "" | "0.0.0.0" | "::" | "127.0.0.1" | "::1" => format!("{scheme}://localhost:{port}/"),
        _ if address.contains(':') => format!("{scheme}://[{address}]:{port}/"),
        _ => format!("{scheme}://{address}:{port}/"),
    }
}

/// CPUs, memory and disk, as `berth status` has them.
fn in_use(machine: &Machine) -> [Entry; 3] {
    let Some(facts) = machine.facts() else {
        return [const { Entry::Text(None) }; 3];
    };
    let settings = &facts.settings;
    let mut cpus = if settings.max_cpus > settings.cpus {
        format!("CPUs: {} of at most {}", settings.cpus, settings.max_cpus)
    } else {
        format!("CPUs: {}", settings.cpus)
    };
    let load = facts.guest.as_ref().and_then(|guest| guest.load.as_ref());
    if let Some(load) = load.and_then(|load| load.first()).filter(|_| machine.is_live()) {
        cpus.push_str(&format!(", load {load:.2}"));
    }
    let most = if settings.max_memory > settings.memory {
        format!(" (at most {})", words::size(settings.max_memory))
    } else {
        String::new()
    };
    let memory = &facts.memory;
    let given = words::size(memory.given);
    let memory = match (memory.used, memory.resident) {
        (Some(used), Some(resident)) => format!(
            "{} used of {given}{most}; {} of the host's",
            words::size(used),
            words::size(resident)
        ),
        (None, Some(resident)) => {
            format!("{given} given{most}; {} of the host's", words::size(resident))
        }
        _ => format!("{given}{most}"),
    };
    let disk = match &facts.disk {
        Some(disk) => {
            let used = disk.used.map(|used| format!("{} used of ", words::size(used)));
            format!(
                "{}{}; {} of the host's",
                used.unwrap_or_default(),
                words::size(disk.size),
                words::size(disk.allocated)
            )
        }
        None => format!("{} (not made yet)", words::size(settings.disk)),
    };
    [cpus, format!("Memory: {memory}"), format!("Disk: {disk}")].map(|text| Entry::Text(Some(text)))
}

#[cfg(test)]
mod tests;
