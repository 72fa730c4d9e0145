//! The host's half: trees, servers, the machine, the table.

pub(in crate::bench) mod fixture;
mod initramfs;
mod machine;
mod results;
pub(in crate::bench) mod servers;
pub(in crate::bench) mod tools;

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use super::plan::{Contender, Group, Plan};
use crate::options::{guest_dir, on_path};
use fixture::Fixture;
use machine::Machine;
use results::Results;
use servers::{Server, ServerOptions};
use tools::Tools;

/// Options of `bench files`.
#[derive(Debug, Clone, Args)]
pub struct FilesArgs {
    /// Small sizes and one round: whether it works, and which way things go
    #[arg(long)]
    quick: bool,
    /// How often everything is measured
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Only these groups of rows
    #[arg(long, value_delimiter = ',', value_name = "GROUP,…")]
    only: Vec<Group>,
    /// Only these file systems
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    on: Vec<Contender>,
    /// MiB of the large file
    #[arg(long, value_name = "MiB", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    size: Option<u32>,
    /// Virtual CPUs
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    cpus: u8,
    /// MiB of memory
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(256..))]
    memory: u32,
    /// Threads of each server's queues; as many in all servers
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=64))]
    threads: u16,
    /// Another option for berth-fileshare
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    berth_option: Vec<String>,
    /// Another option for virtiofsd
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    virtiofsd_option: Vec<String>,
    /// Further words for the guest kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// The unpacked Debian root to run QEMU, virtiofsd and mke2fs from [default: the host's own programs]
    #[arg(long, value_name = "DIR")]
    tools: Option<PathBuf>,
    /// The directory with the guest's kernel [default: $BERTH_GUEST_DIR, else the installed one]
    #[arg(long, value_name = "DIR")]
    guest_dir: Option<PathBuf>,
    /// berth's server [default: beside this program]
    #[arg(long, value_name = "PATH")]
    fileshare: Option<PathBuf>,
    /// The guest's program, which must be static [default: bench-guest beside this program]
    #[arg(long, value_name = "PATH")]
    guest_program: Option<PathBuf>,
    /// Where to make the trees and the guest's disk; not a tmpfs [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep what the servers and the guest's console said here
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What the results were measured with.
#[derive(Debug, Clone, Serialize)]
struct Setting {
    /// QEMU's version.
    qemu: String,
    /// virtiofsd's version.
    virtiofsd: String,
    /// Virtual CPUs.
    cpus: u8,
    /// The guest's memory in MiB.
    memory_mib: u32,
    /// Each server's command line.
    servers: Vec<String>,
    /// The guest's kernel.
    kernel: String,
    /// The git in the guest.
    git: Option<String>,
}

/// Runs `bench files`.
///
/// # Errors
/// When something it needs is missing, or a part of the work fails on one of the file systems.
pub fn run(args: &FilesArgs) -> Result<()> {
    let tools = Tools::new(args.tools.clone());
    let mut plan = args.plan();
    let guest_program = args.beside(args.guest_program.as_ref(), "bench-guest")?;
    let fileshare = args.beside(args.fileshare.as_ref(), "berth-fileshare")?;
    let kernel = guest_dir(args.guest_dir.as_deref())?.join("vmlinux");
    let dir = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    }
    .context("cannot make a directory")?;
    if let Some(logs) = &args.logs {
        fs::create_dir_all(logs).with_context(|| format!("cannot make {}", logs.display()))?;
    }

    eprintln!("making the trees");
    let has_git = on_path("git").is_some();
    if !has_git {
        eprintln!("there is no git on this host, so none in the guest: no rows of git status");
        plan.groups.retain(|group| *group != Group::Git);
    }
    let fixture = Fixture::make(dir.path(), &plan)?;
    let archive = fixture.archive(&plan)?;
    let initramfs = initramfs::make(dir.path(), &guest_program, &archive, has_git, &plan)?;
    let mut servers = Vec::new();
    for contender in plan.contenders.iter().filter(|it| **it != Contender::Ext4) {
        let share = fixture.copy_for(*contender)?;
        let options = ServerOptions {
            contender: *contender,
            share: &share,
            socket: dir.path().join(format!("{}.sock", contender.name())),
            threads: args.threads,
            queues: if *contender == Contender::Berth {
                u16::from(args.cpus)
            } else {
                // virtiofsd has no more.
                1
            },
            more: if *contender == Contender::Berth {
                &args.berth_option
            } else {
                &args.virtiofsd_option
            },
        };
        servers.push(Server::start(&options, &fileshare, &tools)?);
    }
    let disk = match plan.contenders.contains(&Contender::Ext4) {
        true => Some(fixture.disk(&tools)?),
        false => None,
    };
    let machine = Machine {
        kernel: &kernel,
        initramfs: &initramfs,
        append: &args.append,
        disk: disk.as_deref(),
        cpus: args.cpus,
        memory_mib: args.memory,
        console: dir.path().join("console"),
    };
    let mut results = Results::new(plan);
    let run = machine.run(&tools, &servers, &mut results);
    if let Some(logs) = &args.logs {
        for server in &servers {
            let log = logs.join(format!("{}.log", server.contender.name()));
            fs::write(&log, server.said()).with_context(|| format!("cannot write {}", log.display()))?;
        }
        // It is not there when QEMU did not start.
        let _ = fs::copy(&machine.console, logs.join("console.log"));
    }
    let guest = run?;
    let setting = Setting {
        qemu: tools.version("usr/bin/qemu-system-x86_64")?,
        virtiofsd: tools.version("usr/libexec/virtiofsd")?,
        cpus: args.cpus,
        memory_mib: args.memory,
        servers: servers.iter().map(|server| server.line.clone()).collect(),
        kernel: guest.kernel,
        git: guest.git,
    };
    args.present(&setting, &results)
}

impl FilesArgs {
    fn plan(&self) -> Plan {
        let mut plan = if self.quick { Plan::quick() } else { Plan::full() };
        plan.rounds = self.rounds.unwrap_or(plan.rounds);
        plan.large_mib = self.size.unwrap_or(plan.large_mib);
        plan.groups
            .retain(|group| self.only.is_empty() || self.only.contains(group));
        plan.contenders
            .retain(|contender| self.on.is_empty() || self.on.contains(contender));
        plan
    }

    fn beside(&self, named: Option<&PathBuf>, name: &str) -> Result<PathBuf> {
        let path = match named {
            Some(path) => path.clone(),
            None => env::current_exe()
                .context("cannot tell where this program is")?
                .with_file_name(name),
        };
        path.canonicalize().with_context(|| {
            format!(
                "cannot find {}; `cargo run -p xtask -- bench-files` builds it",
                path.display()
            )
        })
    }

    fn present(&self, setting: &Setting, results: &Results) -> Result<()> {
        let mut text = serde_json::to_string_pretty(&results.json(setting))
            .context("cannot write the results as JSON")?;
        text.push('\n');
        if let Some(path) = &self.output {
            fs::write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if self.json {
            print!("{text}");
        } else {
            print!("{}", results.table());
        }
        Ok(())
    }
}
