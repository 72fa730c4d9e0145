//! Which of the machine's CPUs are online, and changing that while containers run.
//!
//! A machine starts with all the CPUs that it may ever have. Those it is not to have now are taken offline: Linux moves
//! their work to the others and halts them, and a halted virtual CPU takes nothing of the host. `nproc`, `docker info` and
//! `/proc/cpuinfo` show those that are online.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

/// Where the kernel has them.
const ROOT: &str = "/sys/devices/system/cpu";

/// Has the first `count` CPUs online and the others not; returns when it is so.
pub(crate) async fn set_online(count: u32) -> anyhow::Result<()> {
    // Moving a CPU's work elsewhere takes the kernel some milliseconds, and more when the machine is emulated.
    tokio::task::spawn_blocking(move || set_online_in(Path::new(ROOT), count))
        .await
        .context("the thread that changes CPUs failed")?
}

/// The CPUs that are online.
pub(crate) fn online() -> anyhow::Result<Vec<u32>> {
    read_list(&Path::new(ROOT).join("online"))
}

fn set_online_in(root: &Path, count: u32) -> anyhow::Result<()> {
    let present = read_list(&root.join("present"))?;
    let most = present.len();
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    ensure!(
        (1..=most).contains(&count),
        "the machine cannot have {count} CPUs online: it was started with {most}"
    );
    let online = read_list(&root.join("online"))?;
    let (wanted, others) = present.split_at(count);
    // First those that come, so that there is always one to go on with.
    let come = wanted
        .iter()
        .filter(|cpu| !online.contains(cpu))
        .map(|cpu| (cpu, "1"));
    let go = others
        .iter()
        .filter(|cpu| online.contains(cpu))
        .map(|cpu| (cpu, "0"));
    for (cpu, value) in come.chain(go) {
        let file = root.join(format!("cpu{cpu}/online"));
        let what = if value == "1" { "on" } else { "off" };
        fs::write(&file, value).with_context(|| format!("cannot take CPU {cpu} {what}line"))?;
    }
    Ok(())
}

fn read_list(path: &Path) -> anyhow::Result<Vec<u32>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse_list(&text).with_context(|| format!("cannot understand {}: {text:?}", path.display()))
}

/// The CPUs that a list such as `0-3,6` names.
fn parse_list(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // What no kernel has (CONFIG_NR_CPUS) is no list of a kernel's.
        if first > last || last > 0xffff {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with four CPUs, of which these are online.
    fn machine(online: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("present"), "0-3\n").unwrap();
        fs::write(root.path().join("online"), online).unwrap();
        // The first has no such file where it cannot go.
        for cpu in 1..4 {
            let dir = root.path().join(format!("cpu{cpu}"));
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("online"), "").unwrap();
        }
        root
    }

    fn written(root: &tempfile::TempDir) -> Vec<String> {
        (1..4)
            .map(|cpu| fs::read_to_string(root.path().join(format!("cpu{cpu}/online"))).unwrap())
            .collect()
    }

    #[test]
    fn only_what_changes_is_written_and_the_first_cpu_never() {
        let root = machine("0-3\n");
        set_online_in(root.path(), 4).unwrap();
        assert_eq!(written(&root), ["", "", ""]);
        set_online_in(root.path(), 2).unwrap();
        assert_eq!(written(&root), ["", "0", "0"]);
        let root = machine("0,2\n");
        set_online_in(root.path(), 2).unwrap();
        assert_eq!(written(&root), ["1", "0", ""]);
    }

    #[test]
    fn more_or_fewer_than_there_are_is_refused() {
        let root = machine("0-3\n");
        for count in [0, 5, u32::MAX] {
            let error = set_online_in(root.path(), count).unwrap_err().to_string();
            assert!(error.contains("started with 4"), "{error}");
        }
        assert_eq!(written(&root), ["", "", ""]);
    }

    #[test]
    fn what_the_kernel_refuses_names_the_cpu() {
        let root = machine("0-3\n");
        fs::remove_dir_all(root.path().join("cpu3")).unwrap();
        let error = set_online_in(root.path(), 1).unwrap_err().to_string();
        assert_eq!(error, "cannot take CPU 3 offline");
    }

    #[test]
    fn lists_are_read() {
        assert_eq!(parse_list("0\n"), Some(vec![0]));
        assert_eq!(parse_list("0-3,6,8-9\n"), Some(vec![0, 1, 2, 3, 6, 8, 9]));
        for list in ["3-0", "", "0-4294967295", "x"] {
            assert_eq!(parse_list(list), None, "{list}");
        }
    }
}
