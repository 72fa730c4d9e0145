//! Length-prefixed JSON frames: a little-endian `u32` length, then that many bytes of JSON.

use std::io::{Read, Write};

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest body a frame may have, in bytes. A configuration or a status is a few kilobytes.
pub const MAX_FRAME: usize = 1 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed or ended inside a frame.
    #[error("the connection to the other side failed")]
    Io(#[from] std::io::Error),
    /// The stream ended cleanly between two frames.
    #[error("the other side closed the connection")]
    Closed,
    /// The announced length is over [`MAX_FRAME`].
    #[error("a frame of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLarge(usize),
    /// The body is not the JSON that was expected.
    #[error("a frame does not hold the expected message")]
    Malformed(#[from] serde_json::Error),
}

/// Encodes `message` as one frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut out = vec![0; 4];
    serde_json::to_writer(&mut out, message)?;
    let length = out.len() - 4;
    if length > MAX_FRAME {
        return Err(FrameError::TooLarge(length));
    }
    // The bound above keeps the length far below u32::MAX.
    out[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(out)
}

fn body_length(header: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_FRAME {
        Err(FrameError::TooLarge(length))
    } else {
        Ok(length)
    }
}

/// Writes one frame to a blocking stream and flushes it.
pub fn write<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?)?;
    stream.flush()?;
    Ok(())
}

/// Reads one frame from a blocking stream.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, FrameError> {
    let mut header = [0; 4];
    let mut got = 0;
    while got < header.len() {
        match stream.read(&mut header[got..]) {
            Ok(0) if got == 0 => return Err(FrameError::Closed),
            Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => got += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut body = vec![0; body_length(header)?];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Writes one frame to an asynchronous stream and flushes it.
pub async fn write_async<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads one frame from an asynchronous stream. Not cancellation-safe: a dropped future may have consumed part of a frame.
pub async fn read_async<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> Result<T, FrameError> {
    let mut header = [0; 4];
    let mut got = 0;
    while got < header.len() {
        match stream.read(&mut header[got..]).await? {
            0 if got == 0 => return Err(FrameError::Closed),
            0 => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            n => got += n,
        }
    }
    let mut body = vec![0; body_length(header)?];
    stream.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn end_of_stream_between_frames_is_not_an_error_of_the_stream() {
        assert!(matches!(read::<u8>(&mut &b""[..]), Err(FrameError::Closed)));
        assert!(matches!(
            read::<u8>(&mut &b"\x01\x00"[..]),
            Err(FrameError::Io(_))
        ));
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_reading_on() {
        let mut header: &[u8] = &u32::MAX.to_le_bytes();
        assert!(matches!(read::<u8>(&mut header), Err(FrameError::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn any_string_survives_both_ways(text in ".*") {
            let bytes = encode(&text).unwrap();
            prop_assert_eq!(&read::<String>(&mut &bytes[..]).unwrap(), &text);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            prop_assert_eq!(runtime.block_on(read_async::<String>(&mut &bytes[..])).unwrap(), text);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read::<crate::control::Request>(&mut &bytes[..]);
        }
    }
}
