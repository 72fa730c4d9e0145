//! `berth profile`: named sets of settings, and switching a machine to one.
//!
//! On a running machine its daemon switches, at once; for a stopped one the choice is written down for its next start.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use hyper::StatusCode;
use serde::Serialize;

use super::context::{CommandContext, block_on};
use super::list::names;
use super::share::in_record;
use super::status::describe_share;
use super::stop::StopArgs;
use super::{start, stop};
use crate::api::client::ClientError;
use crate::api::types::{SettingsReport, SettingsRequest};
use crate::config::{NO_PROFILE, Places, write_template};
use crate::exit::{Code, Failure};
use crate::host::Host;
use crate::machine::record::MachineRecord;
use crate::machine::settings::{Chosen, Settings};
use crate::machine::shares::ShareReport;
use crate::output::table;
use crate::profiles::edit::{ConfigText, EditError};
use crate::profiles::{self, Origin, Profile, ProfileSettings};
use crate::size::Size;

#[derive(Debug, Clone, Args)]
pub(super) struct ProfileArgs {
    #[command(subcommand)]
    command: ProfileCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum ProfileCommand {
    /// List the profiles there are, with the machine's marked
    #[command(visible_alias = "ls")]
    List,
    /// Show what a profile says
    Show(NameArgs),
    /// Add a profile to the configuration
    Create(SetArgs),
    /// Change a profile in the configuration; without options, in an editor ($VISUAL or $EDITOR)
    Edit(SetArgs),
    /// Take a profile out of the configuration
    #[command(visible_alias = "rm")]
    Delete(NameArgs),
    /// Switch the machine to a profile: CPUs and memory of a running one at once, the rest with a restart
    Use(UseArgs),
}

#[derive(Debug, Clone, Args)]
struct NameArgs {
    /// The profile
    #[arg(value_parser = crate::config::profile_name)]
    name: String,
}

#[derive(Debug, Clone, Args)]
struct SetArgs {
    /// The profile
    #[arg(value_parser = crate::config::profile_name)]
    name: String,

    /// Virtual CPUs, from 1 to 128
    #[arg(long, value_name = "N", value_parser = crate::config::cpus)]
    cpus: Option<u8>,

    /// Memory, such as 4GiB
    #[arg(long, value_name = "SIZE", value_parser = crate::config::memory)]
    memory: Option<Size>,

    /// The most images, containers and volumes may take, such as 64GiB; a machine's disk only grows
    #[arg(long, value_name = "SIZE", value_parser = crate::config::disk)]
    disk: Option<Size>,

    /// Whether containers can reach the network
    #[arg(long, value_name = "yes|no", value_parser = yes_or_no)]
    network: Option<bool>,
}

#[derive(Debug, Clone, Args)]
struct UseArgs {
    /// The profile; `none` for none
    #[arg(value_parser = crate::config::profile_choice)]
    name: String,

    /// Restart a running machine when something of the profile needs that
    #[arg(long)]
    restart: bool,
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err("expected yes or no".into()),
    }
}

impl SetArgs {
    fn settings(&self) -> ProfileSettings {
        ProfileSettings {
            cpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
            network: self.network,
            shares: None,
        }
    }
}

pub(super) fn run(context: &CommandContext, args: &ProfileArgs) -> Result<()> {
    match &args.command {
        ProfileCommand::List => list(context),
        ProfileCommand::Show(args) => show(context, &args.name),
        ProfileCommand::Create(args) => create(context, args),
        ProfileCommand::Edit(args) => edit(context, args),
        ProfileCommand::Delete(args) => delete(context, &args.name),
        ProfileCommand::Use(args) => use_profile(context, args),
    }
}

/// A profile as `list` and `show` print it.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    profile: Profile,
    /// Whether the machine has it.
    current: bool,
    /// The line of the configuration it stands in.
    line: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Listed {
    /// The machine's; none when it has none.
    current: Option<String>,
    profiles: Vec<Shown>,
}

fn all(context: &CommandContext) -> Result<Listed> {
    let file = context.paths.config_file();
    let text = ConfigText::load(&file).map_err(usage)?;
    let places = Places::of(text.text());
    let current = context.record()?.and_then(|record| record.chosen.profile);
    let shown = profiles::all(text.config(), &Host::detect())
        .into_iter()
        .map(|profile| Shown {
            current: current.as_ref() == Some(&profile.name),
            line: match profile.origin {
                Origin::Builtin => None,
                Origin::Config => places.line(&format!("profiles.{}", profile.name)),
            },
            profile,
        })
        .collect();
    Ok(Listed {
        current,
        profiles: shown,
    })
}

fn list(context: &CommandContext) -> Result<()> {
    let listed = all(context)?;
    context.output.result(&listed, &listed)
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .profiles
            .iter()
            .map(|shown| shown.profile.name.len())
            .max()
            .unwrap_or(0)
            .max("PROFILE".len());
        writeln!(
            f,
            "  {:<width$}  {:<7}  {:>4}  {:>9}  {:>9}  OTHER",
            "PROFILE", "ORIGIN", "CPUS", "MEMORY", "DISK"
        )?;
        for shown in &self.profiles {
            let settings = &shown.profile.settings;
            let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
            let line = format!(
                "{} {:<width$}  {:<7}  {:>4}  {:>9}  {:>9}  {}",
                if shown.current { "*" } else { " " },
                shown.profile.name,
                shown.profile.origin,
                or_dash(settings.cpus.map(|cpus| cpus.to_string())),
                or_dash(settings.memory.map(|memory| memory.to_string())),
                or_dash(settings.disk.map(|disk| disk.to_string())),
                others(settings).join(", "),
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// What a profile says beside numbers.
fn others(settings: &ProfileSettings) -> Vec<String> {
    let network = settings.network.map(|network| {
        if network {
            "network".to_owned()
        } else {
            "no network".to_owned()
        }
    });
    let shares = settings.shares.as_ref().map(|shares| match shares.len() {
        0 => "no shares".to_owned(),
        1 => "1 share".to_owned(),
        number => format!("{number} shares"),
    });
    network.into_iter().chain(shares).collect()
}

fn show(context: &CommandContext, name: &str) -> Result<()> {
    let shown = all(context)?
        .profiles
        .into_iter()
        .find(|shown| shown.profile.name == name)
        .ok_or_else(|| no_such(name))?;
    let settings = &shown.profile.settings;
    let origin = match (shown.profile.origin, shown.line) {
        (Origin::Builtin, _) => "comes with berth".to_owned(),
        (Origin::Config, line) => {
            let line = line.map_or_else(String::new, |line| format!(":{line}"));
            format!("{}{line}", context.paths.config_file().display())
        }
    };
    let or_as_without = |value: Option<String>| value.unwrap_or_else(|| "as without it".into());
    let mut rows = vec![
        ("profile", shown.profile.name.clone()),
        ("origin", origin),
        ("cpus", or_as_without(settings.cpus.map(|cpus| cpus.to_string()))),
        (
            "memory",
            or_as_without(settings.memory.map(|memory| memory.to_string())),
        ),
    ];
    if let Some(disk) = settings.disk {
        rows.push(("disk", format!("{disk} (with a restart)")));
    }
    if let Some(network) = settings.network {
        rows.push((
            "network",
            format!("{} (with a restart)", if network { "yes" } else { "no" }),
        ));
    }
    if let Some(shares) = &settings.shares {
        let shares: Vec<_> = shares
            .iter()
            .map(|share| describe_share(&ShareReport::without_machine(share.clone())))
            .collect();
        let shares = if shares.is_empty() {
            "none".to_owned()
        } else {
            shares.join(", ")
        };
        rows.push(("shares", format!("{shares} (with a restart)")));
    }
    context.output.result(&shown, &table(&rows))
}

fn no_such(name: &str) -> anyhow::Error {
    Failure::because(
        Code::Usage,
        format!("there is no profile {name}; `berth profile list` shows those there are"),
    )
}

fn usage(error: EditError) -> anyhow::Error {
    match error {
        EditError::Config(_) | EditError::Unusual { .. } => Failure::wrap(Code::Usage, error),
        EditError::Write { .. } => error.into(),
    }
}

/// Whether the configuration itself has the profile.
fn is_in(text: &ConfigText, name: &str) -> bool {
    text.config().profiles().any(|profile| profile.name == name)
}

/// The configuration's text, written first where there is none.
fn text_to_change(context: &CommandContext) -> Result<ConfigText> {
    let file = context.paths.config_file();
    write_template(&file, &Host::detect())?;
    ConfigText::load(&file).map_err(usage)
}

fn create(context: &CommandContext, args: &SetArgs) -> Result<()> {
    let settings = args.settings();
    if settings == ProfileSettings::default() {
        return Err(Failure::because(
            Code::Usage,
            "a profile has to say something; give it --cpus, --memory, --disk or --network",
        ));
    }
    let text = text_to_change(context)?;
    if is_in(&text, &args.name) {
        let message = format!(
            "there is a profile {0} already; `berth profile edit {0}` changes it",
            args.name
        );
        return Err(Failure::because(Code::Usage, message));
    }
    let text = text.with(&args.name, &settings).map_err(usage)?;
    text.store().map_err(usage)?;
    changed(context, &args.name, "Added")
}

fn edit(context: &CommandContext, args: &SetArgs) -> Result<()> {
    let mut text = text_to_change(context)?;
    if !is_in(&text, &args.name) {
        // One that comes with berth is changed by one in its place.
        let known = profiles::find(&args.name, text.config(), &Host::detect());
        let known = known.ok_or_else(|| no_such(&args.name))?;
        text = text.with(&args.name, &known.settings).map_err(usage)?;
    }
    let settings = args.settings();
    let text = if settings == ProfileSettings::default() {
        in_editor(context, &text, &args.name)?
    } else {
        text.with(&args.name, &settings).map_err(usage)?
    };
    text.store().map_err(usage)?;
    changed(context, &args.name, "Changed")
}

/// Lets the user change the text. A wrong one is refused and kept for another try.
fn in_editor(context: &CommandContext, text: &ConfigText, name: &str) -> Result<ConfigText> {
    let file = context.paths.config_file();
    let copy = file.with_extension("edited.yaml");
    fs::write(&copy, text.text()).with_context(|| format!("cannot write {}", copy.display()))?;
    let edited = edit_file(&copy, Places::of(text.text()).line(&format!("profiles.{name}")));
    let text = edited
        .and_then(|()| fs::read_to_string(&copy).with_context(|| format!("cannot read {}", copy.display())));
    let kept = || {
        format!(
            "{} stays as it was; what you wrote is in {}",
            file.display(),
            copy.display()
        )
    };
    let text = text.with_context(kept)?;
    let text = ConfigText::new(&copy, text)
        .map_err(|error| Failure::wrap(Code::Usage, anyhow::Error::new(error).context(kept())))?;
    // It has been read; should it not go away, the next edit replaces it.
    let _ = fs::remove_file(&copy);
    Ok(text.in_place_of(&file))
}

fn edit_file(file: &Path, line: Option<usize>) -> Result<()> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let editor = variable("VISUAL")
        .or_else(|| variable("EDITOR"))
        .unwrap_or_else(|| "vi".into());
    if let Some(line) = line {
        crate::output::say(format_args!("the profile is in line {line}"));
    }
    // As git does: the variable may hold options too.
    let status = Command::new("sh")
        .arg("-c")
        .arg(format!("{editor} \"$1\""))
        .arg("sh")
        .arg(file)
        .status()
        .with_context(|| format!("cannot start the editor `{editor}`"))?;
    anyhow::ensure!(status.success(), "the editor `{editor}` ended with {status}");
    Ok(())
}

fn delete(context: &CommandContext, name: &str) -> Result<()> {
    let file = context.paths.config_file();
    let text = ConfigText::load(&file).map_err(usage)?;
    let own = profiles::builtin::all(&Host::detect())
        .into_iter()
        .any(|profile| profile.name == name);
    if !is_in(&text, name) {
        let message = if own {
            format!(
                "the profile {name} comes with berth and cannot be deleted; `berth profile edit {name}` changes it"
            )
        } else {
            return Err(no_such(name));
        };
        return Err(Failure::because(Code::Usage, message));
    }
    // What comes with berth is there again in its place.
    if !own {
        for machine in names(context)? {
            let machine = context.other(machine);
            let used = machine.record()?.and_then(|record| record.chosen.profile);
            anyhow::ensure!(
                used.as_deref() != Some(name),
                "the machine {} has the profile {name}; give it another one first, or `{}` for none",
                machine.name,
                machine.command(&format!("profile use {NO_PROFILE}"))
            );
        }
    }
    text.without(name).map_err(usage)?.store().map_err(usage)?;
    let value = serde_json::json!({ "name": name, "deleted": true });
    let text = format!("Deleted the profile {name} from {}.", file.display());
    context.output.result(&value, &text)
}

fn changed(context: &CommandContext, name: &str, what: &str) -> Result<()> {
    let listed = all(context)?;
    let shown = listed
        .profiles
        .into_iter()
        .find(|shown| shown.profile.name == name);
    // An editor may have taken it away.
    let Some(shown) = shown else {
        return context.output.result(
            &serde_json::json!({ "name": name, "deleted": true }),
            &format!("There is no profile {name} any more."),
        );
    };
    let again = if shown.current {
        format!(
            " The machine {} has it; `{}` brings it up to date.",
            context.name,
            context.command(&format!("profile use {name}"))
        )
    } else {
        String::new()
    };
    let text = format!(
        "{what} the profile {name} in {}.{again}",
        context.paths.config_file().display()
    );
    context.output.result(&shown, &text)
}

/// What `berth profile use` prints.
#[derive(Debug, Serialize)]
struct Used {
    machine: String,
    /// Whether a running machine was switched; if not, its next start will.
    live: bool,
    /// Whether it was restarted for it.
    restarted: bool,
    #[serde(flatten)]
    report: SettingsReport,
}

fn use_profile(context: &CommandContext, args: &UseArgs) -> Result<()> {
    let request = SettingsRequest {
        profile: Some(args.name.clone()),
        ..SettingsRequest::default()
    };
    let Some(report) = change_live(context, &request)? else {
        let settings = in_record(context, |context| choose(context, &args.name))?;
        let used = Used {
            machine: context.name.to_string(),
            live: false,
            restarted: false,
            report: as_started(settings),
        };
        return context.output.result(&used, &used);
    };
    if args.restart && !report.needs_restart.is_empty() {
        stop::stop(context, &StopArgs::default())?;
        let (status, _) = start::start(context, &Chosen::default())?;
        let used = Used {
            machine: context.name.to_string(),
            live: true,
            restarted: true,
            report: as_started(status.settings),
        };
        return context.output.result(&used, &used);
    }
    let used = Used {
        machine: context.name.to_string(),
        live: true,
        restarted: false,
        report,
    };
    context.output.result(&used, &used)?;
    if !context.output.json && !used.report.needs_restart.is_empty() {
        crate::output::print(&format!(
            "It gets these with a restart only (`{}`):\n{}",
            context.command(&format!("profile use {} --restart", args.name)),
            bullets(&used.report.needs_restart)
        ))?;
    }
    Ok(())
}

/// What a machine has that is, or will be, started with these.
fn as_started(settings: Settings) -> SettingsReport {
    SettingsReport {
        profile: settings.profile,
        cpus: settings.cpus,
        max_cpus: settings.max_cpus,
        memory: settings.memory,
        max_memory: settings.max_memory,
        memory_given: settings.memory,
        shortfall: None,
        needs_restart: Vec::new(),
    }
}

fn bullets(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  {line}\n")).collect()
}

/// Asks the daemon; none when there is none.
pub(super) fn change_live(
    context: &CommandContext,
    request: &SettingsRequest,
) -> Result<Option<SettingsReport>> {
    let asked = block_on(async { Ok(context.client().change_settings(request).await) })?;
    match asked {
        Ok(report) => Ok(Some(report)),
        Err(ClientError::NoDaemon) => Ok(None),
        Err(error @ ClientError::Refused { status, .. })
            if [StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND].contains(&status) =>
        {
            Err(Failure::wrap(Code::Usage, error))
        }
        Err(error) => Err(context.client_error(error)),
    }
}

/// Writes the choice down for the next start of a machine that does not run.
fn choose(context: &CommandContext, name: &str) -> Result<Settings> {
    let chosen = Chosen {
        profile: Some(name.to_owned()),
        ..Chosen::default()
    };
    let before = context.record()?.map(|record| record.chosen).unwrap_or_default();
    let settings = Settings::resolve(&chosen.or(&before), &context.config()?, &Host::detect())
        .map_err(|error| Failure::wrap(Code::Usage, error))?;
    MachineRecord::remember(&context.machine.record(), &chosen)?;
    Ok(settings)
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        let profile = match &report.profile {
            Some(name) => format!("has the profile {name}"),
            None => "has no profile".to_owned(),
        };
        let when = match (self.live, self.restarted) {
            (false, _) => " from its next start on",
            (true, true) => " and was restarted for it",
            (true, false) => "",
        };
        writeln!(
            f,
            "The machine {} {profile}{when}: {} and {} of memory.",
            self.machine,
            match report.cpus {
                1 => "1 CPU".to_owned(),
                cpus => format!("{cpus} CPUs"),
            },
            report.memory
        )?;
        if let Some(shortfall) = &report.shortfall {
            writeln!(f, "But {shortfall}.")?;
        }
        Ok(())
    }
}
