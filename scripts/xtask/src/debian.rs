//! Debian's archive: which mirror, how its packages are trusted, and unpacking some of them without installing any.

use std::borrow::Cow;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::cache::{Cache, Scratch};
use crate::{command, progress};

/// The release that the guest and the docker client come from.
pub(crate) const SUITE: &str = "trixie";

/// Packages of the guest are for this architecture, in Debian's spelling.
pub(crate) const ARCHITECTURE: &str = "amd64";

/// What the package python-apt-common knows of Debian's archive, on Debian and its derivatives alike.
const ARCHIVE_TEMPLATE: &str = "/usr/share/python-apt/templates/Debian.info";

/// The keys that sign the archive, as the package debian-archive-keyring installs them.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// The `deb` lines of the release, signed by Debian's keys.
///
/// `$BERTH_DEBIAN_MIRROR` names the mirror (`$BERTH_DEBIAN_SECURITY_MIRROR` the one of the security updates); else a
/// Debian host's own apt sources do, so that a mirror of the site is used where there is one; on another host
/// python-apt-common says where the archive is.
///
/// # Errors
/// When the keys are not installed, a mirror is not a URL, or none is known.
pub(crate) fn sources() -> Result<String> {
    let release = source_of(SUITE)?;
    let updates = source_of(&format!("{SUITE}-updates"))?;
    let security = mirror("BERTH_DEBIAN_SECURITY_MIRROR", |mirrors| mirrors.security)?;
    let security = line(&security, &format!("{SUITE}-security"))?;
    Ok(format!("{release}\n{updates}\n{security}\n"))
}

/// The `deb` line of a suite that the main mirror has, signed by Debian's keys.
///
/// # Errors
/// As [`sources`].
pub(crate) fn source_of(suite: &str) -> Result<String> {
    line(&mirror("BERTH_DEBIAN_MIRROR", |mirrors| mirrors.main)?, suite)
}

fn line(mirror: &str, suite: &str) -> Result<String> {
    let Some(keyring) = KEYRINGS.iter().find(|path| Path::new(path).is_file()) else {
        bail!("the keys of Debian's archive are missing; install the package debian-archive-keyring");
    };
    Ok(format!("deb [signed-by={keyring}] {mirror} {suite} main"))
}

/// A mirror that a variable names, or the host's apt, or the distribution's own template.
fn mirror(variable: &str, of: impl Fn(Mirrors) -> Option<String>) -> Result<String> {
    if let Some(named) = named_mirror(variable)? {
        return Ok(named);
    }
    of(host_mirrors())
        .or_else(|| of(template_mirrors()))
        .ok_or_else(|| {
            anyhow!(
                "no mirror of Debian's archive is known; install the package python-apt-common, or name a mirror in \
                 ${variable}"
            )
        })
}

fn named_mirror(variable: &str) -> Result<Option<String>> {
    let Some(value) = env::var_os(variable).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    match value.into_string() {
        Ok(url) if url.contains("://") && !url.contains(char::is_whitespace) => Ok(Some(url)),
        Ok(other) => {
            bail!("{variable} is {other:?}, which is not a URL such as http://mirror.example.org/debian")
        }
        Err(other) => bail!("{variable} is {other:?}, which is not text"),
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Mirrors {
    main: Option<String>,
    security: Option<String>,
}

/// The mirrors that apt on a Debian host uses; none elsewhere. A failure here is no error: there are other sources.
fn host_mirrors() -> Mirrors {
    let is_debian =
        fs::read_to_string("/etc/os-release").is_ok_and(|text| text.lines().any(|line| line == "ID=debian"));
    if !is_debian {
        return Mirrors::default();
    }
    let mut apt = Command::new("apt-get");
    apt.args([
        "indextargets",
        "--format",
        "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
        "Created-By: Packages",
    ]);
    command::output(&mut apt)
        .map(|text| parse_index_targets(&text))
        .unwrap_or_default()
}

/// The mirrors that python-apt-common names. A failure here is no error: the caller says what is missing.
fn template_mirrors() -> Mirrors {
    fs::read_to_string(ARCHIVE_TEMPLATE)
        .map(|text| parse_template(&text))
        .unwrap_or_default()
}

/// Reads stanzas of `Key: value` lines, the newest release's first. The archives are looked up over plain HTTP, because a
/// host without ca-certificates can do that too: what is fetched is signed.
fn parse_template(text: &str) -> Mirrors {
    let mut mirrors = Mirrors::default();
    for stanza in text.split("\n\n") {
        let value = |key: &str| {
            stanza
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
                .map(str::trim)
        };
        let (Some(suite), Some(uri)) = (value("Suite"), value("BaseURI")) else {
            continue;
        };
        let uri = uri.trim_end_matches('/').replace("https://", "http://");
        match suite {
            "{series}" => mirrors.main.get_or_insert(uri),
            "{series}-security" => mirrors.security.get_or_insert(uri + "/debian-security"),
            _ => continue,
        };
    }
    mirrors
}

fn parse_index_targets(text: &str) -> Mirrors {
    let mut mirrors = Mirrors::default();
    for line in text.lines() {
        let mut fields = line.splitn(3, '|');
        let (Some("Debian"), Some(label), Some(uri)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let uri = uri.trim_end_matches('/').to_owned();
        match label {
            "Debian" => mirrors.main.get_or_insert(uri),
            "Debian-Security" => mirrors.security.get_or_insert(uri),
            _ => continue,
        };
    }
    mirrors
}

/// apt with its own configuration, lists and cache, so that neither the host's sources nor its packages are touched.
pub(crate) struct Archive {
    dir: Scratch,
}

impl Archive {
    /// Downloads the release's package lists, into a directory named after the product they are for.
    ///
    /// # Errors
    /// When there is no apt, no key or no network.
    pub(crate) fn open(cache: &Cache, product: &str) -> Result<Self> {
        let dir = cache.scratch(&format!(".apt-{product}"))?;
        for sub in [
            "etc/apt.conf.d",
            "etc/preferences.d",
            "state/lists/partial",
            "cache/archives/partial",
            "packages",
        ] {
            let path = dir.path().join(sub);
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        }
        fs::write(dir.path().join("etc/sources.list"), sources()?).context("cannot write the apt sources")?;
        fs::write(dir.path().join("state/status"), "").context("cannot write apt's empty status file")?;
        let archive = Self { dir };
        progress::note(&format!("reading the package lists of Debian {SUITE}"));
        command::output(archive.apt().arg("update"))
            .context("cannot read Debian's package lists; is there a network, and is the mirror right?")?;
        Ok(archive)
    }

    /// Downloads packages, without what they depend on, and unpacks all of them into one new tree.
    ///
    /// # Errors
    /// When a package does not exist or cannot be fetched.
    pub(crate) fn unpack(&self, packages: &[&str]) -> Result<Tree<'_>> {
        let downloads = self.dir.path().join("packages");
        command::output(self.apt().arg("download").args(packages).current_dir(&downloads))
            .with_context(|| format!("cannot download {} from Debian's archive", packages.join(", ")))?;
        let path = self.dir.path().join("tree");
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        for file in package_files(&downloads)? {
            extract(&file, &path, &[])?;
        }
        Ok(Tree { path, _archive: self })
    }

    /// Downloads packages with everything they depend on, and returns the files, sorted by name. Nothing counts as
    /// installed already, so the set is complete and the same on every host.
    ///
    /// # Errors
    /// When a package does not exist or cannot be fetched.
    pub(crate) fn download_with_dependencies(&self, packages: &[String]) -> Result<Vec<PathBuf>> {
        let mut apt = self.apt();
        // No lock: the status file is our own, and its default lock belongs to root.
        apt.args([
            "--yes",
            "--download-only",
            "--no-install-recommends",
            "-o",
            "Debug::NoLocking=1",
            "install",
        ]);
        command::output(apt.args(packages))
            .with_context(|| format!("cannot download {} from Debian's archive", packages.join(", ")))?;
        package_files(&self.dir.path().join("cache/archives"))
    }

    fn apt(&self) -> Command {
        let mut apt = self.tool("apt-get");
        apt.arg("--quiet=2");
        apt
    }

    fn tool(&self, name: &str) -> Command {
        let dir = self.dir.path();
        let mut apt = Command::new(name);
        apt.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        let directories = [
            ("Dir::Etc", dir.join("etc")),
            ("Dir::Etc::sourcelist", dir.join("etc/sources.list")),
            ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
            ("Dir::Etc::preferencesparts", dir.join("etc/preferences.d")),
            ("Dir::State", dir.join("state")),
            ("Dir::State::status", dir.join("state/status")),
            ("Dir::Cache", dir.join("cache")),
        ];
        for (name, path) in directories {
            apt.arg("-o").arg(format!("{name}={}", path.display()));
        }
        apt.args([
            "-o",
            &format!("APT::Architecture={ARCHITECTURE}"),
            "-o",
            &format!("APT::Architectures={ARCHITECTURE}"),
        ]);
        // apt would fetch as the user _apt, who cannot write to a directory under a home.
        apt.args([
            "-o",
            "APT::Sandbox::User=",
            "-o",
            "Acquire::Languages=none",
            "-o",
            "Acquire::Retries=3",
        ]);
        apt
    }
}

/// Unpacks a package into a directory that may have others, leaving out what matches one of tar's patterns.
///
/// Files belong to whoever runs this; links to directories (`/bin` is one) are followed, as dpkg does.
///
/// # Errors
/// When the package is damaged or the directory cannot be written.
pub(crate) fn extract(package: &Path, into: &Path, exclude: &[String]) -> Result<()> {
    let mut dpkg = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb; install the package dpkg")?;
    let mut tar = Command::new("tar");
    tar.args([
        "--extract",
        "--no-same-owner",
        "--same-permissions",
        "--keep-directory-symlink",
        "--wildcards",
    ]);
    tar.args(exclude.iter().map(|pattern| format!("--exclude={pattern}")))
        .arg("--directory")
        .arg(into);
    let unpacked = match dpkg.stdout.take() {
        Some(pipe) => command::filter(&mut tar, pipe),
        None => Err(anyhow!("dpkg-deb has no output")),
    };
    let status = dpkg.wait().context("cannot wait for dpkg-deb")?;
    unpacked.with_context(|| format!("cannot unpack {}", package.display()))?;
    if !status.success() {
        bail!("cannot read the package {} ({status})", package.display());
    }
    Ok(())
}

/// Unpacks packages into one directory, as [`extract`] does each.
///
/// # Errors
/// As [`extract`].
pub(crate) fn extract_all(packages: &[PathBuf], into: &Path, exclude: &[String], label: &str) -> Result<()> {
    // The tree's own package first: it has the links `/bin` and `/lib` that others unpack through.
    let (first, rest): (Vec<_>, Vec<_>) = packages
        .iter()
        .partition(|package| file_name(package).starts_with("base-files_"));
    let mut unpacked = progress::Counter::new(label);
    for package in first.into_iter().chain(rest) {
        extract(package, into, exclude)?;
        unpacked.tick();
    }
    Ok(())
}

/// The name of a package's file, `NAME_VERSION_ARCHITECTURE.deb`.
pub(crate) fn file_name(package: &Path) -> Cow<'_, str> {
    package.file_name().unwrap_or_default().to_string_lossy()
}

fn package_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .with_context(|| format!("cannot list {}", dir.display()))?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    files.sort();
    Ok(files)
}

/// The files of some packages, deleted with the archive they came from.
pub(crate) struct Tree<'a> {
    path: PathBuf,
    _archive: &'a Archive,
}

impl Tree<'_> {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_taken_from_debians_own_sources_only() {
        let text = "Docker|Docker CE|https://download.example.org/debian/\n\
                    Debian|Debian|http://mirror.example.org/debian/\n\
                    Debian|Debian-Security|http://mirror.example.org/debian-security/\n\
                    Debian|Debian|http://second.example.org/debian/\n\
                    Debian|Debian Backports|http://third.example.org/debian/\n";

        let mirrors = parse_index_targets(text);

        assert_eq!(mirrors.main.as_deref(), Some("http://mirror.example.org/debian"));
        assert_eq!(
            mirrors.security.as_deref(),
            Some("http://mirror.example.org/debian-security")
        );
    }

    #[test]
    fn the_newest_stanzas_of_the_template_name_the_archives() {
        let text = "Changelog: x\n\n\
                    Suite: {series}\nBaseURI: https://new.example.org/debian/\nX-Version: ge 12\n\n\
                    Suite: {series}\nBaseURI: https://old.example.org/debian/\n\n\
                    Suite: {series}-security\nBaseURI: https://safe.example.org/\n\n\
                    Suite: {series}-updates\nParentSuite: {series}\n";

        let mirrors = parse_template(text);

        assert_eq!(mirrors.main.as_deref(), Some("http://new.example.org/debian"));
        assert_eq!(
            mirrors.security.as_deref(),
            Some("http://safe.example.org/debian-security")
        );
    }

    #[test]
    fn a_host_without_debian_sources_has_no_mirrors() {
        assert_eq!(
            parse_index_targets("Ubuntu|Ubuntu|http://archive.example.org/ubuntu/\n\n|"),
            Mirrors::default()
        );
    }
}
