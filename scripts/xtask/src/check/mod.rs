//! `xtask check`: the rules of the tree that no compiler enforces.

mod lock;
mod scripts;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::kernel::Configuration;
use crate::{Output, paths, progress};

#[derive(clap::Args)]
pub(crate) struct Args {}

/// A rule: its name, and what it found wrong or, when all is well, what it looked at.
type Rule = (&'static str, fn(&Path) -> Result<Vec<String>>);

const RULES: [Rule; 4] = [
    ("each rust-vmm crate stands once in Cargo.lock", |root| {
        lock::duplicates(&read(root, "Cargo.lock")?)
    }),
    ("every group of the kernel's configuration has a reason", |root| {
        Configuration::load(root).map(|_| Vec::new())
    }),
    ("shell scripts are well formed", scripts::malformed),
    (
        "the tree has its licence, change log and contributor's guide",
        papers,
    ),
];

pub(crate) fn run(_: &Args, output: Output) -> Result<()> {
    let root = paths::workspace_root()?;
    let mut broken = 0;
    let mut results = Vec::new();
    for (name, rule) in RULES {
        let complaints = rule(&root).unwrap_or_else(|error| vec![format!("{error:#}")]);
        progress::note(&format!(
            "{}  {name}",
            if complaints.is_empty() { "ok  " } else { "FAIL" }
        ));
        for complaint in &complaints {
            progress::note(&format!("      {complaint}"));
        }
        broken += usize::from(!complaints.is_empty());
        results.push(json!({ "rule": name, "complaints": complaints }));
    }
    output.json(|| json!(results));
    if broken > 0 {
        bail!("{broken} of {} rules are broken", RULES.len());
    }
    Ok(())
}

fn papers(root: &Path) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for (name, must_say) in [
        ("LICENSE", "Apache License"),
        ("CHANGELOG.md", "## [Unreleased]"),
        ("CONTRIBUTING.md", "scripts/test"),
        ("README.md", "scripts/demo"),
    ] {
        match fs::read_to_string(root.join(name)) {
            Ok(text) if text.contains(must_say) => {}
            Ok(_) => complaints.push(format!("{name} does not say {must_say:?}")),
            Err(error) => complaints.push(format!("{name}: {error}")),
        }
    }
    Ok(complaints)
}

fn read(root: &Path, name: &str) -> Result<String> {
    let path = root.join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}
