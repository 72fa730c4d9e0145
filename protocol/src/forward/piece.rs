//! The pieces of a forwarded stream: a little-endian `u32` length and that many bytes, or the mark of the end.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The most bytes a piece may have: a whole datagram, or a good read of a stream.
pub const MAX_PIECE: usize = 64 * 1024;
/// In place of a length: the sender has said all it had to say.
const END: u32 = u32::MAX;
const HEADER: usize = 4;

/// What comes next of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes, or a datagram, which may be empty.
    Data(&'a [u8]),
    /// Nothing more comes this way.
    End,
}

/// Room for a piece and its header, so that both go out in one write.
#[derive(Debug)]
pub struct PieceBuffer(Vec<u8>);

impl PieceBuffer {
    /// Room for `capacity` bytes, [`MAX_PIECE`] at most.
    pub fn new(capacity: usize) -> PieceBuffer {
        PieceBuffer(vec![0; HEADER + capacity.min(MAX_PIECE)])
    }

    /// Where the bytes go.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.0[HEADER..]
    }

    /// Makes room for four times as much, [`MAX_PIECE`] at most.
    pub fn grow(&mut self) {
        let capacity = self.0.len() - HEADER;
        self.0.resize(HEADER + (capacity * 4).min(MAX_PIECE), 0);
    }

    /// Sends the first `length` bytes of the room as a piece.
    ///
    /// # Errors
    /// What writing failed with; part of the piece may have been written.
    ///
    /// # Panics
    /// When there are fewer bytes than `length`.
    pub async fn send(&mut self, to: &mut (impl AsyncWrite + Unpin), length: usize) -> io::Result<()> {
        assert!(length <= self.0.len() - HEADER);
        // At most MAX_PIECE, by `new` and `grow`.
        self.0[..HEADER].copy_from_slice(&(length as u32).to_le_bytes());
        to.write_all(&self.0[..HEADER + length]).await
    }
}

/// Sends `data` as one piece.
///
/// # Errors
/// `InvalidInput` when it is over [`MAX_PIECE`]; what writing failed with.
pub async fn write_piece(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> io::Result<()> {
    if data.len() > MAX_PIECE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut buffer = PieceBuffer::new(data.len());
    buffer.room().copy_from_slice(data);
    buffer.send(to, data.len()).await
}

/// Sends the mark of the end.
///
/// # Errors
/// What writing failed with.
pub async fn write_end(to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    to.write_all(&END.to_le_bytes()).await
}

/// Reads pieces.
#[derive(Debug)]
pub struct PieceReader<R> {
    from: R,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> PieceReader<R> {
    /// Reads pieces of `from`, which is at the beginning of one.
    pub fn new(from: R) -> PieceReader<R> {
        PieceReader {
            from,
            buffer: Vec::new(),
        }
    }

    /// The next piece. Not cancellation-safe: a dropped future may have consumed part of a piece.
    ///
    /// # Errors
    /// `UnexpectedEof` when the stream was cut, `InvalidData` for a length over [`MAX_PIECE`], and what reading failed with.
    pub async fn next(&mut self) -> io::Result<Piece<'_>> {
        let mut header = [0; HEADER];
        self.from.read_exact(&mut header).await?;
        let length = u32::from_le_bytes(header);
        if length == END {
            return Ok(Piece::End);
        }
        let length = length as usize;
        if length > MAX_PIECE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a piece of {length} bytes is over the limit of {MAX_PIECE}"),
            ));
        }
        if self.buffer.len() < length {
            self.buffer.resize(length, 0);
        }
        self.from.read_exact(&mut self.buffer[..length]).await?;
        Ok(Piece::Data(&self.buffer[..length]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    proptest! {
        #[test]
        fn pieces_arrive_as_they_were_sent(pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..3000), 0..8))
        {
            run(async {
                let mut wire = Vec::new();
                for piece in &pieces {
                    write_piece(&mut wire, piece).await.unwrap();
                }
                write_end(&mut wire).await.unwrap();
                let mut reader = PieceReader::new(&wire[..]);
                for piece in &pieces {
                    assert_eq!(reader.next().await.unwrap(), Piece::Data(piece));
                }
                assert_eq!(reader.next().await.unwrap(), Piece::End);
                assert_eq!(reader.next().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            });
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            run(async {
                let mut reader = PieceReader::new(&bytes[..]);
                while let Ok(piece) = reader.next().await {
                    if let Piece::Data(data) = piece {
                        assert!(data.len() <= bytes.len());
                    }
                }
                assert!(reader.buffer.len() <= MAX_PIECE);
            });
        }
    }

    #[test]
    fn a_piece_over_the_limit_is_refused_at_both_ends() {
        run(async {
            let large = vec![0; MAX_PIECE + 1];
            assert!(write_piece(&mut Vec::new(), &large).await.is_err());
            let header = (MAX_PIECE as u32 + 1).to_le_bytes();
            let error = PieceReader::new(&header[..]).next().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        });
    }
}
