//! What the fuzz targets of this crate run; only in tests and with the feature `testing`.
//!
//! The bodies are here ([`fuzz_frames`], [`fuzz_packets`], [`fuzz_dns`]), so that the same code runs under cargo-fuzz for as long as one
//! likes and under `cargo test` on some random inputs.

mod dns;
mod frames;
mod packets;
mod stream;

pub use dns::fuzz_dns;
pub use frames::fuzz_frames;
pub use packets::fuzz_packets;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Bytes that look like what is on the wire more often than not: pieces of messages among arbitrary bytes.
    fn wire() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            vec(any::<u8>(), 0..20),
            r#"\{"(request|reply|event|id|message|kind|argv)":("[a-z_]{0,12}"|[0-9]{1,6}|\[\]|null)(,"pid":[0-9]{1,4})?\}"#
                .prop_map(framed),
            r#"\{"number":[0-9]{1,3},"(errors":\[[0-9]?|actions":\[(\{"number":[0-9],"action":("drop_caches"|\{"(refresh":\{"node":[0-9]|remove":\{"parent":1,"name":("[a-z/]{0,2}"|\[[0-9]{1,3}\]),"directory":true)\}\})\})?)\]\}"#
                .prop_map(framed),
            (0u8..8, vec(any::<u8>(), 0..10)).prop_map(|(kind, payload)| {
                let mut packet = vec![kind];
                packet.extend((payload.len() as u32).to_le_bytes());
                packet.extend(payload);
                packet
            }),
        ];
        vec(piece, 0..10).prop_map(|pieces| pieces.concat())
    }

    fn framed(text: String) -> Vec<u8> {
        let mut frame = (text.len() as u32).to_le_bytes().to_vec();
        frame.extend(text.into_bytes());
        frame
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_frames(bytes in wire()) {
            fuzz_frames(&bytes);
        }

        #[test]
        fn no_bytes_break_the_names(
            piece: u8,
            number: u32,
            bits in 0u8..2,
            labels in vec(vec(any::<u8>(), 1..5), 0..4),
            rest in vec(any::<u8>(), 0..30),
        ) {
            let mut message = vec![0, 7, bits, 0, 0, 1, 0, 0, 0, 0, 0, bits];
            for label in labels {
                message.push(label.len() as u8);
                message.extend(label);
            }
            message.push(0);
            message.extend(rest);
            fuzz_dns(&[&[piece], &message[..]].concat());
            let stream = crate::dns::Numbered { number, message };
            fuzz_dns(&[&[piece], &stream.encode().unwrap()[..]].concat());
        }

        #[test]
        fn no_bytes_break_the_packets(bytes in wire()) {
            fuzz_packets(&bytes);
        }
    }
}
