//! Amounts of bytes as people write them: `4GiB`, `512MiB`, `2g`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// An amount of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// This many bytes.
    pub const fn from_bytes(bytes: u64) -> Size {
        Size(bytes)
    }

    /// This many MiB.
    pub const fn from_mib(mib: u64) -> Size {
        Size(mib * MIB)
    }

    /// This many GiB.
    pub const fn from_gib(gib: u64) -> Size {
        Size(gib * GIB)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// As one writes it in a configuration, in whole MiB: `4GiB`, `1536MiB`.
    pub fn to_config(self) -> String {
        match self.mib() {
            mib if mib > 0 && mib.is_multiple_of(1024) => format!("{}GiB", mib / 1024),
            mib => format!("{mib}MiB"),
        }
    }

    /// In MiB, rounded down.
    pub const fn mib(self) -> u64 {
        self.0 / MIB
    }
}

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size; write a number and a unit, such as 512MiB, 4GiB or 1.5TiB")]
pub struct ParseSizeError(String);

impl FromStr for Size {
    type Err = ParseSizeError;

    /// A number, at most three decimals, and a unit in any case: `B`, `K`/`KB`/`KiB`, `M…`, `G…`, `T…`. All units are
    /// powers of 1024: nobody gives a machine a round number of decimal gigabytes on purpose.
    fn from_str(text: &str) -> Result<Size, ParseSizeError> {
        let bad = || ParseSizeError(text.to_owned());
        let trimmed = text.trim();
        let end = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let (number, unit) = trimmed.split_at(end);
        let unit = match unit.trim_start().to_ascii_lowercase().as_str() {
            "b" => 1,
            "k" | "kb" | "kib" => KIB,
            "m" | "mb" | "mib" => MIB,
            "g" | "gb" | "gib" => GIB,
            "t" | "tb" | "tib" => TIB,
            _ => return Err(bad()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.len() > 3 || (number.contains('.') && fraction.is_empty()) {
            return Err(bad());
        }
        let whole: u64 = whole.parse().map_err(|_| bad())?;
        let thousandths: u64 = format!("{fraction:0<3}").parse().map_err(|_| bad())?;
        whole
            .checked_mul(unit)
            .and_then(|bytes| bytes.checked_add(thousandths * unit / 1000))
            .map(Size)
            .ok_or_else(bad)
    }
}

impl fmt::Display for Size {
    /// In the largest unit that leaves a number of at least 1, with at most one decimal: `4 GiB`, `1.5 GiB`, `0 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            TIB.. => (TIB, "TiB"),
            GIB.. => (GIB, "GiB"),
            MIB.. => (MIB, "MiB"),
            KIB.. => (KIB, "KiB"),
            _ => (1, "B"),
        };
        if self.0.is_multiple_of(unit) {
            f.pad(&format!("{} {name}", self.0 / unit))
        } else {
            f.pad(&format!("{:.1} {name}", self.0 as f64 / unit as f64))
        }
    }
}

impl Serialize for Size {
    /// As a number of bytes.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    /// From a number of bytes, as [`Serialize`] writes it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        u64::deserialize(deserializer).map(Size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("4GiB", 4 * GIB),
            ("512MiB", 512 * MIB),
            ("2g", 2 * GIB),
            ("2G", 2 * GIB),
            ("64 GiB", 64 * GIB),
            ("1.5t", TIB + TIB / 2),
            ("0.25gb", GIB / 4),
            ("17b", 17),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in [
            "",
            "4",
            "GiB",
            "4XiB",
            "-4GiB",
            "4.GiB",
            ".5GiB",
            "1.2345g",
            "1.2.3g",
            "4GiB x",
            "99999999999999999999g",
            "18014398509481984k",
            "٤GiB",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_so_that_they_are_read_back() {
        for (size, text) in [(Size::from_gib(4), "4GiB"), (Size::from_mib(1536), "1536MiB")] {
            assert_eq!(size.to_config(), text);
            assert_eq!(text.parse(), Ok(size));
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(Size(4 * GIB).to_string(), "4 GiB");
        assert_eq!(Size(GIB + GIB / 2).to_string(), "1.5 GiB");
        assert_eq!(Size(0).to_string(), "0 B");
        assert_eq!(Size(1023).to_string(), "1023 B");
    }
}
