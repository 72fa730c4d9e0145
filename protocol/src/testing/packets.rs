//! Arbitrary bytes as packets of a process's streams.

use super::stream::{Pieces, run};
use crate::exec::Packet;

/// The body of the fuzz target `packets`. The first byte says how the rest is cut into pieces.
pub fn fuzz_packets(bytes: &[u8]) {
    let (piece, bytes) = bytes
        .split_first()
        .map_or((1, bytes), |(first, rest)| (*first, rest));
    let mut pieces = Pieces::new(bytes, piece.into());
    let mut before = 0;
    loop {
        match run(Packet::read(&mut pieces)) {
            Ok(Some(packet)) => {
                // There is one way to write a packet.
                let wire = packet.encode().unwrap();
                assert_eq!(wire, bytes[before..pieces.taken], "{packet:?}");
                before = pieces.taken;
            }
            Ok(None) => {
                assert_eq!(before, bytes.len(), "the stream ended in a packet");
                return;
            }
            Err(_) => return,
        }
    }
}
