//! Certificate authorities that this host trusts beyond the usual ones, for the Docker daemon to trust too: those of a
//! company's registry, or of its proxy.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where distributions have the administrator put them, and whether only `.crt` files there count.
const PLACES: [(&str, bool); 3] = [
    ("/usr/local/share/ca-certificates", true),
    ("/etc/pki/ca-trust/source/anchors", false),
    ("/etc/ca-certificates/trust-source/anchors", false),
];
/// The most all of them together may have, in bytes: they go to the guest in one message with everything else.
const MOST: usize = 384 << 10;
/// How deep directories are looked into, and how many files at most.
const DEPTH: usize = 4;
const MOST_FILES: usize = 1000;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// Each in PEM form, with nothing around it.
    pub pem: Vec<String>,
    /// What could not be taken, and why.
    pub warnings: Vec<String>,
}

/// The host's own, and those in `files`.
pub fn collect(files: &[PathBuf]) -> Certificates {
    let mut found = Certificates::default();
    for (place, only_crt) in PLACES {
        let mut paths = Vec::new();
        list(Path::new(place), only_crt, DEPTH, &mut paths);
        // The same order each time.
        paths.sort();
        for path in paths {
            // Not the user's doing, and it may be another format: no reason for a warning.
            if let Err(error) = found.add(&path) {
                tracing::info!("{error}");
            }
        }
    }
    for path in files {
        if let Err(error) = found.add(path) {
            found.warnings.push(error);
        }
    }
    found
}

fn list(dir: &Path, only_crt: bool, depth: usize, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if paths.len() >= MOST_FILES {
            return;
        }
        if path.is_dir() {
            if depth > 0 {
                list(&path, only_crt, depth - 1, paths);
            }
        } else if !only_crt || path.extension().is_some_and(|extension| extension == "crt") {
            paths.push(path);
        }
    }
}

impl Certificates {
    fn add(&mut self, path: &Path) -> Result<(), String> {
        let failed = |why: String| format!("the certificates in {} are not trusted: {why}", path.display());
        let metadata = fs::metadata(path).map_err(|error| failed(error.to_string()))?;
        // Anything but a file could keep us waiting.
        if !metadata.is_file() {
            return Err(failed("it is not a file".into()));
        }
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MOST as u64 + 1).read_to_end(&mut bytes))
            .map_err(|error| failed(error.to_string()))?;
        let text = String::from_utf8_lossy(&bytes);
        let blocks = blocks(&text).map_err(|why| failed(why.into()))?;
        let size: usize = self.pem.iter().chain(&blocks).map(String::len).sum();
        if size > MOST {
            return Err(failed(format!(
                "all of them together would be over {} KiB",
                MOST >> 10
            )));
        }
        for block in blocks {
            if !self.pem.contains(&block) {
                self.pem.push(block);
            }
        }
        Ok(())
    }
}

/// The certificates in a file. What else is in it, such as a private key, is left there.
fn blocks(text: &str) -> Result<Vec<String>, &'static str> {
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line != BEGIN {
            continue;
        }
        let mut body: Vec<&str> = Vec::new();
        loop {
            match lines.next() {
                Some(END) => break,
                Some(line) => body.push(line),
                None => return Err("one of them has no end"),
            }
        }
        if !is_certificate(&body.concat()) {
            return Err("what is in one of them is not a certificate");
        }
        found.push(format!("{BEGIN}\n{}\n{END}\n", body.join("\n")));
    }
    if found.is_empty() {
        return Err("there are none in PEM form (\"BEGIN CERTIFICATE\")");
    }
    Ok(found)
}

/// Whether this is base64 of one DER sequence that has the length it says (X.690, section 8.1). Whether it is a good
/// certificate is for whoever uses it to find out.
fn is_certificate(base64: &str) -> bool {
    let Some(der) = decode(base64) else { return false };
    let [0x30, length, rest @ ..] = &der[..] else {
        return false;
    };
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81..=0x83 => {
            let Some((length, rest)) = rest.split_at_checked(usize::from(length & 0x7f)) else {
                return false;
            };
            let length = length
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte));
            (length, rest)
        }
        _ => return false,
    };
    rest.len() == length
}

/// Base64 (RFC 4648, section 4).
fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            // The eight bits above those that are left.
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The sequence of one NULL, which is as good as a certificate here.
    const SMALL: &str = "-----BEGIN CERTIFICATE-----\nMAIFAA==\n-----END CERTIFICATE-----\n";

    #[test]
    fn certificates_are_taken_and_what_else_is_in_the_file_is_not() {
        let key = "-----BEGIN PRIVATE KEY-----\nMAIFAA==\n-----END PRIVATE KEY-----\n";
        let windows = SMALL.replace('\n', "\r\n");
        let text = format!("Some words.\n{key}{SMALL}\n{windows}{key}");
        assert_eq!(blocks(&text).unwrap(), [SMALL, SMALL]);
        for (wrong, why) in [
            ("", "there are none"),
            (key, "there are none"),
            (&SMALL.replace("MAIF", "MAMF"), "not a certificate"),
            (&SMALL.replace("MAIF", "M?IF"), "not a certificate"),
            (&SMALL[..40], "no end"),
        ] {
            assert!(blocks(wrong).unwrap_err().contains(why), "{wrong}");
        }
    }

    #[test]
    fn files_are_told_that_cannot_be_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let good = path("good", SMALL);
        let huge = path("huge", &SMALL.repeat(8000));
        let files = [
            dir.path().join("none"),
            dir.path().to_owned(),
            good.clone(),
            huge,
            good,
        ];
        let mut found = Certificates::default();
        let results: Vec<_> = files.iter().map(|path| found.add(path)).collect();
        assert!(results[0].is_err() && results[1].is_err() && results[3].is_err());
        assert!(results[2].is_ok() && results[4].is_ok());
        assert_eq!(found.pem, [SMALL]);
    }

    #[test]
    fn directories_are_looked_into() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("corp")).unwrap();
        for name in ["a.crt", "corp/b.crt", "c.pem"] {
            fs::write(dir.path().join(name), SMALL).unwrap();
        }
        let count = |only_crt| {
            let mut paths = Vec::new();
            list(dir.path(), only_crt, DEPTH, &mut paths);
            paths.len()
        };
        assert_eq!((count(true), count(false)), (2, 3));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(-----(BEGIN|END) CERTIFICATE-----\n|[A-Za-z0-9+/=]{4}|.|\n){0,30}") {
            for block in blocks(&text).unwrap_or_default() {
                prop_assert_eq!(blocks(&block).unwrap(), [block.clone()]);
            }
        }
    }
}
