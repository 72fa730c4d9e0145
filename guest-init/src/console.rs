//! guest-init's own log lines.
//!
//! They go into the kernel's ring buffer through `/dev/kmsg`, which puts them on the kernel's console, keeps them for
//! `berth logs`, orders them among the kernel's own messages, and never blocks: PID 1 writing to `/dev/console` would
//! stop with a host that does not drain it. Until the ring is open, and in tests, lines go to standard error.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

/// What every line of ours begins with.
const PREFIX: &str = "guest-init: ";

/// Longest text of one record, in bytes. The kernel refuses records over about 1000 bytes (`PRINTKRB_RECORD_MAX`).
const MAX_RECORD: usize = 900;

static RING: OnceLock<File> = OnceLock::new();

/// How bad a line is. The numbers are syslog priorities with the daemon facility (3 << 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Something failed.
    Error = 24 + 3,
    /// Something is not as it should be.
    Warning = 24 + 4,
    /// A step of the machine's life. "Notice" rather than "info", which is where the kernel's own chatter is.
    Notice = 24 + 5,
}

/// Opens the ring buffer. Call it once `/dev` is mounted.
pub(crate) fn open() {
    match OpenOptions::new().write(true).open("/dev/kmsg") {
        Ok(file) => drop(RING.set(file)),
        Err(e) => log(
            Level::Warning,
            format_args!("cannot open /dev/kmsg, logging to standard error: {e}"),
        ),
    }
}

/// Lets our lines through: no rate limit for writers of the ring buffer (the default drops lines when much happens at
/// once, which is when they matter), and notices on the console even when the kernel was started with `quiet`.
/// Call it once `/proc` is mounted.
pub(crate) fn configure() {
    for (path, value) in [
        // The kernel insists on the line end.
        ("/proc/sys/kernel/printk_devkmsg", "on\n"),
        ("/proc/sys/kernel/printk", "6"),
    ] {
        if let Err(e) = std::fs::write(path, value) {
            log(
                Level::Warning,
                format_args!("cannot write {value:?} to {path}: {e}"),
            );
        }
    }
}

/// Logs one message; use the macros.
pub(crate) fn log(level: Level, message: fmt::Arguments<'_>) {
    let text = message.to_string();
    for line in lines_for_ring(&text) {
        let written = RING.get().is_some_and(|mut ring| {
            ring.write_all(format!("<{}>{PREFIX}{line}\n", level as u8).as_bytes())
                .is_ok()
        });
        if !written {
            // Nothing is left to report to when this fails too.
            let _ = writeln!(std::io::stderr(), "{PREFIX}{line}");
        }
    }
}

/// Splits a message into records: one per line, none too long, none cut inside a character.
fn lines_for_ring(text: &str) -> Vec<&str> {
    let mut records = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut rest = line;
        while rest.len() > MAX_RECORD {
            let mut cut = MAX_RECORD;
            while !rest.is_char_boundary(cut) {
                cut -= 1;
            }
            let (head, tail) = rest.split_at(cut);
            records.push(head);
            rest = tail;
        }
        records.push(rest);
    }
    records
}

/// Makes panics say where and why on the console, in one line.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|info| {
        log(Level::Error, format_args!("internal error: {info}"));
    }));
}

/// Logs a step of the machine's life.
macro_rules! notice {
    ($($arg:tt)*) => { $crate::console::log($crate::console::Level::Notice, format_args!($($arg)*)) };
}
/// Logs something that is not as it should be.
macro_rules! warning {
    ($($arg:tt)*) => { $crate::console::log($crate::console::Level::Warning, format_args!($($arg)*)) };
}
/// Logs a failure.
macro_rules! error {
    ($($arg:tt)*) => { $crate::console::log($crate::console::Level::Error, format_args!($($arg)*)) };
}
pub(crate) use {error, notice, warning};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_split_into_records_the_kernel_accepts() {
        let long = "é".repeat(MAX_RECORD);
        let records = lines_for_ring(&long);
        assert!(records.len() > 1);
        assert!(records.iter().all(|r| r.len() <= MAX_RECORD));
        assert_eq!(records.concat(), long);
    }

    #[test]
    fn lines_become_records_and_empty_ones_are_dropped() {
        assert_eq!(lines_for_ring("a\n\n  \nb\n"), ["a", "b"]);
    }

    #[test]
    fn levels_are_syslog_priorities_of_the_daemon_facility() {
        assert_eq!(
            [Level::Error as u8, Level::Warning as u8, Level::Notice as u8],
            [27, 28, 29]
        );
    }
}
