//! Serves one directory as a virtio-fs device over vhost-user, to any VMM: takes virtiofsd's basic options.
//!
//! As virtiofsd does, it serves the one front end that connects and ends when that disconnects.

mod options;
mod socket;

use std::{path::Path, process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::Parser;
use fileshare::{
    passthrough::{Passthrough, ShareConfig},
    server::Server,
};
use fileshare_virtio::{
    VirtioFs, VirtioFsConfig,
    confine::{Area, Confinement, Fence},
};
use vmm::vhost_user::VhostUserServer;

use options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_max_level(options.log_level)
        .with_writer(std::io::stderr)
        .init();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-fileshare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let listener = match (&options.socket_path, options.fd) {
        (Some(path), _) => socket::bind(path)?,
        (None, Some(fd)) => socket::inherited(fd)?,
        (None, None) => anyhow::bail!("give --socket-path or --fd"),
    };
    raise_open_files(options.rlimit_nofile)?;
    let root = &options.shared_dir;
    // All threads inherit it, and the passthrough finds out what is left to it.
    confine(root, options)?;
    let mut share = ShareConfig::new(root);
    share.read_only = options.readonly;
    let passthrough = Passthrough::single(share, options.passthrough())
        .with_context(|| format!("cannot share {}", root.display()))?;
    for warning in passthrough.warnings() {
        tracing::warn!("{warning}");
    }
    let device = VirtioFs::new(
        VirtioFsConfig {
            tag: options.tag.clone(),
            request_queues: options.num_request_queues,
            threads_per_queue: options.thread_pool_size.max(1),
        },
        Arc::new(Server::new(Arc::new(passthrough))),
    )?;
    let server = if options.tag.is_empty() {
        VhostUserServer::spawn_without_config("fs", listener, Box::new(device))
    } else {
        VhostUserServer::spawn("fs", listener, Box::new(device))
    }?;
    server.wait()?;
    tracing::info!("the front end has gone");
    Ok(())
}

/// As many as the user wants, or may have.
fn raise_open_files(wanted: Option<u64>) -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let limit = match wanted {
        Some(0) => return Ok(()),
        Some(wanted) => Some(wanted),
        None => maximum,
    };
    if limit == current {
        return Ok(());
    }
    let new = Rlimit {
        current: limit,
        // Above the hard limit only root gets.
        maximum: match (maximum, limit) {
            (Some(maximum), Some(limit)) => Some(maximum.max(limit)),
            _ => None,
        },
    };
    match (setrlimit(Resource::Nofile, new), wanted) {
        (Err(error), Some(wanted)) => Err(error).with_context(|| format!("cannot allow {wanted} open files")),
        (Err(error), None) => {
            tracing::warn!(%error, "the limit of open files could not be raised");
            Ok(())
        }
        (Ok(()), _) => Ok(()),
    }
}

fn confine(root: &Path, options: &Options) -> anyhow::Result<()> {
    if let Some(sandbox) = options.sandbox {
        tracing::info!(
            ?sandbox,
            "accepted and without effect: confinement is by openat2 and landlock, which need no privileges"
        );
    }
    let area = Area {
        root,
        read_only: options.readonly,
    };
    match Fence::new([area])?.enter()? {
        Confinement::Full | Confinement::Partial => {
            tracing::info!(directory = %root.display(), "confined by landlock");
        }
        Confinement::None => tracing::warn!(
            directory = %root.display(),
            "this kernel has no landlock, or an old one: only the way names are resolved (openat2) confines the guest"
        ),
    }
    Ok(())
}
