//! Configuring and compiling the kernel in a scratch directory.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::Configuration;
use super::kconfig::DotConfig;
use super::source::Source;
use crate::cache::Cache;
use crate::command;
use crate::progress::{self, Counter};

/// Parts of a source tarball that no build of ours reads; leaving them out saves a third of the unpacking.
const UNUSED: [&str; 5] = [
    "*/Documentation/*/*",
    "*/drivers/gpu/drm/amd/include/*",
    "*/tools/testing/*",
    "*/sound/soc/*/*.c",
    "*/.git/*",
];

/// What makes the compiler quicker and changes nothing in what it makes: no warnings (the kernel's developers read those;
/// looking for them is a tenth of its time), no record of where each token of a macro came from (a third of the time of
/// reading headers, which is most of a file's), and no collecting of garbage in a process that lives for half a second.
const COMPILER_FLAGS: &str =
    "-w -ftrack-macro-expansion=0 --param=ggc-min-expand=1000 --param=ggc-min-heapsize=1000000";

/// Puts `vmlinux`, `config` and `build.json` (what the build took) into `product`.
///
/// # Errors
/// When unpacking, configuring or compiling fails, or an option of the configuration did not survive.
pub(super) fn build(
    configuration: &Configuration,
    source: &Source,
    cache: &Cache,
    name: &str,
    product: &Path,
) -> Result<()> {
    let log = cache.log_file(name)?;
    fs::write(&log, "").with_context(|| format!("cannot write the log {}", log.display()))?;
    let scratch = cache.scratch(&format!(".build-{name}"))?;
    let start = Instant::now();
    let cpu_before = children_cpu_seconds()?;

    let out = scratch.path().join("out");
    fs::create_dir(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let tree = match source {
        Source::Tree(path) => {
            progress::note("a source tree is built as it is, without the patches in kernel-config/patches");
            path.clone()
        }
        Source::Tarball(path) => {
            let tree = scratch.path().join("linux");
            fs::create_dir(&tree).with_context(|| format!("cannot create {}", tree.display()))?;
            let mut tar = Command::new("tar");
            tar.args(["--extract", "--strip-components=1", "--wildcards"]);
            tar.args(UNUSED.iter().map(|pattern| format!("--exclude={pattern}")));
            tar.arg("--directory").arg(&tree).arg("--file").arg(path);
            command::logged(&mut tar, &log, |_| {})?;
            configuration.patches.apply(&tree, &log)?;
            tree
        }
    };

    let fragment = out.join("fragment");
    fs::write(&fragment, &configuration.text)
        .with_context(|| format!("cannot write {}", fragment.display()))?;
    // As `make tinyconfig` does it: everything off, except what the named file turns on.
    command::logged(
        make(&tree, &out)
            .arg("allnoconfig")
            .env("KCONFIG_ALLCONFIG", &fragment),
        &log,
        |_| {},
    )?;
    command::logged(make(&tree, &out).arg("olddefconfig"), &log, |_| {})?;
    let config = out.join(".config");
    let text = fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))?;
    configuration.verify(&DotConfig::parse(&text))?;

    let mut objects = Counter::new("kernel: steps done");
    let jobs = available_parallelism().map_or(1, usize::from);
    command::logged(
        make(&tree, &out).arg(format!("-j{jobs}")).arg("vmlinux"),
        &log,
        |_| objects.tick(),
    )?;
    drop(objects);

    let vmlinux = product.join("vmlinux");
    let built = out.join("vmlinux");
    fs::copy(&built, &vmlinux)
        .with_context(|| format!("cannot copy {} to {}", built.display(), vmlinux.display()))?;
    // The symbol table is for debuggers only: the kernel has its own (kallsyms). A smaller file starts sooner.
    command::logged(
        Command::new("strip")
            .args(["--strip-all", "--preserve-dates"])
            .arg(&vmlinux),
        &log,
        |_| {},
    )?;
    fs::copy(&config, product.join("config")).context("cannot keep the kernel's configuration")?;
    let release =
        fs::read_to_string(out.join("include/config/kernel.release")).context("cannot read the release")?;
    let size = fs::metadata(&vmlinux)
        .with_context(|| format!("cannot stat {}", vmlinux.display()))?
        .len();
    let cpu_seconds = children_cpu_seconds()? - cpu_before;
    let seconds = start.elapsed().as_secs_f64();
    let facts = json!({
        "release": release.trim(),
        "size": size,
        "cpu_minutes": round(cpu_seconds / 60.0),
        "wall_minutes": round(seconds / 60.0),
    });
    fs::write(product.join("build.json"), format!("{facts:#}\n")).context("cannot write build.json")?;
    progress::note(&format!(
        "kernel {}: {:.1} MiB, {:.1} CPU minutes, {:.1} minutes",
        release.trim(),
        size as f64 / f64::from(1 << 20),
        cpu_seconds / 60.0,
        seconds / 60.0
    ));
    Ok(())
}

/// The kernel's `make`, free of everything in the environment that could change its output.
fn make(tree: &Path, out: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(tree)
        .arg(format!("O={}", out.display()))
        .arg("ARCH=x86_64");
    for variable in [
        "MAKEFLAGS",
        "MFLAGS",
        "MAKELEVEL",
        "KAFLAGS",
        "CROSS_COMPILE",
        "LOCALVERSION",
        "LLVM",
    ] {
        make.env_remove(variable);
    }
    make.envs([
        ("LC_ALL", "C"),
        ("KCFLAGS", COMPILER_FLAGS),
        ("KBUILD_BUILD_TIMESTAMP", "2025-01-01 00:00:00 UTC"),
        ("KBUILD_BUILD_USER", "berth"),
        ("KBUILD_BUILD_HOST", "berth"),
        ("KBUILD_BUILD_VERSION", "1"),
    ]);
    make
}

/// CPU time of all finished child processes of this one, from `/proc/self/stat` (proc(5): cutime and cstime).
fn children_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    match child_ticks(&stat) {
        Some(ticks) => Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64),
        None => bail!("cannot find the times of child processes in /proc/self/stat"),
    }
}

/// Fields 16 and 17, counted from after the program's name, which may itself contain spaces and parentheses.
fn child_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(13);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

fn round(minutes: f64) -> f64 {
    (minutes * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_times_are_found_behind_an_awkward_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 70 8 20 0 1 0 100 0 0";

        assert_eq!(child_ticks(stat), Some(78));
        assert_eq!(child_ticks("7 (x) S 1"), None);
    }

    #[test]
    fn cpu_time_of_a_child_is_counted() {
        let before = children_cpu_seconds().unwrap();
        let status = Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"])
            .status();
        assert!(status.unwrap().success());

        assert!(children_cpu_seconds().unwrap() > before);
    }
}
