//! The kinds of values the configuration holds, each with its own check, so that a wrong one is refused where it stands.
//! The command line's options use the same checks.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use crate::size::Size;

/// The most virtual CPUs a machine may have.
pub const MAX_CPUS: u8 = 128;
/// The least memory a machine may have. Docker itself wants more; small machines are for tests and measurements.
pub const MIN_MEMORY: Size = Size::from_mib(128);
/// The smallest data disk.
pub const MIN_DISK: Size = Size::from_gib(1);
/// The largest data disk: what ext4 and sparse files carry without care.
const MAX_DISK: Size = Size::from_gib(16 << 10);
/// The most memory: what fits the guest-physical addresses of every x86-64 processor.
const MAX_MEMORY: Size = Size::from_gib(1 << 10);

const CPUS: &str = "a number of CPUs from 1 to 128";
const MEMORY: &str = "a size with a unit, such as 4GiB, of at least 128 MiB";
const DISK: &str = "a size with a unit, such as 64GiB, from 1 GiB to 16 TiB";
const ENGINE: &str = "`auto`, `kvm` or `qemu`";
const CONTEXT: &str = "a docker context name: letters, digits, '_', '.', '+' and '-', beginning with a letter or digit, and not \
                       `default`";
const PATH: &str = "an absolute path";
const PROXY: &str = "the URL of a proxy, such as http://proxy.example:3128";
const SECONDS: &str = "a time with a unit, such as 90s or 5m, from 1s to 24h";
const ADDRESS: &str = "an IP address, such as 127.0.0.1";
const LOG_LEVEL: &str = "`error`, `warn`, `info`, `debug` or `trace`";

/// A text that is not what is accepted: the message of a command-line option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct ValueError(&'static str);

/// A number of virtual CPUs.
pub fn cpus(text: &str) -> Result<u8, ValueError> {
    text.parse()
        .ok()
        .filter(|cpus| (1..=MAX_CPUS).contains(cpus))
        .ok_or(ValueError(CPUS))
}

/// An amount of guest memory; whole MiB, rounded down.
pub fn memory(text: &str) -> Result<Size, ValueError> {
    size(text, MIN_MEMORY, MAX_MEMORY).ok_or(ValueError(MEMORY))
}

/// The size of a data disk; whole MiB, rounded down.
pub fn disk(text: &str) -> Result<Size, ValueError> {
    size(text, MIN_DISK, MAX_DISK).ok_or(ValueError(DISK))
}

fn size(text: &str, min: Size, max: Size) -> Option<Size> {
    let size: Size = text.parse().ok()?;
    let size = Size::from_mib(size.mib());
    (min..=max).contains(&size).then_some(size)
}

/// The name of a profile.
pub fn profile_name(text: &str) -> Result<String, ValueError> {
    Some(text)
        .filter(|text| super::profiles::is_name(text))
        .map(ToOwned::to_owned)
        .ok_or(ValueError(super::profiles::NAME))
}

/// The name of a profile, or [`super::NO_PROFILE`].
pub fn profile_choice(text: &str) -> Result<String, ValueError> {
    if text == super::NO_PROFILE {
        return Ok(text.to_owned());
    }
    profile_name(text)
}

/// Which engine to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// KVM where it works, else QEMU.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// QEMU or nothing.
    Qemu,
}

/// A choice of engine.
pub fn engine(text: &str) -> Result<EngineChoice, ValueError> {
    match text {
        "auto" => Ok(EngineChoice::Auto),
        "kvm" => Ok(EngineChoice::Kvm),
        "qemu" => Ok(EngineChoice::Qemu),
        _ => Err(ValueError(ENGINE)),
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineChoice::Auto => "auto",
            EngineChoice::Kvm => "kvm",
            EngineChoice::Qemu => "qemu",
        })
    }
}

impl std::str::FromStr for EngineChoice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        engine(text)
    }
}

/// Reads a text with `parse`; whatever else stands there is refused with `expected`.
struct Text<F> {
    expected: &'static str,
    parse: F,
}

impl<'de, T, F: Fn(&str) -> Option<T>> Visitor<'de> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    // A number without a unit, mostly: the same text, but said as what YAML took it for.
    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        (self.parse)(&number.to_string()).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }
}

macro_rules! text_value {
    ($(#[$doc:meta])* $name:ident($inner:ty), $expected:expr, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub(super) struct $name(pub(super) $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let parse: fn(&str) -> Option<$inner> = $parse;
                deserializer.deserialize_any(Text { expected: $expected, parse }).map($name)
            }
        }
    };
}

text_value!(Cpus(u8), CPUS, |text| cpus(text).ok());
text_value!(Memory(Size), MEMORY, |text| memory(text).ok());
text_value!(Disk(Size), DISK, |text| disk(text).ok());
text_value!(ContextName(String), CONTEXT, context_name);
text_value!(AbsolutePath(PathBuf), PATH, |text| Some(PathBuf::from(text))
    .filter(|path| path.is_absolute()));
text_value!(ProxyUrl(String), PROXY, |text| crate::net::is_proxy(text)
    .then(|| text.to_owned()));
text_value!(Seconds(Duration), SECONDS, duration);
text_value!(Address(IpAddr), ADDRESS, |text| text.parse().ok());

impl Copy for Cpus {}
impl Copy for Memory {}
impl Copy for Disk {}
impl Copy for Seconds {}
impl Copy for Address {}

impl<'de> Deserialize<'de> for EngineChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text {
            expected: ENGINE,
            parse: |text: &str| engine(text).ok(),
        })
    }
}

/// What the daemon logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogLevel(&'static str);

impl LogLevel {
    pub(super) fn name(self) -> &'static str {
        self.0
    }
}

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parse = |text: &str| {
            ["error", "warn", "info", "debug", "trace"]
                .into_iter()
                .find(|level| *level == text)
        };
        deserializer
            .deserialize_any(Text {
                expected: LOG_LEVEL,
                parse,
            })
            .map(LogLevel)
    }
}

/// The docker client's rule for context names; `default` is its own.
fn context_name(text: &str) -> Option<String> {
    let first = text.bytes().next()?.is_ascii_alphanumeric();
    let rest = text
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || b"_.+-".contains(&c));
    (first && rest && text.len() > 1 && text != "default").then(|| text.to_owned())
}

fn duration(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let seconds = match unit.trim_start() {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let seconds = number.parse::<u64>().ok()?.checked_mul(seconds)?;
    (1..=24 * 3600)
        .contains(&seconds)
        .then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_say_what_they_accept() {
        assert_eq!(cpus("4"), Ok(4));
        assert_eq!(
            cpus("129").unwrap_err().to_string(),
            "expected a number of CPUs from 1 to 128"
        );
        assert!(cpus("-1").is_err() && cpus("two").is_err() && cpus("0").is_err());
        assert_eq!(memory("2g"), Ok(Size::from_gib(2)));
        assert!(memory("127MiB").is_err() && memory("2000g").is_err());
        assert_eq!(disk("1.5GiB"), Ok(Size::from_mib(1536)));
        assert!(disk("1023MiB").is_err() && disk("17TiB").is_err());
    }

    #[test]
    fn times_need_a_unit_and_a_sane_length() {
        assert_eq!(duration("90s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("2 h"), Some(Duration::from_secs(7200)));
        for text in ["90", "0s", "25h", "1.5m", "s", "", "99999999999999999999s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn the_docker_clients_own_context_is_not_ours_to_take() {
        assert_eq!(context_name("default"), None);
        assert_eq!(context_name("-x"), None);
        assert_eq!(context_name("berth+x"), Some("berth+x".into()));
    }
}
