//! Questions for names, on [`crate::ports::DNS`]: the guest serves DNS to its containers and the host answers.
//!
//! The host dials, as always, and keeps the stream; the guest then asks on it, and the host answers in any order. Each way
//! goes a number, which the guest chooses and the answer repeats, a length and a DNS message ([`message`]). This is not
//! JSON because a busy guest asks hundreds of times a second and the messages are bytes.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub mod message;

/// The largest DNS message, in bytes: what its length over TCP can say (RFC 1035, section 4.2.2).
pub const MAX_MESSAGE: usize = u16::MAX as usize;

/// Bytes before each message: the number, then the length, both little-endian.
const HEADER: usize = 6;

/// A question, or the answer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Which question this is, or answers.
    pub number: u32,
    /// The DNS message. Nothing is known of it but that it is at most [`MAX_MESSAGE`] long.
    pub message: Vec<u8>,
}

impl Numbered {
    /// As it goes over the stream.
    ///
    /// # Errors
    /// When the message is over [`MAX_MESSAGE`].
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let length = u16::try_from(self.message.len()).map_err(|_| {
            let text = format!("a DNS message of {} bytes is too long", self.message.len());
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        let mut bytes = Vec::with_capacity(HEADER + self.message.len());
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&self.message);
        Ok(bytes)
    }

    /// Writes it and flushes.
    ///
    /// # Errors
    /// When the message is too long, or the stream fails.
    pub async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        stream.write_all(&self.encode()?).await?;
        stream.flush().await
    }

    /// Reads the next one; none at the end of the stream. Not cancellation-safe: a dropped future may have consumed part.
    ///
    /// # Errors
    /// When the stream fails, or ends within one.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Numbered>> {
        let mut header = [0; HEADER];
        let mut got = 0;
        while got < HEADER {
            match stream.read(&mut header[got..]).await? {
                0 if got == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => got += length,
            }
        }
        let [a, b, c, d, low, high] = header;
        let mut message = vec![0; u16::from_le_bytes([low, high]).into()];
        stream.read_exact(&mut message).await?;
        Ok(Some(Numbered {
            number: u32::from_le_bytes([a, b, c, d]),
            message,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(mut bytes: &[u8]) -> io::Result<Vec<Numbered>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut all = Vec::new();
            while let Some(one) = Numbered::read(&mut bytes).await? {
                all.push(one);
            }
            Ok(all)
        })
    }

    #[test]
    fn the_longest_message_fits_and_a_longer_one_is_refused() {
        let of = |length| Numbered {
            number: u32::MAX,
            message: vec![7; length],
        };
        let longest = of(MAX_MESSAGE);
        assert_eq!(read_all(&longest.encode().unwrap()).unwrap(), [longest]);
        assert!(of(MAX_MESSAGE + 1).encode().is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            messages in proptest::collection::vec((any::<u32>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..8),
            cut in 1usize..6,
        ) {
            let messages: Vec<_> = messages
                .into_iter()
                .map(|(number, message)| Numbered { number, message })
                .collect();
            let mut bytes: Vec<u8> = messages.iter().flat_map(|one| one.encode().unwrap()).collect();
            prop_assert_eq!(&read_all(&bytes).unwrap(), &messages);
            if !messages.is_empty() {
                bytes.truncate(bytes.len() - cut);
                prop_assert!(read_all(&bytes).is_err());
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read_all(&bytes);
        }
    }
}
