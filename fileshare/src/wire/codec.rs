//! How a structure becomes bytes and back, without `unsafe`.

/// A value with a fixed size on the wire.
pub trait Wire: Sized {
    /// Bytes on the wire.
    const SIZE: usize;

    /// Takes a value off the front of `bytes`; none, and an unspecified rest, when they are too few.
    fn take(bytes: &mut &[u8]) -> Option<Self>;

    /// Appends the value.
    fn put(&self, to: &mut Encoder<'_>);

    /// The value in the first [`Self::SIZE`] bytes; none when they are fewer.
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        Self::take(&mut bytes)
    }

    /// The value as bytes of its own.
    fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::SIZE];
        self.put(&mut Encoder::new(&mut bytes));
        bytes
    }
}

/// Fills a piece of memory from the front.
#[derive(Debug)]
pub struct Encoder<'a> {
    bytes: &'a mut [u8],
    filled: usize,
}

impl<'a> Encoder<'a> {
    /// Writes to the front of `bytes`.
    pub fn new(bytes: &'a mut [u8]) -> Encoder<'a> {
        Encoder { bytes, filled: 0 }
    }

    /// How many bytes have been put.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Appends bytes. What does not fit is left out whole: callers size their memory by [`Wire::SIZE`].
    pub fn put(&mut self, bytes: &[u8]) {
        let end = self.filled + bytes.len();
        debug_assert!(end <= self.bytes.len(), "{end} bytes into {}", self.bytes.len());
        if let Some(room) = self.bytes.get_mut(self.filled..end) {
            room.copy_from_slice(bytes);
            self.filled = end;
        }
    }
}

macro_rules! wire_integer {
    ($($type:ty),*) => {$(
        impl Wire for $type {
            const SIZE: usize = size_of::<$type>();

            #[inline]
            fn take(bytes: &mut &[u8]) -> Option<Self> {
                let (first, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(<$type>::from_le_bytes(*first))
            }

            #[inline]
            fn put(&self, to: &mut Encoder<'_>) {
                to.put(&self.to_le_bytes());
            }
        }
    )*};
}

wire_integer!(u16, u32, u64, i32, i64);

/// An array is its elements one after the other.
impl<T: Wire + Copy + Default, const N: usize> Wire for [T; N] {
    const SIZE: usize = T::SIZE * N;

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let mut array = [T::default(); N];
        for element in &mut array {
            *element = T::take(bytes)?;
        }
        Some(array)
    }

    fn put(&self, to: &mut Encoder<'_>) {
        for element in self {
            element.put(to);
        }
    }
}

/// Defines a structure whose fields lie one after the other without gaps, and its [`Wire`].
macro_rules! wire_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        impl $crate::wire::Wire for $name {
            const SIZE: usize = 0 $(+ <$type as $crate::wire::Wire>::SIZE)*;

            #[inline]
            fn take(bytes: &mut &[u8]) -> Option<Self> {
                Some($name { $($field: <$type as $crate::wire::Wire>::take(bytes)?,)* })
            }

            #[inline]
            fn put(&self, to: &mut $crate::wire::Encoder<'_>) {
                $($crate::wire::Wire::put(&self.$field, to);)*
            }
        }
    };
}

pub(super) use wire_struct;
