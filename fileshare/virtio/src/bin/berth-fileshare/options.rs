//! The command line: virtiofsd's names where virtiofsd has the option.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use fileshare::passthrough::{CachePolicy, PassthroughConfig, Unowned};
use fileshare_virtio::{MAX_REQUEST_QUEUES, MAX_THREADS_PER_QUEUE};
use tracing_subscriber::filter::LevelFilter;

/// Shares a directory with a virtual machine: a virtio-fs device over vhost-user.
#[derive(Debug, Parser)]
#[command(name = "berth-fileshare", version)]
pub(crate) struct Options {
    /// The directory to share.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) shared_dir: PathBuf,

    /// Listen for the VMM here. A socket that a server before has left is replaced.
    #[arg(long, value_name = "PATH", required_unless_present = "fd")]
    pub(crate) socket_path: Option<PathBuf>,

    /// Listen on this open descriptor, a bound Unix socket.
    #[arg(long, value_name = "NUMBER", conflicts_with = "socket_path")]
    pub(crate) fd: Option<i32>,

    /// The tag the guest mounts, for VMMs that ask for it (QEMU has its own option).
    #[arg(long, default_value = "")]
    pub(crate) tag: String,

    /// Refuse all changes.
    #[arg(long)]
    pub(crate) readonly: bool,

    /// What the guest may keep.
    #[arg(long, value_enum, default_value_t = Cache::Auto, value_name = "POLICY")]
    pub(crate) cache: Cache,

    /// How many requests of each queue may be in work at once, besides those that wait for a lock; 0 is 1.
    #[arg(long, default_value_t = 2, value_name = "THREADS",
          value_parser = clap::value_parser!(u16).range(..=i64::from(MAX_THREADS_PER_QUEUE)))]
    pub(crate) thread_pool_size: u16,

    /// How many request queues the VMM may use.
    #[arg(long, default_value_t = 16, value_name = "QUEUES",
          value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_REQUEST_QUEUES)))]
    pub(crate) num_request_queues: u16,

    /// Who owns files whose owner no guest has set: `host`, as on the host; `asker`, whoever looks; or UID:GID.
    #[arg(long, default_value = "host", value_parser = parse_owner, value_name = "WHO")]
    pub(crate) owner: Unowned,

    /// What is logged to standard error: off, error, warn, info, debug or trace.
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub(crate) log_level: LevelFilter,

    /// How many files may be open; 0 leaves the limit alone. As many as allowed when not given.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) rlimit_nofile: Option<u64>,

    /// Accepted: mount points below the directory are always announced.
    #[arg(long)]
    pub(crate) announce_submounts: bool,

    /// Accepted: extended attributes are always there.
    #[arg(long)]
    pub(crate) xattr: bool,

    /// Accepted and without effect: confinement is by openat2 and landlock, which need no privileges.
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) sandbox: Option<Sandbox>,
}

/// What the guest may keep, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cache {
    /// Names and attributes for a second, contents until they have changed.
    Auto,
    /// Everything for a day: nobody else may change the directory.
    Always,
    /// Nothing.
    Never,
    /// Names and attributes for a day, contents not at all.
    Metadata,
}

/// virtiofsd's sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sandbox {
    Namespace,
    Chroot,
    None,
}

impl Options {
    /// What they make of the file system.
    pub(crate) fn passthrough(&self) -> PassthroughConfig {
        let day = PassthroughConfig::with_cache(CachePolicy::Always);
        let (attr_timeout, entry_timeout): (Duration, Duration) = (day.attr_timeout, day.entry_timeout);
        let config = match self.cache {
            Cache::Auto => PassthroughConfig::with_cache(CachePolicy::Auto),
            Cache::Always => day,
            Cache::Never => PassthroughConfig::with_cache(CachePolicy::Never),
            Cache::Metadata => PassthroughConfig {
                attr_timeout,
                entry_timeout,
                ..PassthroughConfig::with_cache(CachePolicy::Never)
            },
        };
        PassthroughConfig {
            unowned: self.owner,
            submounts: true,
            ..config
        }
    }
}

fn parse_owner(text: &str) -> Result<Unowned, String> {
    match text {
        "host" => Ok(Unowned::Host),
        "asker" => Ok(Unowned::Asker),
        _ => {
            let parse = || {
                let (uid, gid) = text.split_once(':')?;
                Some(Unowned::As {
                    uid: uid.parse().ok()?,
                    gid: gid.parse().ok()?,
                })
            };
            parse().ok_or_else(|| "give host, asker, or numbers as UID:GID".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Options, clap::Error> {
        Options::try_parse_from(std::iter::once("berth-fileshare").chain(words.split_whitespace()))
    }

    #[test]
    fn a_command_line_for_virtiofsd_is_understood() {
        let options = parse(
            "--fd=3 --shared-dir /srv --cache auto --announce-submounts --sandbox=none --xattr \
             --thread-pool-size=0 --readonly --log-level off --tag t",
        )
        .unwrap();
        assert_eq!(options.fd, Some(3));
        assert!(options.readonly && options.xattr && options.announce_submounts);
        assert_eq!(options.thread_pool_size, 0);
        assert_eq!(options.sandbox, Some(Sandbox::None));
        assert_eq!(options.passthrough().cache, CachePolicy::Auto);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for words in [
            "--shared-dir /srv",
            "--socket-path /s",
            "--shared-dir /srv --socket-path /s --fd 3",
            "--shared-dir /srv --fd 3 --cache sometimes",
            "--shared-dir /srv --fd 3 --thread-pool-size 65",
            "--shared-dir /srv --fd 3 --num-request-queues 0",
            "--shared-dir /srv --fd 3 --owner me",
            "--shared-dir /srv --fd 3 --owner 1:x",
            "--shared-dir /srv --fd 3 --log-level loud",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
    }

    #[test]
    fn policies_differ_in_what_is_kept() {
        let of = |cache: &str| {
            parse(&format!("--shared-dir /srv --fd 3 --owner 7:8 --cache {cache}"))
                .unwrap()
                .passthrough()
        };
        assert_eq!(of("never").attr_timeout, Duration::ZERO);
        assert_eq!(of("always").cache, CachePolicy::Always);
        let metadata = of("metadata");
        assert_eq!(metadata.cache, CachePolicy::Never);
        assert_eq!(metadata.entry_timeout, of("always").entry_timeout);
        assert_eq!(metadata.unowned, Unowned::As { uid: 7, gid: 8 });
    }
}
