//! `berth config`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::context::CommandContext;
use super::origins::{Sources, ValueOrigin};
use super::status::describe_share;
use crate::config::{Places, template};
use crate::exit::{Code, Failure};
use crate::host::Host;
use crate::machine::settings::{Chosen, Settings, under_profile};
use crate::machine::shares::ShareReport;
use crate::output::{self, table};
use crate::profiles;
use crate::profiles::edit::ConfigText;

#[derive(Debug, Clone, Args)]
pub(super) struct ConfigArgs {
    /// Print only where the configuration file is
    #[arg(long, conflicts_with = "template")]
    path: bool,

    /// Print the commented template of a configuration file
    #[arg(long)]
    template: bool,
}

/// What holds for the machine's next start.
#[derive(Debug, Serialize)]
struct Effective {
    path: PathBuf,
    exists: bool,
    #[serde(flatten)]
    settings: Settings,
    docker_context: String,
    switch_context: bool,
    boot_timeout_seconds: u64,
    stop_timeout_seconds: u64,
    log_level: &'static str,
    /// Where each of these comes from, by its key in this object.
    origins: BTreeMap<&'static str, ValueOrigin>,
}

/// Shows the configuration that holds, and where it comes from. Reading it checks it.
pub(super) fn run(context: &CommandContext, args: &ConfigArgs) -> Result<()> {
    let path = context.paths.config_file();
    if args.path {
        return output::print(&path.display().to_string());
    }
    let host = Host::detect();
    if args.template {
        return output::print(&template(&host));
    }
    let file = ConfigText::load(&path).map_err(|error| Failure::wrap(Code::Usage, error))?;
    let chosen = context.record()?.map(|record| record.chosen).unwrap_or_default();
    let wrong = |error| Failure::wrap(Code::Usage, error);
    let settings = Settings::resolve(&chosen, file.config(), &host).map_err(wrong)?;
    let config = under_profile(&chosen, file.config(), &host).map_err(wrong)?;
    let origins = origins(&chosen, &file, &settings, &host);
    let effective = Effective {
        exists: path.exists(),
        path,
        docker_context: config.context_of(&context.name),
        switch_context: config.switch_context(),
        boot_timeout_seconds: config.boot_timeout().as_secs(),
        stop_timeout_seconds: config.stop_timeout().as_secs(),
        log_level: config.log_level(),
        settings,
        origins,
    };
    context.output.result(&effective, &describe(&effective))
}

/// Where each setting comes from.
fn origins(
    chosen: &Chosen,
    file: &ConfigText,
    settings: &Settings,
    host: &Host,
) -> BTreeMap<&'static str, ValueOrigin> {
    let profile = settings
        .profile
        .as_deref()
        .and_then(|name| profiles::find(name, file.config(), host));
    let places = Places::of(file.text());
    let sources = Sources {
        chosen,
        profile: profile
            .as_ref()
            .map(|profile| (profile.name.as_str(), &profile.settings)),
        places: &places,
        in_file: &|path| file.config().sets(path),
    };
    let mut origins: BTreeMap<_, _> = KEYS.map(|(key, path)| (key, sources.of(path))).into();
    // Without a word of the file they are the largest of the profiles, or what the machine starts with.
    for (key, is_more) in [
        ("max_cpus", settings.max_cpus > settings.cpus),
        ("max_memory", settings.max_memory > settings.memory),
    ] {
        if origins[key] == ValueOrigin::Default && is_more {
            origins.insert(key, ValueOrigin::Profiles);
        }
    }
    origins
}

/// The settings that are shown, with the path that each has in the file.
const KEYS: [(&str, &str); 14] = [
    ("profile", "profile"),
    ("cpus", "cpus"),
    ("memory", "memory"),
    ("max_cpus", "max_cpus"),
    ("max_memory", "max_memory"),
    ("disk", "disk"),
    ("engine", "engine"),
    ("shares", "shares"),
    ("docker_context", "docker.context"),
    ("switch_context", "docker.switch_context"),
    ("network", "network.enabled"),
    ("boot_timeout_seconds", "timeouts.boot"),
    ("stop_timeout_seconds", "timeouts.stop"),
    ("log_level", "log_level"),
];

fn describe(effective: &Effective) -> String {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let settings = &effective.settings;
    let shares: Vec<_> = settings
        .shares
        .iter()
        .map(|share| describe_share(&ShareReport::without_machine(share.clone())))
        .collect();
    let values = [
        (
            "profile",
            "profile",
            settings.profile.clone().unwrap_or_else(|| "none".into()),
        ),
        ("cpus", "cpus", settings.cpus.to_string()),
        ("memory", "memory", settings.memory.to_string()),
        ("most cpus", "max_cpus", settings.max_cpus.to_string()),
        ("most memory", "max_memory", settings.max_memory.to_string()),
        ("disk", "disk", settings.disk.to_string()),
        ("engine", "engine", settings.engine.to_string()),
        (
            "shares",
            "shares",
            if shares.is_empty() {
                "none".into()
            } else {
                shares.join(", ")
            },
        ),
        (
            "docker context",
            "docker_context",
            effective.docker_context.clone(),
        ),
        (
            "switch context",
            "switch_context",
            yes_no(effective.switch_context),
        ),
        ("network", "network", yes_no(settings.network)),
        (
            "boot timeout",
            "boot_timeout_seconds",
            output::duration(effective.boot_timeout_seconds),
        ),
        (
            "stop timeout",
            "stop_timeout_seconds",
            output::duration(effective.stop_timeout_seconds),
        ),
        ("log level", "log_level", effective.log_level.to_owned()),
    ];
    // Long lists of shares would push all origins to the right.
    let width = values
        .iter()
        .map(|(_, _, value)| value.len())
        .max()
        .unwrap_or(0)
        .min(20);
    let there = if effective.exists {
        ""
    } else {
        " (not there; defaults hold)"
    };
    let mut rows = vec![("file", format!("{}{there}", effective.path.display()))];
    rows.extend(values.iter().map(|(label, key, value)| {
        let origin = &effective.origins[key];
        (*label, format!("{value:<width$}  ({origin})"))
    }));
    table(&rows)
}
