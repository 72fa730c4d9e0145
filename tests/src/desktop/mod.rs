//! A desktop session for the status icon: a display nobody looks at, a D-Bus session, a panel that shows status icons, and
//! somebody who takes what is told.
//!
//! All of it are the distribution's own programs: Xvfb, dbus-daemon, xfce4-panel.

pub mod fake_daemon;
mod icon;
mod messages;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

pub use icon::{Icon, MenuItem};
pub use messages::{Message, Messages};

use crate::options::on_path;
use crate::program::{Program, Running};

/// How long one of them may take to be there, or to show what was told.
pub const LIMIT: Duration = Duration::from_secs(60);

/// What the session is made of, each with its package.
const PROGRAMS: [(&str, &str); 3] = [
    ("Xvfb", "xvfb"),
    ("dbus-daemon", "dbus-daemon"),
    ("xfce4-panel", "xfce4-panel"),
];

/// A panel with nothing on it but status icons.
const PANEL: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<channel name="xfce4-panel" version="1.0">
  <property name="configver" type="int" value="2"/>
  <property name="panels" type="array">
    <value type="int" value="1"/>
    <property name="dark-mode" type="bool" value="DARK"/>
    <property name="panel-1" type="empty">
      <property name="position" type="string" value="p=6;x=0;y=0"/>
      <property name="length" type="uint" value="100"/>
      <property name="position-locked" type="bool" value="true"/>
      <property name="icon-size" type="uint" value="ICON"/>
      <property name="size" type="uint" value="SIZE"/>
      <property name="plugin-ids" type="array">
        <value type="int" value="1"/>
      </property>
    </property>
  </property>
  <property name="plugins" type="empty">
    <property name="plugin-1" type="string" value="systray">
      <property name="square-icons" type="bool" value="true"/>
      <property name="icon-size" type="int" value="ICON"/>
      <property name="symbolic-icons" type="bool" value="false"/>
      <property name="menu-is-primary" type="bool" value="true"/>
    </property>
  </property>
</channel>
"#;

/// How the panel looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Light icons on a dark panel are not what everybody has.
    pub dark: bool,
    /// The height of the panel in pixels.
    pub size: u32,
    /// That of the icons on it.
    pub icon: u32,
}

impl Default for Style {
    fn default() -> Self {
        Style {
            dark: true,
            size: 28,
            icon: 22,
        }
    }
}

/// The session. Everything in it ends when this is dropped.
pub struct Desktop<'a> {
    /// What runs a program as the session's user.
    program: &'a dyn Fn(&OsStr) -> Program,
    dir: PathBuf,
    display: String,
    panel: Option<Running>,
    bus: Option<Running>,
    _screen: Running,
}

impl<'a> Desktop<'a> {
    /// Begins a session of the user whose programs `program` makes, with things of its own in `dir`. There is no panel yet.
    ///
    /// # Errors
    /// When something is not there or does not start.
    pub fn start(program: &'a dyn Fn(&OsStr) -> Program, dir: &Path) -> Result<Desktop<'a>> {
        for (name, package) in PROGRAMS {
            on_path(name).with_context(|| format!("there is no {name}; on Debian: apt install {package}"))?;
        }
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        // It chooses a number that is free, and tells it when it is ready.
        let screen = program("Xvfb".as_ref())
            .args([
                "-displayfd",
                "1",
                "-screen",
                "0",
                "640x480x24",
                "-nolisten",
                "tcp",
            ])
            .limit(LIMIT)
            .spawn()?;
        screen.prints("\n")?;
        let display = format!(":{}", screen.printed().trim());
        let mut desktop = Desktop {
            program,
            dir: dir.to_owned(),
            display,
            panel: None,
            bus: None,
            _screen: screen,
        };
        desktop.start_bus()?;
        Ok(desktop)
    }

    /// Where the bus is.
    pub fn address(&self) -> String {
        format!("unix:path={}", self.dir.join("bus").display())
    }

    /// A program in the session.
    pub fn program(&self, name: impl AsRef<OsStr>) -> Program {
        self.in_session((self.program)(name.as_ref()))
            .env("XDG_CONFIG_HOME", self.dir.join("config"))
            .env("XDG_CACHE_HOME", self.dir.join("cache"))
    }

    /// Puts a program of the user's into the session.
    pub fn in_session(&self, program: Program) -> Program {
        program
            .env("DISPLAY", &self.display)
            .env("DBUS_SESSION_BUS_ADDRESS", self.address())
            .env("XDG_CURRENT_DESKTOP", "XFCE")
            // No accessibility bus, no settings of the host.
            .env("NO_AT_BRIDGE", "1")
            .env("GSETTINGS_BACKEND", "memory")
            .env("LC_ALL", "C.UTF-8")
            .without_env("WAYLAND_DISPLAY")
            .without_env("SESSION_MANAGER")
            .without_env("TERMINAL")
    }

    /// Starts the bus, or another one in the place of the one that was ended.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_bus(&mut self) -> Result<()> {
        let address = format!("--address={}", self.address());
        let bus = self
            .program("dbus-daemon")
            .args([
                "--session",
                "--nofork",
                "--nopidfile",
                "--print-address=1",
                &address,
            ])
            .limit(LIMIT)
            .spawn()?;
        bus.prints("unix:")?;
        self.bus = Some(bus);
        Ok(())
    }

    /// Kills the bus, and with it what cannot live without.
    pub fn kill_bus(&mut self) {
        self.bus = None;
    }

    /// Starts the panel.
    ///
    /// # Errors
    /// When it does not come to look after status icons.
    pub fn start_panel(&mut self, style: Style) -> Result<()> {
        let dir = self.dir.join("config/xfce4/xfconf/xfce-perchannel-xml");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let text = PANEL
            .replace("DARK", if style.dark { "true" } else { "false" })
            .replace("SIZE", &style.size.to_string())
            .replace("ICON", &style.icon.to_string());
        fs::write(dir.join("xfce4-panel.xml"), text).context("cannot write the panel's configuration")?;
        let panel = self
            .program("xfce4-panel")
            .arg("--disable-wm-check")
            .limit(LIMIT)
            .spawn()?;
        self.panel = Some(panel);
        icon::wait_for_panel(&self.address())
    }

    /// Kills the panel.
    pub fn kill_panel(&mut self) {
        self.panel = None;
    }

    /// Somebody who takes what is told in the session.
    ///
    /// # Errors
    /// When the bus refuses.
    pub fn messages(&self) -> Result<Messages> {
        Messages::take(&self.address())
    }

    /// The icon that this process shows, once the panel has it.
    ///
    /// # Errors
    /// When the panel does not get it.
    pub fn icon(&self, process: u32) -> Result<Icon> {
        Icon::find(&self.address(), process)
    }
}

impl Drop for Desktop<'_> {
    fn drop(&mut self) {
        // The panel first: without a bus or a display it would complain.
        self.panel = None;
        self.bus = None;
    }
}
