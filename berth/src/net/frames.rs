//! The protocol of a stream network device: a 4-byte big-endian length before each Ethernet frame. A stream may be cut and
//! joined to another only between frames.

/// The largest frame taken, in bytes: a maximal IP packet with room for any link header.
const MAX_FRAME: usize = 65535 + 64;
/// The buffer: the largest frame, and enough behind it that small ones go in one piece.
const BUFFER: usize = 4 * (MAX_FRAME + 4);

/// The length before a frame was impossible: this is not that protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes was announced")]
pub(super) struct BadFrame(usize);

/// Collects bytes and gives out whole frames.
#[derive(Debug)]
pub(super) struct Frames {
    buffer: Box<[u8]>,
    filled: usize,
}

impl Frames {
    pub(super) fn new() -> Self {
        Frames {
            buffer: vec![0; BUFFER].into(),
            filled: 0,
        }
    }

    /// Where to read the next bytes to; never empty after [`Frames::consume`] took what [`Frames::whole`] gave.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..]
    }

    /// That many bytes were read to [`Frames::space`].
    pub(super) fn add(&mut self, length: usize) {
        self.filled += length;
    }

    /// The whole frames at the beginning, lengths included.
    pub(super) fn whole(&self) -> Result<&[u8], BadFrame> {
        let mut end = 0;
        while let Some((header, rest)) = self.buffer[end..self.filled].split_first_chunk() {
            let length = u32::from_be_bytes(*header) as usize;
            if length > MAX_FRAME {
                return Err(BadFrame(length));
            }
            if rest.len() < length {
                break;
            }
            end += header.len() + length;
        }
        Ok(&self.buffer[..end])
    }

    /// Drops that many bytes from the beginning.
    pub(super) fn consume(&mut self, length: usize) {
        self.buffer.copy_within(length..self.filled, 0);
        self.filled -= length;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_come_out_whole_and_in_order_however_they_are_cut(
            lengths in proptest::collection::vec(0usize..3000, 0..40),
            cuts in proptest::collection::vec(1usize..4000, 1..10),
        ) {
            let mut wire = Vec::new();
            for (index, length) in lengths.iter().enumerate() {
                wire.extend_from_slice(&(*length as u32).to_be_bytes());
                wire.extend(std::iter::repeat_n(index as u8, *length));
            }
            let mut frames = Frames::new();
            let mut out = Vec::new();
            let mut rest = &wire[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let length = (*cut).min(rest.len()).min(frames.space().len());
                prop_assert!(length > 0);
                frames.space()[..length].copy_from_slice(&rest[..length]);
                frames.add(length);
                rest = &rest[length..];
                let whole = frames.whole().unwrap();
                let length = whole.len();
                out.extend_from_slice(whole);
                frames.consume(length);
            }
            prop_assert_eq!(frames.filled, 0);
            prop_assert_eq!(out, wire);
        }

        #[test]
        fn any_bytes_leave_space_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut frames = Frames::new();
            frames.space()[..bytes.len()].copy_from_slice(&bytes);
            frames.add(bytes.len());
            if let Ok(whole) = frames.whole() {
                let length = whole.len();
                frames.consume(length);
                prop_assert!(!frames.space().is_empty());
            }
        }
    }
}
