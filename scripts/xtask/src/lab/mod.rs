//! The lab: an outer virtual machine in which /dev/kvm is real, for machines whose own KVM is missing or unusable.
//!
//! QEMU's TCG emulates an AMD CPU with SVM and nested paging; kvm-amd loads in it, and any KVM program runs unchanged,
//! only slowly. `docs/lab.md` has what was measured and the traps. The parts:
//! [`root`] makes the outer machine's system (once, cached), [`initramfs`] what starts it, [`payload`] the disk with
//! what this run brings along, [`qemu`] the command line, and [`run`] one run from start to exit code.

pub(crate) mod clock;
mod initramfs;
mod payload;
mod qemu;
mod root;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::Output;
use crate::cache::Existing;

/// `xtask lab`.
#[derive(Debug, Args)]
pub(crate) struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Make the outer machine's system, if the cache does not have it, and print its directory
    Build {
        /// Make it again even if it is there
        #[arg(long)]
        force: bool,
    },
    /// Run a command where /dev/kvm is real; exits with the command's own code (124 after a timeout)
    Run(RunArgs),
}

/// `xtask lab run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// CPUs of the outer machine; with more than one, machines in it fail without a fault of theirs (docs/lab.md)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    smp: u8,
    /// Memory of the outer machine in MiB
    #[arg(long, default_value_t = 4096, value_name = "MiB", value_parser = clap::value_parser!(u32).range(512..=262_144))]
    memory: u32,
    /// Seconds of real time after which the run is ended with code 124
    #[arg(long, default_value_t = 3600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Count instructions instead of real time, on one CPU: figures that repeat
    #[arg(long, conflicts_with = "smp")]
    icount: bool,
    /// Run the command as root instead of as a user who may open /dev/kvm
    #[arg(long)]
    root: bool,
    /// Set an environment variable for the command
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = parse_variable)]
    variables: Vec<(String, String)>,
    /// Take the built programs from here [default: the release directory of the cargo target directory, else debug]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Take the guest kernel and image from here [default: $BERTH_GUEST_DIR, else what `xtask install` installed]
    #[arg(long, value_name = "DIR")]
    guest_dir: Option<PathBuf>,
    /// Bring a file or directory along as /payload/NAME, or under another name with PATH=NAME
    #[arg(long = "payload", value_name = "PATH[=NAME]")]
    extra: Vec<String>,
    /// Copy what the command leaves in $LAB_ARTIFACTS into this directory
    #[arg(long, value_name = "DIR")]
    artifacts: Option<PathBuf>,
    /// Add to the outer machine's kernel command line, for example `kvm_amd.npt=0`
    #[arg(long, value_name = "PARAMETERS", allow_hyphen_values = true)]
    append: Option<String>,
    /// Show the outer machine's console on stderr
    #[arg(long)]
    console: bool,
    /// The command and its arguments; programs of the tree are found by name
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs `xtask lab …`.
///
/// # Errors
/// When the lab itself fails; the exit code of a command that ran is not an error but the returned code.
pub(crate) fn run(args: &LabArgs, output: Output) -> Result<ExitCode> {
    match &args.command {
        LabCommand::Build { force } => {
            let root = root::LabRoot::obtain(if *force { Existing::Replace } else { Existing::Keep })?;
            output.result(root.dir(), || serde_json::json!({ "lab": root.dir() }));
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Run(args) => {
            let root = root::LabRoot::obtain(Existing::Keep)?;
            let contents =
                payload::Contents::choose(args.bin_dir.clone(), args.guest_dir.clone(), &args.extra)?;
            let machine = qemu::Machine {
                cpus: if args.icount { 1 } else { args.smp },
                memory_mib: args.memory,
                count_instructions: args.icount,
                append: args.append.clone(),
            };
            let job = run::Job {
                command: args.command.clone(),
                variables: args.variables.clone(),
                as_root: args.root,
                timeout: Duration::from_secs(args.timeout),
                artifacts: args.artifacts.clone(),
                show_console: args.console,
            };
            run::run(&root, &machine, &contents, &job)
        }
    }
}

/// The unpacked part of the lab's Debian root, whose programs run here with their own loader; made if the cache does not
/// have it.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn tools() -> Result<PathBuf> {
    Ok(root::LabRoot::obtain(Existing::Keep)?.tools(""))
}

fn parse_variable(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) if is_variable_name(name) => Ok((name.to_owned(), value.to_owned())),
        _ => bail!("{text:?} is not of the form NAME=VALUE"),
    }
}

fn is_variable_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_needs_a_name_a_shell_accepts() {
        assert_eq!(
            parse_variable("A_1=b=c").unwrap(),
            ("A_1".to_owned(), "b=c".to_owned())
        );
        assert_eq!(parse_variable("A=").unwrap(), ("A".to_owned(), String::new()));
        for bad in ["A", "=x", "1A=x", "A-B=x", "A;B=x"] {
            assert!(parse_variable(bad).is_err(), "{bad}");
        }
    }
}
