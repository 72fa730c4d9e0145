//! `berth events`: what the host changes in the shares, as the machine is told of it.

use std::fmt::Write as _;
use std::io::Write;
use std::mem::MaybeUninit;

use anyhow::{Context, Result};

use super::context::{CommandContext, block_on};
use crate::api::types::ChangeReport;
use crate::output::ignore_closed_pipe;

/// Prints changes as they happen, until it is interrupted or the machine is gone.
pub(super) fn run(context: &CommandContext) -> Result<()> {
    block_on(async {
        let changes = context.client().changes().await;
        let mut changes = changes.map_err(|error| context.client_error(error))?;
        while let Some(change) = changes.next().await? {
            let line = if context.output.json {
                serde_json::to_string(&change)?
            } else {
                describe(&change, local_time)
            };
            let mut out = std::io::stdout().lock();
            let written = writeln!(out, "{line}").and_then(|()| out.flush());
            let open = written.is_ok();
            ignore_closed_pipe(written).context("cannot write to standard output")?;
            if !open {
                return Ok(());
            }
        }
        context.output.remark("The machine has ended.");
        Ok(())
    })
}

/// A change in one line. `time` says what time of day so many seconds after the Unix epoch are.
fn describe(change: &ChangeReport, time: impl Fn(u64) -> String) -> String {
    let mut line = format!(
        "{}.{:03}  {:<11}",
        time(change.unix_time_ms / 1000),
        change.unix_time_ms % 1000,
        change.kind
    );
    if let Some(path) = &change.path {
        line.push_str("  ");
        line.push_str(&harmless(path));
    }
    if let Some(path) = &change.new_path {
        line.push_str(" -> ");
        line.push_str(&harmless(path));
    }
    // A string takes everything.
    let _ = write!(line, "  {:.1} ms", change.latency_ms);
    if let Some(error) = &change.error {
        line.push_str("  ");
        line.push_str(error);
    }
    line
}

/// A path that may have anything in it, as a terminal can be given it.
fn harmless(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for c in path.chars() {
        if c.is_control() {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    text
}

/// The user's time of day.
fn local_time(seconds: u64) -> String {
    let Ok(seconds) = libc::time_t::try_from(seconds) else {
        return "--:--:--".into();
    };
    let mut broken_down = MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are valid for the call, and the second is for a `tm` to be written to.
    let written = unsafe { libc::localtime_r(&raw const seconds, broken_down.as_mut_ptr()) };
    if written.is_null() {
        return "--:--:--".into();
    }
    // SAFETY: localtime_r(3) has written it, as its return value says.
    let time = unsafe { broken_down.assume_init() };
    format!("{:02}:{:02}:{:02}", time.tm_hour, time.tm_min, time.tm_sec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change() -> ChangeReport {
        ChangeReport {
            unix_time_ms: 5_007,
            kind: "modify".into(),
            path: Some("/home/me/a b".into()),
            new_path: None,
            latency_ms: 1.25,
            error: None,
        }
    }

    fn line(change: &ChangeReport) -> String {
        describe(change, |seconds| format!("<{seconds}>"))
    }

    #[test]
    fn a_change_is_a_line() {
        assert_eq!(line(&change()), "<5>.007  modify       /home/me/a b  1.2 ms");
        let rename = ChangeReport {
            kind: "rename".into(),
            new_path: Some("/home/me/c".into()),
            error: Some("ESTALE".into()),
            ..change()
        };
        assert_eq!(
            line(&rename),
            "<5>.007  rename       /home/me/a b -> /home/me/c  1.2 ms  ESTALE"
        );
        let all = ChangeReport {
            kind: "overflow".into(),
            path: None,
            ..change()
        };
        assert_eq!(line(&all), "<5>.007  overflow     1.2 ms");
    }

    #[test]
    fn no_name_makes_a_second_line_or_moves_the_cursor() {
        let change = ChangeReport {
            path: Some("/é\n\u{1b}[2J".into()),
            ..change()
        };
        assert_eq!(line(&change), r"<5>.007  modify       /é\n\u{1b}[2J  1.2 ms");
    }

    #[test]
    fn the_time_of_day_is_one() {
        let time = local_time(86_399);
        let fields: Vec<u32> = time.split(':').map(|field| field.parse().unwrap()).collect();
        assert!(
            fields.len() == 3 && fields[0] < 24 && fields[1] < 60 && fields[2] < 60,
            "{time}"
        );
        assert_eq!(local_time(u64::MAX), "--:--:--");
    }
}
