//! virtiofsd, beside berth's own server in the same machine: QEMU is started with a device more, which the guest's Docker mounts
//! as a volume.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::bench::files::host::servers::{Server, ServerOptions};
use crate::bench::files::host::tools::Tools;
use crate::bench::files::plan::Contender;
use crate::machine::Machine;
use crate::options::on_path;

const QEMU: &str = "qemu-system-x86_64";
/// The device's tag, and the volume's name.
pub(super) const TAG: &str = "virtiofsd";
/// As many as berth's server has with one virtual CPU and the settings that come with it.
const THREADS: u16 = 4;

/// virtiofsd with a directory of its own, and a QEMU that gives it to the guest.
pub(super) struct Beside {
    dir: TempDir,
    _server: Server,
}

impl Beside {
    /// Starts virtiofsd (`cache=auto`) from a Debian root.
    pub(super) fn start(tools: &Path) -> Result<Beside> {
        let dir = tempfile::Builder::new()
            .prefix("bt-")
            .tempdir()
            .context("cannot make a directory")?;
        let (share, programs) = (dir.path().join("share"), dir.path().join("bin"));
        for path in [&share, &programs] {
            fs::create_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let options = ServerOptions {
            contender: Contender::VirtiofsdAuto,
            share: &share,
            socket: dir.path().join("socket"),
            threads: THREADS,
            // It has no more.
            queues: 1,
            more: &[],
        };
        let server = Server::start(&options, Path::new(""), &Tools::new(Some(tools.to_owned())))?;
        let qemu = on_path(QEMU).with_context(|| format!("there is no {QEMU}"))?;
        let wrapper = programs.join(QEMU);
        fs::write(&wrapper, script(&qemu, &options.socket))
            .and_then(|()| fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", wrapper.display()))?;
        Ok(Beside { dir, _server: server })
    }

    /// The path on which that QEMU is found first.
    pub(super) fn path(&self) -> Result<OsString> {
        let others = env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(self.dir.path().join("bin")).chain(env::split_paths(&others));
        env::join_paths(all).context("PATH cannot have another directory")
    }

    /// Makes the volume that is on it.
    pub(super) fn make_volume(machine: &Machine) -> Result<()> {
        machine
            .docker(["volume", "create", "--driver", "local"])
            .args(["-o", "type=virtiofs", "-o", &format!("device={TAG}"), TAG])
            .ok()
            .map(drop)
    }
}

/// Runs QEMU with one device more. Its arguments may be there to ask for its version only.
fn script(qemu: &Path, socket: &Path) -> String {
    format!(
        "#!/bin/sh\nexec {} \"$@\" -chardev socket,id=beside,path={} \\\n    -device vhost-user-fs-device,chardev=beside,tag={TAG},queue-size=1024\n",
        qemu.display(),
        socket.display()
    )
}
