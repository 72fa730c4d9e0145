//! `berth config`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::context::CommandContext;
use super::status::describe_share;
use crate::config::template;
use crate::exit::{Code, Failure};
use crate::host::Host;
use crate::machine::settings::Settings;
use crate::machine::shares::ShareReport;
use crate::output::{self, table};

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
    network: bool,
    boot_timeout_seconds: u64,
    stop_timeout_seconds: u64,
    log_level: &'static str,
}

/// Shows the configuration that holds. Reading it checks it.
pub(super) fn run(context: &CommandContext, args: &ConfigArgs) -> Result<()> {
    let path = context.paths.config_file();
    if args.path {
        return output::print(&path.display().to_string());
    }
    let host = Host::detect();
    if args.template {
        return output::print(&template(&host));
    }
    let config = context.config()?;
    let chosen = context.record()?.map(|record| record.chosen).unwrap_or_default();
    let settings =
        Settings::resolve(&chosen, &config, &host).map_err(|error| Failure::wrap(Code::Usage, error))?;
    let effective = Effective {
        exists: path.exists(),
        path,
        docker_context: config.context_of(&context.name),
        switch_context: config.switch_context(),
        network: config.network(),
        boot_timeout_seconds: config.boot_timeout().as_secs(),
        stop_timeout_seconds: config.stop_timeout().as_secs(),
        log_level: config.log_level(),
        settings,
    };
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let there = if effective.exists {
        ""
    } else {
        " (not there; defaults hold)"
    };
    let shares = effective
        .settings
        .shares
        .iter()
        .cloned()
        .map(ShareReport::without_machine);
    let shares: Vec<_> = shares.map(|report| describe_share(&report)).collect();
    let text = table(&[
        ("file", format!("{}{there}", effective.path.display())),
        ("cpus", effective.settings.cpus.to_string()),
        ("memory", effective.settings.memory.to_string()),
        ("disk", effective.settings.disk.to_string()),
        ("engine", effective.settings.engine.to_string()),
        (
            "shares",
            if shares.is_empty() {
                "none".into()
            } else {
                shares.join(", ")
            },
        ),
        ("docker context", effective.docker_context.clone()),
        ("switch context", yes_no(effective.switch_context)),
        ("network", yes_no(effective.network)),
        ("boot timeout", output::duration(effective.boot_timeout_seconds)),
        ("stop timeout", output::duration(effective.stop_timeout_seconds)),
        ("log level", effective.log_level.to_owned()),
    ]);
    context.output.result(&effective, &text)
}
