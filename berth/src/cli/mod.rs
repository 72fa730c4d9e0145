//! The command line: one file per command.

mod completion;
mod config;
mod context;
mod daemon;
mod delete;
mod docker_wait;
mod doctor;
mod events;
mod exec;
mod follow;
mod list;
mod logs;
mod origins;
mod ports;
mod profile;
mod restart;
mod share;
mod start;
mod status;
mod stop;
mod sync;
mod terminal;
mod tray;
mod version;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

pub use context::CommandContext;

use crate::config::EngineChoice;
use crate::exit::{Code, chain, code_of};
use crate::machine::settings::Chosen;
use crate::name::MachineName;
use crate::output;
use crate::size::Size;

/// A virtual machine that runs Docker, and a `docker` that does not notice.
///
/// `berth start` is the main job: it makes the machine, boots it, and points the host's docker client at it. After that,
/// use `docker` as always.
#[derive(Debug, Parser)]
#[command(
    name = "berth",
    version,
    max_term_width = 110,
    after_help = "Exit codes: 0 done (for `status`: running), 1 failed, 2 wrong usage or configuration, 3 the machine is not \
                  running,\n4 something berth needs is missing or unusable (`berth doctor` says what)."
)]
pub struct Cli {
    /// The machine; every machine has its own disk, sockets and docker context
    #[arg(long, short = 'm', global = true, value_name = "NAME", default_value = crate::name::DEFAULT)]
    machine: MachineName,

    /// Print results as JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the machine, making it the first time, and point docker at it
    Start(StartArgs),
    /// Stop the machine; containers get time to end
    Stop(stop::StopArgs),
    /// Stop the machine if it runs, and start it
    Restart(restart::RestartArgs),
    /// Tell how the machine is
    Status,
    /// List all machines
    #[command(visible_alias = "ls")]
    List,
    /// Named sets of settings: switch the machine to one, also while it runs
    Profile(profile::ProfileArgs),
    /// Share directories of the host with the machine, for `docker run -v`
    Share(share::ShareArgs),
    /// List the ports of this host that lead to containers
    Ports,
    /// Wait until the machine sees everything that the host has changed in its shares so far
    Sync,
    /// Show what the host changes in the shares as the machine is told of it, until interrupted
    Events,
    /// Open a shell in the machine, as its root
    Shell(exec::ShellArgs),
    /// Run a command in the machine, as its root
    Exec(exec::ExecArgs),
    /// Print a log of the machine
    Logs(logs::LogsArgs),
    /// Check everything berth needs on this host, and say how to fix what is wrong
    Doctor,
    /// Show the status icon, until its menu's Quit or the end of the desktop session
    Tray(tray::TrayArgs),
    /// Delete the machine with everything in it: images, containers, volumes
    Delete(delete::DeleteArgs),
    /// Show the configuration that holds, and where it comes from
    Config(config::ConfigArgs),
    /// Print versions
    Version,
    /// Print a completion script for a shell
    Completion(completion::CompletionArgs),
    /// The machine's daemon (started by `start`)
    #[command(hide = true)]
    Daemon(daemon::DaemonArgs),
}

/// The options that say what a machine is like.
#[derive(Debug, Clone, Default, Args)]
pub struct StartArgs {
    /// The profile, from now on; `none` for none. The other options win over it
    #[arg(long, value_name = "NAME", value_parser = crate::config::profile_choice)]
    profile: Option<String>,

    /// Virtual CPUs, from 1 to 128
    #[arg(long, value_name = "N", value_parser = crate::config::cpus)]
    cpus: Option<u8>,

    /// Memory the machine may use, such as 4GiB; what it does not use stays with the host
    #[arg(long, value_name = "SIZE", value_parser = crate::config::memory)]
    memory: Option<Size>,

    /// The most its images, containers and volumes may take, such as 64GiB; it can grow later, not shrink
    #[arg(long, value_name = "SIZE", value_parser = crate::config::disk)]
    disk: Option<Size>,

    /// What runs the machine: auto (KVM where it works, else QEMU), kvm or qemu
    #[arg(long, value_name = "ENGINE", value_parser = crate::config::engine)]
    engine: Option<EngineChoice>,
}

impl StartArgs {
    fn chosen(&self) -> Chosen {
        Chosen {
            profile: self.profile.clone(),
            cpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
            engine: self.engine,
            ..Chosen::default()
        }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = code_of(&error);
            let message = chain(&error);
            if !message.is_empty() {
                report(&message, code, json);
            }
            ExitCode::from(code.number())
        }
    }
}

/// Says what went wrong: on standard error, for people or as JSON.
fn report(message: &str, code: Code, json: bool) {
    if json {
        output::say(serde_json::json!({ "error": message, "code": code.number() }));
    } else {
        output::say(format_args!("berth: {message}"));
    }
}

fn run(cli: Cli) -> Result<()> {
    // Neither wants to know where anything is.
    match &cli.command {
        Command::Completion(args) => return completion::run(args),
        Command::Daemon(args) => return daemon::run(&cli.machine, args),
        Command::Tray(args) => return tray::run(&cli.machine, args),
        _ => {}
    }
    let context = CommandContext::new(cli.machine, cli.json)?;
    match &cli.command {
        Command::Start(args) => start::run(&context, args),
        Command::Stop(args) => stop::run(&context, args),
        Command::Restart(args) => restart::run(&context, args),
        Command::Status => status::run(&context),
        Command::List => list::run(&context),
        Command::Profile(args) => profile::run(&context, args),
        Command::Share(args) => share::run(&context, args),
        Command::Ports => ports::run(&context),
        Command::Sync => sync::run(&context),
        Command::Events => events::run(&context),
        Command::Shell(args) => exec::shell(&context, args),
        Command::Exec(args) => exec::run(&context, args),
        Command::Logs(args) => logs::run(&context, args),
        Command::Doctor => doctor::run(&context),
        Command::Delete(args) => delete::run(&context, args),
        Command::Config(args) => config::run(&context, args),
        Command::Version => version::run(&context),
        Command::Completion(_) | Command::Daemon(_) | Command::Tray(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_machine_can_be_named_on_either_side_of_the_command() {
        for words in [
            ["berth", "--machine", "x", "status"],
            ["berth", "status", "-m", "x"],
        ] {
            let cli = Cli::try_parse_from(words).unwrap();
            assert_eq!(cli.machine.as_str(), "x");
        }
        assert!(
            Cli::try_parse_from(["berth", "status"])
                .unwrap()
                .machine
                .is_default()
        );
    }

    #[test]
    fn wrong_values_are_refused_with_what_is_accepted() {
        let message = |words: &[&str]| {
            let error = Cli::try_parse_from(words).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert!(
            message(&["berth", "start", "--cpus", "0"]).contains("expected a number of CPUs from 1 to 128")
        );
        assert!(
            message(&["berth", "start", "--memory", "4"])
                .contains("expected a size with a unit, such as 4GiB")
        );
        assert!(message(&["berth", "start", "--disk", "1g b"]).contains("from 1 GiB to 16 TiB"));
        assert!(message(&["berth", "start", "--engine", "x"]).contains("expected `auto`, `kvm` or `qemu`"));
        assert!(message(&["berth", "status", "-m", "../x"]).contains("is not a machine name"));
    }

    #[test]
    fn everything_after_the_command_of_exec_is_the_commands() {
        let cli = Cli::try_parse_from(["berth", "exec", "--", "ls", "-l", "--json"]).unwrap();
        assert!(!cli.json);
        let cli = Cli::try_parse_from(["berth", "exec", "ls", "-l"]).unwrap();
        assert!(matches!(cli.command, Command::Exec(_)));
    }
}
