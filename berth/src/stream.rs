//! What tokio's Unix streams lack when both directions are used at once through one shared reference.

use std::io;

use tokio::net::UnixStream;

/// Writes all of `bytes`, waiting for room as often as it takes.
///
/// # Errors
/// What writing to the stream failed with; part of `bytes` may have been written.
pub(crate) async fn write_all(to: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
