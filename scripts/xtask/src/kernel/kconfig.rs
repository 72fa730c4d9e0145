//! Reading kernel configuration: our fragments with their groups and reasons, and the `.config` the kernel made of them.

use std::collections::BTreeMap;
use std::fmt;

/// What an option is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// `# CONFIG_X is not set`, `CONFIG_X=n`, or no line at all.
    No,
    /// `=y`, `=m`, a number, or a string with its quotes, as written.
    Set(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("not set"),
            Self::Set(text) => write!(f, "={text}"),
        }
    }
}

/// Options that are there for one reason.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// The text after `## `.
    pub(crate) name: String,
    /// The comment under it, on one line.
    pub(crate) reason: String,
    /// Names without `CONFIG_`, in the file's order.
    pub(crate) options: Vec<(String, Value)>,
}

/// A fragment that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FragmentError {
    #[error("line {line}: {text:?} is neither an option, nor \"# CONFIG_X is not set\", nor a comment")]
    Unreadable { line: usize, text: String },
    #[error("line {line}: {name} stands before the first group; put it under a \"## \" line")]
    NoGroup { line: usize, name: String },
    #[error("the group {0:?} has no reason; write one as a comment under its \"## \" line")]
    NoReason(String),
    #[error("the group {0:?} has no options; delete it")]
    Empty(String),
    #[error("line {line}: {name} is named twice; keep one of the lines")]
    Twice { line: usize, name: String },
}

/// Reads a fragment: groups with a reason, and an option per line.
///
/// # Errors
/// See [`FragmentError`]; a fragment with a group that gives no reason is refused.
pub(crate) fn parse_fragment(text: &str) -> Result<Vec<Group>, FragmentError> {
    let mut groups: Vec<Group> = Vec::new();
    let mut seen = BTreeMap::new();
    for (index, raw) in text.lines().enumerate() {
        let line = index + 1;
        let content = raw.trim_end();
        if let Some(name) = content.strip_prefix("## ") {
            groups.push(Group {
                name: name.trim().to_owned(),
                reason: String::new(),
                options: Vec::new(),
            });
        } else if let Some((name, value)) = parse_option(content) {
            if seen.insert(name.clone(), line).is_some() {
                return Err(FragmentError::Twice { line, name });
            }
            match groups.last_mut() {
                Some(group) => group.options.push((name, value)),
                None => return Err(FragmentError::NoGroup { line, name }),
            }
        } else if let Some(comment) = content.strip_prefix('#') {
            if let Some(group) = groups.last_mut() {
                if !group.reason.is_empty() {
                    group.reason.push(' ');
                }
                group.reason.push_str(comment.trim());
            }
        } else if !content.is_empty() {
            return Err(FragmentError::Unreadable {
                line,
                text: content.to_owned(),
            });
        }
    }
    for group in &groups {
        if group.reason.trim().is_empty() {
            return Err(FragmentError::NoReason(group.name.clone()));
        }
        if group.options.is_empty() {
            return Err(FragmentError::Empty(group.name.clone()));
        }
    }
    Ok(groups)
}

/// Reads a list of option names, one per line, under `## ` lines that name what needs them.
///
/// # Errors
/// The number and text of the first line that is not a name.
pub(crate) fn parse_required(text: &str) -> Result<Vec<(String, String)>, FragmentError> {
    let mut purpose = String::new();
    let mut names = Vec::new();
    for (index, raw) in text.lines().enumerate() {
        let content = raw.trim();
        if let Some(heading) = content.strip_prefix("## ") {
            heading.trim().clone_into(&mut purpose);
        } else if is_name(content) {
            names.push((content.to_owned(), purpose.clone()));
        } else if !content.is_empty() && !content.starts_with('#') {
            return Err(FragmentError::Unreadable {
                line: index + 1,
                text: content.to_owned(),
            });
        }
    }
    Ok(names)
}

/// A finished `.config`.
pub(crate) struct DotConfig(BTreeMap<String, Value>);

impl DotConfig {
    /// Reads every option line and ignores the rest, which is the kernel's own comments.
    pub(crate) fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .filter_map(|line| parse_option(line.trim_end()))
                .collect(),
        )
    }

    /// What an option is set to; one without a line is [`Value::No`].
    pub(crate) fn get(&self, name: &str) -> &Value {
        self.0.get(name).unwrap_or(&Value::No)
    }

    /// One line for each option of the fragments that is not as they say.
    pub(crate) fn lost<'a>(&self, groups: impl IntoIterator<Item = &'a Group>) -> Vec<String> {
        let mut lost = Vec::new();
        for group in groups {
            for (name, wanted) in &group.options {
                let got = self.get(name);
                if got != wanted {
                    lost.push(format!(
                        "CONFIG_{name}: wanted {wanted}, got {got} (group \"{}\")",
                        group.name
                    ));
                }
            }
        }
        lost
    }

    /// One line for each required option that is not built in.
    pub(crate) fn missing(&self, required: &[(String, String)]) -> Vec<String> {
        required
            .iter()
            .filter(|(name, _)| *self.get(name) != Value::Set("y".to_owned()))
            .map(|(name, purpose)| format!("CONFIG_{name}: {}, needed by Docker ({purpose})", self.get(name)))
            .collect()
    }
}

fn parse_option(line: &str) -> Option<(String, Value)> {
    if let Some(rest) = line.strip_prefix("# CONFIG_") {
        let name = rest.strip_suffix(" is not set")?;
        return is_name(name).then(|| (name.to_owned(), Value::No));
    }
    let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
    let value = if value == "n" {
        Value::No
    } else {
        Value::Set(value.to_owned())
    };
    is_name(name).then(|| (name.to_owned(), value))
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FRAGMENT: &str = "# About the file.\n\n## net\n# Containers talk.\n# To each other.\nCONFIG_NET=y\n\
                            CONFIG_NAME=\"a=b\"\n# CONFIG_WLAN is not set\nCONFIG_HZ=250\nCONFIG_OLD=n\n";

    fn set(text: &str) -> Value {
        Value::Set(text.to_owned())
    }

    #[test]
    fn a_fragment_has_groups_reasons_and_every_kind_of_value() {
        let groups = parse_fragment(FRAGMENT).unwrap();

        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].name, "net");
        assert_eq!(groups[0].reason, "Containers talk. To each other.");
        let expected = [
            ("NET", set("y")),
            ("NAME", set("\"a=b\"")),
            ("WLAN", Value::No),
            ("HZ", set("250")),
            ("OLD", Value::No),
        ];
        assert_eq!(
            groups[0].options,
            expected.map(|(name, value)| (name.to_owned(), value))
        );
    }

    #[test]
    fn a_fragment_that_explains_nothing_is_refused() {
        let error = |text| parse_fragment(text).unwrap_err();

        assert_eq!(
            error("## net\nCONFIG_NET=y\n"),
            FragmentError::NoReason("net".into())
        );
        assert_eq!(error("## net\n# Why.\n"), FragmentError::Empty("net".into()));
        assert_eq!(
            error("CONFIG_NET=y\n"),
            FragmentError::NoGroup {
                line: 1,
                name: "NET".into()
            }
        );
        assert_eq!(
            error("## a\n# Why.\nCONFIG_NET=y\n# CONFIG_NET is not set\n"),
            FragmentError::Twice {
                line: 4,
                name: "NET".into()
            }
        );
        assert_eq!(
            error("## a\n# Why.\nCONFIG_NET y\n"),
            FragmentError::Unreadable {
                line: 3,
                text: "CONFIG_NET y".into()
            }
        );
    }

    #[test]
    fn every_option_that_did_not_survive_is_named() {
        let groups = parse_fragment(FRAGMENT).unwrap();
        let config = DotConfig::parse("#\n# Linux\n#\nCONFIG_NET=m\nCONFIG_WLAN=y\nCONFIG_HZ=250\n");

        let lost = config.lost(&groups);

        assert_eq!(
            lost,
            [
                "CONFIG_NET: wanted =y, got =m (group \"net\")",
                "CONFIG_NAME: wanted =\"a=b\", got not set (group \"net\")",
                "CONFIG_WLAN: wanted not set, got =y (group \"net\")",
            ]
        );
    }

    #[test]
    fn a_required_option_must_be_built_in() {
        let required = parse_required("# list\n## bridge\nVETH\nBRIDGE\n\n## ipvlan\nIPVLAN\n").unwrap();
        let config = DotConfig::parse("CONFIG_VETH=y\nCONFIG_BRIDGE=m\n# CONFIG_IPVLAN is not set\n");

        let missing = config.missing(&required);

        assert_eq!(
            missing,
            [
                "CONFIG_BRIDGE: =m, needed by Docker (bridge)",
                "CONFIG_IPVLAN: not set, needed by Docker (ipvlan)"
            ]
        );
        assert!(parse_required("## x\nNOT A NAME\n").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "(?s).{0,200}") {
            let _ = parse_fragment(&text);
            let _ = parse_required(&text);
            let _ = DotConfig::parse(&text).get("X");
        }

        #[test]
        fn a_config_made_of_a_fragment_loses_nothing(names in proptest::collection::btree_map("[A-Z0-9_]{1,12}", "[ynm]|[0-9]{1,4}|\"[a-z =]{0,8}\"", 1..20)) {
            let lines: String = names.iter().map(|(name, value)| format!("CONFIG_{name}={value}\n")).collect();
            let groups = parse_fragment(&format!("## g\n# Why.\n{lines}")).unwrap();

            prop_assert_eq!(DotConfig::parse(&lines).lost(&groups), Vec::<String>::new());
        }
    }
}
