//! One version of each crate of the rust-vmm family.
//!
//! Two versions of, say, vm-memory in one tree compile, and then a device's memory is not the memory that a queue
//! accepts: the error shows far from its cause.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

/// The crates of rust-vmm; `-` at the end stands for a family.
const FAMILY: [&str; 15] = [
    "event-manager",
    "kvm-",
    "linux-loader",
    "seccompiler",
    "vfio-",
    "vhost",
    "vhost-",
    "virtio-bindings",
    "virtio-queue",
    "virtio-vsock",
    "vm-allocator",
    "vm-device",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
];

/// One complaint for each crate of the family that is locked at more than one version.
///
/// # Errors
/// When the text is not a lock file.
pub(super) fn duplicates(lock: &str) -> Result<Vec<String>> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, version) in parse(lock) {
        if FAMILY
            .iter()
            .any(|family| name == *family || (family.ends_with('-') && name.starts_with(family)))
        {
            versions.entry(name).or_default().push(version);
        }
    }
    if versions.is_empty() {
        bail!("Cargo.lock has none of the rust-vmm crates; is it this project's?");
    }
    Ok(versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| {
            format!(
                "{name} is locked at {}; `cargo tree -i {name}` says who wants which",
                versions.join(" and ")
            )
        })
        .collect())
}

/// Name and version of every package. Both stand at the start of a line in nothing but a package's table.
fn parse(lock: &str) -> Vec<(&str, &str)> {
    let mut packages = Vec::new();
    let mut name = None;
    for line in lock.lines() {
        if let Some(value) = value(line, "name") {
            name = Some(value);
        } else if let Some(version) = value(line, "version")
            && let Some(name) = name.take()
        {
            packages.push((name, version));
        }
    }
    packages
}

fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lock(packages: &[(&str, &str)]) -> String {
        let entries: String = packages
            .iter()
            .map(|(name, version)| {
                format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\ndependencies = [\n \"x\",\n]\n\n")
            })
            .collect();
        format!("# made by cargo\nversion = 4\n\n{entries}")
    }

    #[test]
    fn one_version_of_each_is_fine_and_other_crates_do_not_matter() {
        let text = lock(&[
            ("vm-memory", "0.18.0"),
            ("vhost", "0.18.0"),
            ("syn", "1.0.0"),
            ("syn", "2.0.0"),
        ]);

        assert_eq!(duplicates(&text).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_second_version_is_named() {
        let text = lock(&[
            ("vm-memory", "0.17.1"),
            ("kvm-ioctls", "0.25.1"),
            ("vm-memory", "0.18.0"),
        ]);

        let complaints = duplicates(&text).unwrap();

        assert_eq!(complaints.len(), 1);
        assert!(
            complaints[0].starts_with("vm-memory is locked at 0.17.1 and 0.18.0"),
            "{complaints:?}"
        );
    }

    #[test]
    fn families_are_covered() {
        for name in ["kvm-bindings", "kvm-ioctls", "vhost-user-backend"] {
            assert_eq!(
                duplicates(&lock(&[(name, "1.0.0"), (name, "2.0.0")]))
                    .unwrap()
                    .len(),
                1,
                "{name}"
            );
        }
    }

    #[test]
    fn another_projects_lock_is_refused() {
        assert!(duplicates(&lock(&[("syn", "1.0.0")])).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(?s).{0,300}") {
            let _ = duplicates(&text);
        }
    }
}
