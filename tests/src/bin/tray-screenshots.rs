//! Makes pictures of the status icon in all its states, on a dark panel and on a light one, and of its menu: real pictures of
//! a real panel, with a daemon that only says so. `scripts/tray-screenshots` starts it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_tests::desktop::fake_daemon::FakeDaemon;
use berth_tests::desktop::{Desktop, Icon, Style};
use berth_tests::processes::{MARK, marked};
use berth_tests::program::{Program, Running};
use clap::Parser;
use serde_json::{Value, json};

#[derive(Parser)]
#[command(about = "Makes pictures of the status icon and its menu")]
struct Cli {
    /// The berth-tray to show
    #[arg(long, value_name = "PATH")]
    tray: PathBuf,
    /// Where to put the pictures
    #[arg(long, value_name = "DIR", default_value = "docs/images")]
    output: PathBuf,
    /// Also put a picture of each state on each panel there
    #[arg(long, value_name = "DIR")]
    single: Option<PathBuf>,
}

/// The panels: small and large, dark and light.
const STYLES: [(&str, Style); 4] = [
    (
        "dark-16",
        Style {
            dark: true,
            size: 24,
            icon: 16,
        },
    ),
    (
        "light-16",
        Style {
            dark: false,
            size: 24,
            icon: 16,
        },
    ),
    (
        "dark-24",
        Style {
            dark: true,
            size: 36,
            icon: 24,
        },
    ),
    (
        "light-24",
        Style {
            dark: false,
            size: 36,
            icon: 24,
        },
    ),
];

/// The width of a picture of one state.
const WIDTH: u32 = 48;

/// The part of the screen that the menu opens in.
const MENU: &str = "508x448+0+0";

const STATES: [&str; 6] = [
    "stopped",
    "starting-1",
    "starting-5",
    "running",
    "warning",
    "failed",
];

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A home of its own, and what was started in it, which ends with it.
struct Home {
    dir: tempfile::TempDir,
    mark: String,
    path: String,
}

impl Home {
    fn new() -> Result<Home> {
        let dir = tempfile::Builder::new().prefix("bt-").tempdir()?;
        let run = dir.path().join("run");
        fs::create_dir_all(&run)?;
        fs::set_permissions(&run, fs::Permissions::from_mode(0o700))?;
        // A machine of which the command line says that it is stopped.
        let machine = dir.path().join("home/.local/share/berth/machines/default");
        fs::create_dir_all(&machine)?;
        fs::write(machine.join("machine.json"), "{}")?;
        let bin = dir.path().join("bin");
        fs::create_dir_all(&bin)?;
        let berth = bin.join("berth");
        fs::write(
            &berth,
            "#!/bin/sh\ncase \"$*\" in *status) echo '{\"state\":\"stopped\"}'; exit 3;; *) echo '{}';; esac\n",
        )?;
        fs::set_permissions(&berth, fs::Permissions::from_mode(0o755))?;
        let path = std::env::var("PATH").context("PATH is not set")?;
        Ok(Home {
            mark: format!("screenshots-{}", std::process::id()),
            path: format!("{}:{path}", bin.display()),
            dir,
        })
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/berth/default/api.sock")
    }

    fn program(&self, name: &OsStr) -> Program {
        let home = self.dir.path();
        let mut program = Program::new(name)
            .env("HOME", home.join("home"))
            .env("XDG_RUNTIME_DIR", home.join("run"))
            .env("PATH", &self.path)
            .env(MARK, &self.mark);
        for foreign in [
            "XDG_CONFIG_HOME",
            "XDG_DATA_HOME",
            "XDG_STATE_HOME",
            "XDG_CACHE_HOME",
        ] {
            program = program.without_env(foreign);
        }
        program
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for process in marked(&self.mark).unwrap_or_default() {
            drop(process.kill());
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let home = Home::new()?;
    // Beside the tray's own berth there is the one that only says so: it is found first where it stands beside the program.
    let tray = home.dir.path().join("bin/berth-tray");
    fs::copy(&cli.tray, &tray).with_context(|| format!("cannot copy {}", cli.tray.display()))?;
    fs::create_dir_all(&cli.output)?;
    let single = home.dir.path().join("single");
    let single = cli.single.as_ref().unwrap_or(&single);
    fs::create_dir_all(single)?;
    let program = |name: &OsStr| home.program(name);
    for (style_name, style) in STYLES {
        // A session each: what keeps the panel's configuration lives as long as the session.
        let mut desktop = Desktop::start(&program, &home.dir.path().join(style_name))?;
        let _messages = desktop.messages()?;
        desktop.start_panel(style)?;
        let running = desktop.in_session(home.program(tray.as_os_str())).spawn()?;
        let icon = desktop.icon(running.pid())?;
        for state in STATES {
            let daemon = daemon_in(&home, state)?;
            icon.wait_for(state, |menu| menu.has(&[line(state)]))?;
            take(
                &desktop,
                &single.join(format!("{state}-{style_name}.png")),
                style.size,
            )?;
            drop(daemon);
        }
        if style_name == "dark-24" {
            menu(&desktop, &home, &icon, &cli.output.join("tray-menu.png"))?;
        }
        quit(&icon, running)?;
    }
    montage(&program, single, &cli.output.join("tray-states.png"))
}

fn quit(icon: &Icon, mut running: Running) -> Result<()> {
    icon.click(&["Quit"])?;
    running.ends(berth_tests::desktop::LIMIT).map(drop)
}

/// The first line of the menu in a state.
fn line(state: &str) -> &'static str {
    match state {
        "stopped" => "Machine default: stopped",
        "starting-1" => "Machine default: starting (starting the network)",
        "starting-5" => "Machine default: starting (starting Docker)",
        "failed" => "Machine default: failed",
        "warning" => "1 warning",
        _ => "Uptime",
    }
}

/// A daemon of a machine in this state; none when that has none.
fn daemon_in(home: &Home, state: &str) -> Result<Option<FakeDaemon>> {
    if state == "stopped" {
        let _ = fs::remove_file(home.socket());
        return Ok(None);
    }
    let daemon = FakeDaemon::start(&home.socket())?;
    let running = json!({"event": "state", "state": "running"});
    let event = match state {
        "starting-1" => json!({"event": "phase", "phase": "network"}),
        "starting-5" => json!({"event": "phase", "phase": "docker"}),
        "failed" => json!({"event": "state", "state": "failed", "reason": "Docker did not start"}),
        _ => running,
    };
    let warnings: &[&str] = match state {
        "warning" => {
            &["the host's disk is full, or soon will be: 200 MiB of space left; free some space on the host"]
        }
        _ => &[],
    };
    daemon.status(Some(status(warnings)));
    daemon.events([event]);
    Ok(Some(daemon))
}

fn status(warnings: &[&str]) -> Value {
    json!({
        "state": "running", "uptime_seconds": 7620,
        "settings": {"profile": "balanced", "cpus": 4, "max_cpus": 8, "memory": 4_u64 << 30, "max_memory": 8_u64 << 30},
        "engine": {"engine": "kvm", "accelerator": "kvm", "reason": ""},
        "memory": {"given": 4_u64 << 30, "used": 900_u64 << 20, "resident": 1_600_u64 << 20},
        "disk": {"size": 64_u64 << 30, "allocated": 3_u64 << 30, "used": 2_500_u64 << 20},
        "docker": {"version": "26.1.5", "socket": "/run/docker.sock"}, "guest": {"load": [0.12, 0.1, 0.1]},
        "warnings": warnings,
    })
}

/// The menu, opened by a click on the icon.
fn menu(desktop: &Desktop<'_>, home: &Home, icon: &Icon, output: &Path) -> Result<()> {
    let daemon = FakeDaemon::start(&home.socket())?;
    let container = |id: &str, name: &str, port: u16| {
        json!({"id": id.repeat(64), "name": name, "image": "nginx:1.27", "state": "running",
            "ports": [{"transport": "tcp", "address": "0.0.0.0", "port": port, "container_port": 80}]})
    };
    daemon.status(Some(status(&[])));
    daemon.profiles(json!({"current": "balanced", "profiles": [{"name": "light"}, {"name": "balanced"}, {"name": "heavy"}]}));
    daemon.events([
        json!({"event": "state", "state": "running"}),
        json!({"event": "containers", "containers": [container("a", "web", 8080), container("b", "shop-db", 5432)]}),
    ]);
    icon.wait_for("the containers", |menu| {
        menu.has(&["Containers: 2"]) && menu.has(&["Uptime"])
    })?;
    // Where the icon is on the panel.
    let at = ["mousemove", "18", "18", "sleep", "0.3", "click", "1"];
    desktop.program("xdotool").args(at).ok()?;
    let picture = output.with_extension("raw.png");
    capture(desktop, &picture, 460)?;
    desktop
        .program("convert")
        .arg(&picture)
        .args(["-crop", MENU, "+repage", "-strip", "-colors", "128"])
        .arg(output)
        .ok()?;
    fs::remove_file(&picture)?;
    desktop.program("xdotool").args(["key", "Escape"]).ok()?;
    Ok(())
}

/// A picture of the panel's left end.
fn take(desktop: &Desktop<'_>, output: &Path, height: u32) -> Result<()> {
    capture(desktop, output, height)?;
    let crop = format!("{WIDTH}x{height}+0+0");
    desktop
        .program("mogrify")
        .args(["-crop", &crop, "+repage", "-strip"])
        .arg(output)
        .ok()
        .map(drop)
}

/// A picture of the screen's top, when it has stopped changing: the panel draws when it gets to it, and tells nobody.
fn capture(desktop: &Desktop<'_>, output: &Path, height: u32) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(700);
    let crop = format!("640x{height}+0+0");
    let mut before = Vec::new();
    loop {
        std::thread::sleep(PAUSE);
        let shot = desktop
            .program("import")
            .args(["-window", "root", "-crop", &crop, "+repage", "rgb:-"])
            .run()?;
        if shot.stdout == before && !before.is_empty() {
            break;
        }
        before = shot.stdout;
    }
    desktop
        .program("import")
        .args(["-window", "root", "-crop", &crop, "+repage"])
        .arg(output)
        .ok()
        .map(drop)
}

/// All states in one picture: a row for each panel.
fn montage(program: &dyn Fn(&OsStr) -> Program, single: &Path, output: &Path) -> Result<()> {
    let rows: Vec<_> = STYLES
        .iter()
        .map(|(style, _)| {
            let row = single.join(format!("row-{style}.png"));
            let states = STATES.map(|state| single.join(format!("{state}-{style}.png")));
            program("convert".as_ref())
                .args(states)
                .args(["+append", "-scale", "200%"])
                .arg(&row)
                .ok()?;
            Ok(row)
        })
        .collect::<Result<_>>()?;
    program("convert".as_ref())
        .args(rows)
        .args(["-append", "-strip", "-colors", "128"])
        .arg(output)
        .ok()
        .map(drop)
}
