//! The bytes of a response as they came.
//!
//! Some of dockerd's answers end HTTP on the connection: `101 Switching Protocols`, and the older way, a `200` without
//! any length after which both sides send raw bytes. Those are handed on exactly as they came, so what hyper reads of the
//! beginning of a response is kept until it is known which kind it is.

use std::sync::Mutex;

use bytes::Bytes;

/// Keeps what is read while it is armed.
#[derive(Debug, Default)]
pub(super) struct Tap(Mutex<Option<Vec<u8>>>);

impl Tap {
    /// Starts to keep what is read from now on.
    pub(super) fn arm(&self) {
        *self.lock() = Some(Vec::new());
    }

    /// Keeps no more; what was kept since [`Tap::arm`].
    pub(super) fn disarm(&self) -> Bytes {
        self.lock().take().unwrap_or_default().into()
    }

    /// `bytes` were read.
    pub(super) fn record(&self, bytes: &[u8]) {
        if let Some(kept) = &mut *self.lock() {
            kept.extend_from_slice(bytes);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Vec<u8>>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Cuts interim responses (1xx other than 101) off the beginning of `bytes`: hyper has dealt with those.
pub(super) fn without_interim(mut bytes: Bytes) -> Bytes {
    while is_interim(&bytes) {
        let Some(end) = head_length(&bytes) else {
            break;
        };
        let _ = bytes.split_to(end);
    }
    bytes
}

fn is_interim(bytes: &[u8]) -> bool {
    let status = bytes
        .strip_prefix(b"HTTP/1.")
        .and_then(|rest| rest.get(1..5))
        .and_then(|rest| rest.strip_prefix(b" "));
    matches!(status, Some([b'1', _, _]) if status != Some(b"101"))
}

/// The length of the head at the beginning of `bytes`, its empty line included. Lines may end in LF alone, as hyper has it.
fn head_length(bytes: &[u8]) -> Option<usize> {
    let mut line_start = 0;
    for (index, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        if matches!(&bytes[line_start..index], b"" | b"\r") {
            return Some(index + 1);
        }
        line_start = index + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn interim_responses_are_cut_off_and_nothing_else() {
        let cut = |text: &'static str| without_interim(Bytes::from_static(text.as_bytes()));
        assert_eq!(
            cut(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nA: b\r\n\r\nHTTP/1.1 101 UPGRADED\r\n\r\nraw"
            ),
            "HTTP/1.1 101 UPGRADED\r\n\r\nraw"
        );
        assert_eq!(
            cut("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 100 x\r\n\r\n"),
            "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 100 x\r\n\r\n"
        );
        assert_eq!(cut("HTTP/1.1 100 Continue\r\n"), "HTTP/1.1 100 Continue\r\n");
    }

    #[test]
    fn only_an_armed_tap_keeps() {
        let tap = Tap::default();
        tap.record(b"a");
        tap.arm();
        tap.record(b"b");
        tap.record(b"c");
        assert_eq!(tap.disarm(), "bc");
        tap.record(b"d");
        assert_eq!(tap.disarm(), "");
    }

    proptest! {
        #[test]
        fn what_is_left_is_always_the_tail_of_what_came(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            prop_assert!(bytes.ends_with(&without_interim(bytes.clone())));
        }
    }
}
