//! virtiofsd, beside berth's own server in the same machine: QEMU is started with its device as well, which the guest's Docker
//! mounts as a volume.

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

/// Runs QEMU with this device in the place of the random number generator: a microvm has room for eight, and Linux gets on without.
fn script(qemu: &Path, socket: &Path) -> String {
    format!(
        "#!/bin/sh\n\
         for word; do\n\
         \x20   shift\n\
         \x20   if [ \"$word\" = virtio-rng-device ]; then\n\
         \x20       set -- \"$@\" vhost-user-fs-device,chardev=beside,tag={TAG},queue-size=1024 \\\n\
         \x20           -chardev socket,id=beside,path={}\n\
         \x20   else\n\
         \x20       set -- \"$@\" \"$word\"\n\
         \x20   fi\n\
         done\n\
         exec {} \"$@\"\n",
        socket.display(),
        qemu.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Program;

    #[test]
    fn one_word_is_another_and_the_others_are_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        fs::write(&path, script(Path::new("printf '<%s>'"), Path::new("/socket"))).unwrap();
        let said = |words: &[&str]| Program::new("sh").arg(&path).args(words).ok().unwrap();
        assert_eq!(said(&["--version"]), "<--version>");
        assert_eq!(
            said(&["-a", "b  c", "-device", "virtio-rng-device", "-d", ""]),
            "<-a><b  c><-device><vhost-user-fs-device,chardev=beside,tag=virtiofsd,queue-size=1024>\
             <-chardev><socket,id=beside,path=/socket><-d><>"
        );
    }
}
