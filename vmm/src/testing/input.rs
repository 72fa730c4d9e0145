//! Arbitrary bytes as a source of choices.

use super::machine::EDGES;

/// Arbitrary bytes, read from the front; zeros when they are used up.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `count` bytes, or as many as there are.
    pub(super) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        first
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(super) fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(super) fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(super) fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// True in `of` of 256 cases, never when the input is used up.
    pub(super) fn chance(&mut self, of: u8) -> bool {
        self.byte() > u8::MAX - of
    }

    /// One of a list.
    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }

    /// A number for a 32-bit field: mostly a small one, sometimes one at an edge.
    pub(super) fn number(&mut self) -> u32 {
        match self.byte() {
            0..120 => u32::from(self.byte()),
            120..200 => u32::from(self.short()),
            200..215 => u32::MAX - u32::from(self.byte()),
            215..230 => 1 << (self.byte() % 32),
            _ => self.word(),
        }
    }

    /// An address in the guest's memory, where something of interest is or ends; or one outside.
    pub(super) fn address(&mut self) -> u64 {
        match self.byte() {
            // The buffers of the test driver's queues.
            0..100 => (16 << 20) + u64::from(self.short()) * 8,
            // The rings of one of its queues.
            100..160 => {
                let area = self.pick(&[0x1000, 0x8_1000, 0xa_1000]);
                (u64::from(self.byte() % 5) << 20) + area + u64::from(self.short() % 1024)
            }
            160..220 => (self.pick(EDGES) + u64::from(self.byte())).wrapping_sub(u64::from(self.byte())),
            220..240 => u64::from(self.word()),
            _ => self.long(),
        }
    }

    /// The length of a buffer.
    pub(super) fn length(&mut self) -> u32 {
        match self.byte() {
            0..100 => u32::from(self.byte()),
            100..180 => u32::from(self.short() % 8192),
            180..190 => 0,
            _ => self.number(),
        }
    }
}
