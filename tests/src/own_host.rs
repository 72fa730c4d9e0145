//! A host of a test's own, whose name servers and files in `/etc` are what the test says.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::name_server::NameServer;
use crate::namespace::Namespace;

/// Its `/etc` is its own copy, without a resolv.conf and hosts, and it has no network to begin with, not even a loopback.
pub struct Host {
    /// Where its programs run.
    pub space: Namespace,
    dir: TempDir,
}

impl Host {
    /// Makes one.
    ///
    /// # Errors
    /// When this host does not allow it.
    pub fn new() -> Result<Host> {
        let dir = tempfile::tempdir().context("cannot make a directory")?;
        // Some of it is for root only.
        let space = Namespace::without_network_but(&format!(
            "cp -a /etc {0}/etc 2>/dev/null || true\nrm -f {0}/etc/resolv.conf {0}/etc/hosts\nmount --bind {0}/etc /etc\n",
            dir.path().display()
        ))?;
        Ok(Host { space, dir })
    }

    /// Where a file of its `/etc` is on this host.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("etc").join(name)
    }

    /// Writes one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.file(name), text).with_context(|| format!("cannot write the host's {name}"))
    }

    /// Starts a name server on it, as [`NameServer::start`] does.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn name_server(&self, address: &str, names: &str) -> Result<NameServer> {
        let file = self.dir.path().join(address);
        NameServer::start(&self.space.prefix(), address, file, names)
    }
}
