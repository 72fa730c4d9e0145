//! What the outer machine's kernel starts: busybox, the few modules it takes to reach the root, and `init.sh`.
//!
//! Debian's own initramfs probes hardware and waits for udev, which is most of a boot under emulation; this one knows
//! what the machine has.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What it takes to reach the root; their dependencies come along.
const MODULES: &[&str] = &["virtio_blk", "erofs", "overlay"];

const INIT: &str = include_str!("init.sh");

/// Everything of ours that the initramfs is made from.
pub(super) fn inputs() -> String {
    format!("{}\n{INIT}", MODULES.join("\n"))
}

/// Returns the initramfs as an uncompressed cpio archive.
///
/// # Errors
/// When busybox or a module is missing, or `xz` cannot unpack one.
pub(super) fn make(busybox: &Path, modules: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "modules", "proc", "root", "sys"] {
        archive.directory(dir);
    }
    let busybox = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    archive.file("bin/busybox", 0o755, &busybox);
    archive.file("init", 0o755, INIT.as_bytes());
    let index = modules.join("modules.dep");
    let index = fs::read_to_string(&index).with_context(|| format!("cannot read {}", index.display()))?;
    for (position, module) in load_order(&index, MODULES)?.into_iter().enumerate() {
        let stem = module
            .rsplit('/')
            .next()
            .and_then(|name| name.split('.').next())
            .unwrap_or(module);
        let content = unpacked_module(&modules.join(module))?;
        // init loads them in the order of their names.
        archive.file(&format!("modules/{position:02}-{stem}.ko"), 0o644, &content);
    }
    Ok(archive.finish())
}

/// The files of the named modules and of everything they depend on, each after what it needs, from the text of
/// `modules.dep`: a line per module, `FILE: DEPENDENCY…`, in which what is to be loaded first stands last.
fn load_order<'a>(index: &'a str, names: &[&str]) -> Result<Vec<&'a str>> {
    let mut order: Vec<&str> = Vec::new();
    for name in names {
        let line = index
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(file, _)| file.rsplit('/').next().and_then(|file| file.split('.').next()) == Some(name));
        let Some((file, dependencies)) = line else {
            bail!("the kernel has no module {name}");
        };
        for file in dependencies.split_whitespace().rev().chain([file]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    Ok(order)
}

/// Reads a module, unpacking it when the distribution compresses its modules.
fn unpacked_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .context("cannot run xz; on Debian: apt install xz-utils")?;
    if !output.status.success() {
        bail!(
            "cannot unpack {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(output.stdout)
}

/// A cpio archive in the "newc" form, which is what the kernel unpacks
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | mode, content);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // Inode, mode, uid, gid, links, mtime, size, four device numbers, name length with its NUL, checksum (unused).
        let fields: [u32; 13] = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).expect("nothing here is near 4 GiB"),
            0,
            0,
            0,
            0,
            u32::try_from(name.len() + 1).expect("names are short"),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_loaded_after_what_they_need_and_once() {
        let index = "k/fs/erofs/erofs.ko.xz: k/lib/b.ko.xz k/lib/a.ko.xz\nk/lib/a.ko.xz:\n\
                     k/lib/b.ko.xz: k/lib/a.ko.xz\nk/x/virtio_blk.ko.xz: k/lib/a.ko.xz\n";

        let order = load_order(index, &["virtio_blk", "erofs"]).unwrap();

        assert_eq!(
            order,
            [
                "k/lib/a.ko.xz",
                "k/x/virtio_blk.ko.xz",
                "k/lib/b.ko.xz",
                "k/fs/erofs/erofs.ko.xz"
            ]
        );
        assert!(load_order(index, &["overlay"]).is_err());
    }

    #[test]
    fn an_archive_has_the_layout_the_kernel_expects() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"hello");
        let bytes = archive.finish();

        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081ed", "mode");
        assert_eq!(&bytes[54..62], b"00000005", "size");
        assert_eq!(&bytes[94..102], b"00000005", "length of the name with its NUL");
        assert_eq!(&bytes[110..115], b"init\0");
        // 110 + 5 = 115, padded to 116; 5 bytes of content padded to 124, where the next header starts.
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }
}
