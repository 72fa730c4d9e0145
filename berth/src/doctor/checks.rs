//! The checks one by one.

use std::os::unix::net::UnixStream;

use serde_json::json;

use super::{Check, Report, shares};
use crate::api::client::Client;
use crate::config::{Config, EngineChoice};
use crate::docker::{client as docker_client, context as docker_context};
use crate::engine::choose::{self, QemuFinding};
use crate::engine::select::{self, Findings};
use crate::exit::chain;
use crate::host::Host;
use crate::machine::disk::{self, MIN_FREE};
use crate::machine::guest_files::{self, FileReport, GuestFiles, GuestFilesError};
use crate::machine::settings::{Chosen, Settings, SettingsError, under_profile};
use crate::machine::state::State;
use crate::name::MachineName;
use crate::net;
use crate::paths::{MachinePaths, Paths};
use crate::size::Size;

/// With less than this free, containers may soon have nowhere to write.
const LITTLE_FREE: Size = Size::from_gib(5);
/// How far the guest's clock may be off before builds begin to mind, in milliseconds.
const CLOCK_TOLERANCE_MS: i64 = 2000;

/// What is checked: this host, for this machine.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The machine's name.
    pub name: &'a MachineName,
    /// All paths.
    pub paths: &'a Paths,
    /// The machine's.
    pub machine: &'a MachinePaths,
    /// What was chosen for the machine.
    pub chosen: Chosen,
}

/// Runs all checks. Takes seconds: checksums are computed.
pub async fn run(subject: &Subject<'_>) -> Report {
    let (config_check, config) = config(subject);
    // With a configuration that cannot be read, the rest is checked with the defaults.
    let config = config.unwrap_or_default();
    // That there is no such profile has been said.
    let config = under_profile(&subject.chosen, &config, &Host::detect()).unwrap_or(config);
    let asked = subject.chosen.engine.or(config.engine()).unwrap_or_default();
    let findings = select::look(&config);
    let mut checks = vec![
        config_check,
        kvm(&findings),
        qemu(&findings),
        engine(asked, &findings),
    ];
    checks.push(passt(&config));
    checks.extend(guest(subject));
    checks.push(space(subject));
    checks.push(directories(subject));
    checks.push(shares::check(subject.name, &subject.chosen.shares, &config));
    checks.extend(machine(subject).await);
    checks.push(docker_cli());
    checks.push(context(subject, &config));
    Report { checks }
}

fn config(subject: &Subject<'_>) -> (Check, Option<Config>) {
    let path = subject.paths.config_file();
    let config = match Config::load(&path) {
        Ok(config) => config,
        Err(error) => {
            let fix = format!("correct that line of {}, or take it away", path.display());
            return (Check::failed("config", chain(&error.into()), fix), None);
        }
    };
    if let Err(error) = Settings::resolve(&subject.chosen, &config, &Host::detect()) {
        let fix = match error {
            SettingsError::Memory { .. } => "choose less memory",
            SettingsError::NoProfile { .. } => "choose a profile that is there with `berth profile use`",
            SettingsError::Shares(_) => {
                "take one of the two away, with `berth share remove` or in the configuration"
            }
        };
        let check = Check::failed("config", error.to_string(), fix);
        return (check, Some(config));
    }
    let found = if path.exists() {
        format!("{} is right", path.display())
    } else {
        format!(
            "defaults hold; `berth start` writes {} to change them",
            path.display()
        )
    };
    (Check::ok("config", found), Some(config))
}

fn kvm(findings: &Findings) -> Check {
    let found = findings.probe.to_string();
    let check = match &findings.kvm.fix {
        None => Check::ok("kvm", found),
        // Not fatal by itself: the check `engine` says whether there is another.
        Some(fix) => Check::warning("kvm", found, fix.as_str()),
    };
    check.with_figures(&findings.probe)
}

fn qemu(findings: &Findings) -> Check {
    match select::qemu_finding(&findings.qemu) {
        QemuFinding::Found(found) => Check::ok("qemu", found),
        QemuFinding::Unusable { what, .. } if findings.kvm.usable => {
            Check::ok("qemu", format!("{what}, and not needed: KVM works"))
        }
        QemuFinding::Unusable { what, fix } => Check::failed("qemu", what, fix),
    }
}

fn engine(asked: EngineChoice, findings: &Findings) -> Check {
    match choose::decide(asked, &findings.kvm, &select::qemu_finding(&findings.qemu)) {
        Ok(decision) => Check::ok(
            "engine",
            format!("{} ({asked}): {}", decision.engine, decision.reason),
        ),
        Err(error) => Check::failed("engine", error.to_string(), "see the checks kvm and qemu"),
    }
}

fn passt(config: &Config) -> Check {
    if !config.network() {
        return Check::skipped("passt", "the configuration switches the network off");
    }
    match net::find(config.passt()) {
        Ok(program) => Check::ok(
            "passt",
            format!("{} at {}", program.version, program.path.display()),
        ),
        Err(error) => Check::failed(
            "passt",
            chain(&error.into()),
            "install passt (Debian and Ubuntu: `sudo apt install passt`), or set network.enabled: false",
        ),
    }
}

fn guest(subject: &Subject<'_>) -> [Check; 2] {
    let check = |name, result: Result<FileReport, GuestFilesError>| match result {
        Ok(report) => {
            let vouched = if report.in_manifest {
                "its checksum is right"
            } else {
                "without a manifest that vouches for it"
            };
            Check::ok(
                name,
                format!(
                    "{} ({}), {vouched}",
                    report.path.display(),
                    Size::from_bytes(report.size)
                ),
            )
            .with_figures(
                json!({ "size": report.size, "sha256": report.sha256, "in_manifest": report.in_manifest }),
            )
        }
        Err(error) => Check::failed(name, chain(&error.into()), guest_files::FIX),
    };
    match GuestFiles::locate(&subject.paths.guest_dir) {
        Ok(files) => [
            check("kernel", files.verify_kernel()),
            check("image", files.verify_image()),
        ],
        Err(error) => {
            let error = chain(&error.into());
            ["kernel", "image"].map(|name| Check::failed(name, error.as_str(), guest_files::FIX))
        }
    }
}

fn space(subject: &Subject<'_>) -> Check {
    const NAME: &str = "disk";
    // The directory may not be there yet.
    let dir = subject.machine.data_dir.as_path();
    let dir = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(dir);
    let free = match disk::free_space(dir) {
        Ok(free) => free,
        Err(error) => {
            return Check::failed(
                NAME,
                format!("cannot tell how full the disk of {} is: {error}", dir.display()),
                "move berth's data with $XDG_DATA_HOME",
            );
        }
    };
    let found = format!("{free} free for {}", dir.display());
    let fix = "free some space on the host, for example with `docker system prune`, or move berth's data with $XDG_DATA_HOME";
    let check = if free < MIN_FREE {
        Check::failed(NAME, format!("{found}; a machine needs {MIN_FREE} to start"), fix)
    } else if free < LITTLE_FREE {
        Check::warning(NAME, found, fix)
    } else {
        Check::ok(NAME, found)
    };
    let usage = disk::usage(&subject.machine.data_disk()).ok();
    check.with_figures(json!({
        "free": free,
        "data_disk_size": usage.map(|(size, _)| size),
        "data_disk_allocated": usage.map(|(_, allocated)| allocated),
    }))
}

fn directories(subject: &Subject<'_>) -> Check {
    const NAME: &str = "directories";
    match subject.machine.make_runtime_dir() {
        Ok(()) => Check::ok(
            NAME,
            format!(
                "{} is private and takes sockets",
                subject.machine.runtime_dir.display()
            ),
        ),
        Err(error) => Check::failed(
            NAME,
            chain(&error.into()),
            "set $XDG_RUNTIME_DIR to a directory of yours with a short path",
        ),
    }
}

/// The checks of a running machine.
async fn machine(subject: &Subject<'_>) -> [Check; 3] {
    let names = ["daemon", "docker", "clock"];
    let status = match Client::new(&subject.machine.api_socket()).status().await {
        Ok(status) if status.state == State::Running => status,
        Ok(status) => {
            return names.map(|name| Check::skipped(name, format!("the machine is {}", status.state)));
        }
        Err(crate::api::client::ClientError::NoDaemon) => {
            return names
                .map(|name| Check::skipped(name, format!("the machine {} is not running", subject.name)));
        }
        Err(error) => {
            let error = chain(&error.into());
            return names.map(|name| {
                Check::failed(
                    name,
                    error.as_str(),
                    "end the daemon with `berth stop --force` and start again",
                )
            });
        }
    };
    let daemon = Check::ok(
        names[0],
        format!("answers on {}", subject.machine.api_socket().display()),
    );
    let socket = subject.machine.docker_socket();
    let docker = match docker_client::ping(&socket).await {
        Ok(()) => Check::ok(
            names[1],
            format!(
                "Docker {} answers on {}",
                status.docker.version.as_deref().unwrap_or("?"),
                socket.display()
            ),
        ),
        Err(error) => Check::failed(
            names[1],
            chain(&error.into()),
            "see `berth logs --source dockerd`; `berth restart` starts it afresh",
        ),
    };
    let offset = status.guest.and_then(|guest| guest.clock_offset_ms);
    [daemon, docker, clock(names[2], offset)]
}

fn clock(name: &'static str, offset_ms: Option<i64>) -> Check {
    let Some(offset_ms) = offset_ms else {
        return Check::failed(
            name,
            "the guest does not tell its time",
            "see the warnings of `berth status`; `berth restart` starts it afresh",
        );
    };
    let found = format!("the guest's clock is {offset_ms:+} ms from the host's");
    let check = if offset_ms.abs() <= CLOCK_TOLERANCE_MS {
        Check::ok(name, found)
    } else {
        Check::warning(
            name,
            found,
            "it is set within the hour, or at once by `berth restart`",
        )
    };
    check.with_figures(json!({ "offset_ms": offset_ms, "tolerance_ms": CLOCK_TOLERANCE_MS }))
}

fn docker_cli() -> Check {
    match docker_client::find_cli() {
        Some(cli) => Check::ok(
            "docker client",
            format!(
                "docker {} at {}",
                cli.version.as_deref().unwrap_or("?"),
                cli.path.display()
            ),
        ),
        None => Check::failed(
            "docker client",
            "there is no docker client on this host",
            "install one (Debian: `sudo apt install docker-cli`), or get berth's own with `cargo xtask client`",
        ),
    }
}

fn context(subject: &Subject<'_>, config: &Config) -> Check {
    const NAME: &str = "context";
    if !config.create_context() {
        return Check::skipped(NAME, "the configuration says to make no docker context");
    }
    let ours = config.context_of(subject.name);
    let current = match docker_context::current() {
        Ok(current) => current,
        Err(error) => {
            return Check::failed(
                NAME,
                chain(&error.into()),
                "correct or remove docker's own configuration file",
            );
        }
    };
    if let Some(variable) = &current.overridden_by {
        return Check::warning(
            NAME,
            format!("${variable} is set, and wins over docker's current context"),
            format!("`unset {variable}` to use the machine"),
        );
    }
    let running = UnixStream::connect(subject.machine.api_socket()).is_ok();
    if current.name == ours {
        Check::ok(NAME, format!("docker uses {ours}"))
    } else if running && config.switch_context() {
        Check::warning(
            NAME,
            format!("docker uses the context {} rather than {ours}", current.name),
            format!("`docker context use {ours}`"),
        )
    } else {
        Check::ok(
            NAME,
            format!("docker uses {}; a running machine has {ours}", current.name),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Outcome;

    #[test]
    fn a_clock_far_off_is_a_warning_and_an_untold_one_a_failure() {
        assert_eq!(clock("clock", Some(-1999)).outcome, Outcome::Ok);
        let off = clock("clock", Some(-2001));
        assert_eq!(off.outcome, Outcome::Warning);
        assert!(off.found.contains("-2001 ms"));
        assert_eq!(clock("clock", None).outcome, Outcome::Failed);
    }

    #[test]
    fn a_wrong_configuration_is_a_failure_that_names_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            config_dir: dir.path().into(),
            data_dir: dir.path().into(),
            state_dir: dir.path().into(),
            runtime_dir: dir.path().into(),
            guest_dir: dir.path().into(),
        };
        let name = MachineName::default();
        let subject = Subject {
            name: &name,
            machine: &paths.machine(&name),
            paths: &paths,
            chosen: Chosen::default(),
        };
        assert_eq!(config(&subject).0.outcome, Outcome::Ok);
        std::fs::write(paths.config_file(), "cpus: none\n").unwrap();
        let (check, config) = config(&subject);
        assert_eq!((check.outcome, config), (Outcome::Failed, None));
        assert!(check.found.contains("config.yaml:1:7: cpus"), "{}", check.found);
        for check in guest(&subject) {
            assert_eq!(check.outcome, Outcome::Failed);
            assert!(check.found.contains("is missing"), "{}", check.found);
        }
    }
}
