//! The certificate authorities that dockerd trusts: the image's, and what the host sends beyond them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The image's.
const IMAGE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// All of them together.
const NAME: &str = "ca-certificates.crt";

/// The variable by which Go's programs, as most others, are told another file than [`IMAGE`].
pub(crate) const VARIABLE: &str = "SSL_CERT_FILE";

/// Writes them into `directory`; where, when there are more than the image's.
pub(crate) fn write(directory: &Path, more: &[String]) -> anyhow::Result<Option<PathBuf>> {
    write_with(Path::new(IMAGE), directory, more)
}

fn write_with(image: &Path, directory: &Path, more: &[String]) -> anyhow::Result<Option<PathBuf>> {
    if more.is_empty() {
        return Ok(None);
    }
    let mut bundle = fs::read_to_string(image).with_context(|| format!("cannot read {}", image.display()))?;
    for certificate in more {
        bundle.push('\n');
        bundle.push_str(certificate);
    }
    let path = directory.join(NAME);
    fs::write(&path, bundle).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_are_added_to_the_images() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::write(&image, "one\n").unwrap();
        assert_eq!(write_with(&image, directory.path(), &[]).unwrap(), None);
        let path = write_with(&image, directory.path(), &["two\n".into(), "three\n".into()]);
        let bundle = fs::read_to_string(path.unwrap().unwrap()).unwrap();
        assert_eq!(bundle, "one\n\ntwo\n\nthree\n");
    }
}
