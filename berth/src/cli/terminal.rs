//! The terminal a command runs in: raw while a process in the guest has it, and always given back.

use std::io;
use std::os::fd::BorrowedFd;

use protocol::exec::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Standard input's terminal in raw mode; dropping it puts the terminal back.
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Makes the terminal raw.
    pub(super) fn enter() -> io::Result<RawTerminal> {
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Drain, &raw)?;
        Ok(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// The size of the terminal behind `fd`.
pub(super) fn size(fd: BorrowedFd<'_>) -> Option<TerminalSize> {
    let size = tcgetwinsize(fd).ok()?;
    Some(TerminalSize {
        rows: size.ws_row,
        cols: size.ws_col,
    })
}
