//! Arbitrary bytes as frames of every message.

use std::fmt::Debug;
use std::mem::discriminant;

use serde::{Serialize, de::DeserializeOwned};

use super::stream::{Pieces, run};
use crate::boot::{GuestEvent, GuestHello, HostHello};
use crate::control::{Reply, Request};
use crate::exec::{ExecReply, ExecRequest};
use crate::frame::{self, FrameError};
use crate::logs::{LogReply, LogRequest};
use crate::replay::{Batch, Done};

/// The body of the fuzz target `frames`. The first byte says how the rest is cut into pieces.
pub fn fuzz_frames(bytes: &[u8]) {
    let (piece, bytes) = bytes
        .split_first()
        .map_or((1, bytes), |(first, rest)| (*first, rest));
    let piece = usize::from(piece);
    all::<GuestHello>(bytes, piece);
    all::<HostHello>(bytes, piece);
    all::<GuestEvent>(bytes, piece);
    all::<Request>(bytes, piece);
    all::<Reply>(bytes, piece);
    all::<ExecRequest>(bytes, piece);
    all::<ExecReply>(bytes, piece);
    all::<LogRequest>(bytes, piece);
    all::<LogReply>(bytes, piece);
    all::<Batch>(bytes, piece);
    all::<Done>(bytes, piece);
}

/// Reads frame after frame both ways until one is refused. Both must see the same and take the same bytes; what was read can
/// be written and read again.
fn all<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8], piece: usize) {
    let mut blocking = bytes;
    let mut pieces = Pieces::new(bytes, piece);
    loop {
        let read = frame::read::<T>(&mut blocking);
        let read_async = run(frame::read_async::<T>(&mut pieces));
        let agree = match (&read, &read_async) {
            (Ok(one), Ok(other)) => format!("{one:?}") == format!("{other:?}"),
            (Err(one), Err(other)) => discriminant(one) == discriminant(other),
            _ => false,
        };
        assert!(agree, "{read:?} and {read_async:?}");
        if let Ok(_) | Err(FrameError::Malformed(_)) = read {
            assert_eq!(bytes.len() - blocking.len(), pieces.taken);
        }
        match read {
            Ok(message) => survives(&message),
            // The stream goes on after a body that makes no sense.
            Err(FrameError::Malformed(_)) => {}
            Err(_) => return,
        }
    }
}

fn survives<T: Serialize + DeserializeOwned + Debug>(message: &T) {
    let wire = match frame::encode(message) {
        Ok(wire) => wire,
        // JSON may be longer than what it was read from.
        Err(FrameError::TooLarge(_)) => return,
        Err(error) => panic!("{message:?} cannot be written: {error}"),
    };
    let again: T = frame::read(&mut &wire[..]).unwrap();
    let wire_again = frame::encode(&again).unwrap();
    assert_eq!(wire.len(), wire_again.len(), "{message:?} became {again:?}");
}
