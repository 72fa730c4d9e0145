//! SHA-256 of files, and the hash of everything a product was made from.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The SHA-256 of a file, in lower-case hexadecimal.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn file_sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hasher.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// Collects the named inputs of a product. Two products share a hash only if all names and contents are equal, in order.
pub(crate) struct Inputs(Sha256);

impl Inputs {
    /// Starts with the kind of product and the version of the code that makes it.
    pub(crate) fn new(kind: &str, version: u32) -> Self {
        let mut inputs = Self(Sha256::new());
        inputs.add("kind", kind).add("version", version.to_string());
        inputs
    }

    /// Adds one input. Lengths are part of the hash, so neighbours cannot run into each other.
    pub(crate) fn add(&mut self, name: &str, value: impl AsRef<[u8]>) -> &mut Self {
        for part in [name.as_bytes(), value.as_ref()] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Sixteen hexadecimal digits: short enough for a directory name, long enough never to collide in one cache.
    pub(crate) fn finish(self) -> String {
        let mut digits = hex(&self.0.finalize());
        digits.truncate(16);
        digits
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_digest_is_the_standard_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();

        let digest = file_sha256(&path).unwrap();

        assert_eq!(
            digest,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn moving_a_byte_between_inputs_changes_the_hash() {
        let hash = |first: &str, second: &str| {
            let mut inputs = Inputs::new("kernel", 1);
            inputs.add("a", first).add("b", second);
            inputs.finish()
        };

        assert_ne!(hash("xy", "z"), hash("x", "yz"));
        assert_eq!(hash("xy", "z"), hash("xy", "z"));
        assert_eq!(hash("xy", "z").len(), 16);
    }
}
