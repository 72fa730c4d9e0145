//! Programs of another Debian release than the host's, or the host's own.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::program::Program;

/// Where programs are taken from.
pub(in crate::bench) struct Tools {
    root: Option<PathBuf>,
}

impl Tools {
    /// Those of an unpacked Debian root, or else the host's.
    pub(in crate::bench) fn new(root: Option<PathBuf>) -> Tools {
        Tools { root }
    }

    /// A program by its path in a Debian root. Its own loader and libraries start it from anywhere, without chroot.
    pub(super) fn program(&self, path: &str) -> Program {
        match &self.root {
            None => Program::new(Path::new("/").join(path)),
            Some(root) => Program::new(root.join("lib64/ld-linux-x86-64.so.2"))
                .arg("--library-path")
                .arg(root.join("usr/lib/x86_64-linux-gnu"))
                .arg(root.join(path)),
        }
    }

    /// QEMU, which must be told where its firmware is.
    pub(super) fn qemu(&self) -> Program {
        let mut program = self.program("usr/bin/qemu-system-x86_64");
        if let Some(root) = &self.root {
            for firmware in ["usr/share/qemu", "usr/share/seabios"] {
                program = program.arg("-L").arg(root.join(firmware));
            }
        }
        program
    }

    /// The first line of what a program says of itself.
    pub(super) fn version(&self, path: &str) -> Result<String> {
        let text = self.program(path).arg("--version").ok()?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}
