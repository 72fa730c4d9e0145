//! What every command has at hand.

use anyhow::{Context, Result};

use crate::api::client::{Client, ClientError};
use crate::config::Config;
use crate::exit::{Code, Failure};
use crate::host::Host;
use crate::machine::record::MachineRecord;
use crate::machine::settings::under_profile;
use crate::name::MachineName;
use crate::output::Output;
use crate::paths::{MachinePaths, Paths};

/// The machine a command is about, and how to print.
#[derive(Debug)]
pub struct CommandContext {
    /// The machine's name.
    pub name: MachineName,
    /// All paths.
    pub paths: Paths,
    /// The machine's.
    pub machine: MachinePaths,
    /// How results are printed.
    pub output: Output,
}

impl CommandContext {
    /// For the machine `name`.
    pub fn new(name: MachineName, json: bool) -> Result<CommandContext> {
        let paths = Paths::from_env().map_err(|error| Failure::wrap(Code::Usage, error))?;
        Ok(CommandContext {
            machine: paths.machine(&name),
            name,
            paths,
            output: Output { json },
        })
    }

    /// The same for another machine.
    pub fn other(&self, name: MachineName) -> CommandContext {
        CommandContext {
            machine: self.paths.machine(&name),
            name,
            paths: self.paths.clone(),
            output: self.output,
        }
    }

    /// The configuration. A wrong one is an error of usage.
    pub fn config(&self) -> Result<Config> {
        Config::load(&self.paths.config_file()).map_err(|error| Failure::wrap(Code::Usage, error))
    }

    /// The configuration as the machine's profile has it.
    pub fn machine_config(&self) -> Result<Config> {
        let chosen = self.record()?.map(|record| record.chosen).unwrap_or_default();
        under_profile(&chosen, &self.config()?, &Host::detect())
            .map_err(|error| Failure::wrap(Code::Usage, error))
    }

    /// The machine's record; none when there is no machine.
    pub fn record(&self) -> Result<Option<MachineRecord>> {
        Ok(MachineRecord::load(&self.machine.record())?)
    }

    /// The machine's daemon.
    pub fn client(&self) -> Client {
        Client::new(&self.machine.api_socket())
    }

    /// What an error of the client means for the exit code: a machine without a daemon is not running.
    pub fn client_error(&self, error: ClientError) -> anyhow::Error {
        match error {
            ClientError::NoDaemon => Failure::because(
                Code::NotRunning,
                format!(
                    "the machine {} is not running; start it with `{}`",
                    self.name,
                    self.command("start")
                ),
            ),
            ClientError::Refused { status, .. } if status == hyper::StatusCode::CONFLICT => {
                Failure::wrap(Code::NotRunning, error)
            }
            error => error.into(),
        }
    }

    /// A berth command for this machine, as the user would type it.
    pub fn command(&self, command: &str) -> String {
        if self.name.is_default() {
            format!("berth {command}")
        } else {
            format!("berth {command} -m {}", self.name)
        }
    }
}

/// Runs `future` to its end, on threads enough for a command.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?
        .block_on(future)
}
