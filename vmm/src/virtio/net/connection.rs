//! One stream socket and the framing on it.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
};

use super::{MAX_FRAME, MIN_FRAME};
use crate::virtio::buffers::Readable;

const LENGTH_SIZE: usize = 4;
/// A frame of the largest size and a good part of the next. Pages are only taken as data comes.
const BUFFER_SIZE: usize = 128 << 10;

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// The other end closed it.
    #[error("the other end has closed the connection")]
    Closed,
    /// Reading or writing failed.
    #[error("the connection has failed")]
    Io(#[from] io::Error),
    /// The other end announced a frame that cannot be one. What follows cannot be made sense of.
    #[error("the other end announced a frame of {0} bytes")]
    FrameLength(u32),
}

/// What became of a frame for the socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is on its way, all of it.
    Done,
    /// The socket takes nothing now; try again when it is writable.
    Full,
}

/// A connected socket with what has been read and not yet delivered, and the rest of a frame that did not fit into it.
pub(super) struct Connection {
    stream: UnixStream,
    input: FrameBuffer,
    unsent: Vec<u8>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Connection {
        Connection {
            stream,
            input: FrameBuffer::new(),
            unsent: Vec::new(),
        }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The frame that is next in line, reading from the socket as needed; none when it has not come yet. Stays next until
    /// [`Self::frame_done`].
    pub(super) fn next_frame(&mut self) -> Result<Option<&[u8]>, ConnectionError> {
        while self.input.frame()?.is_none() {
            match self.input.fill(&self.stream) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        self.input.frame()
    }

    /// Drops the frame that is next in line.
    pub(super) fn frame_done(&mut self) {
        self.input.consume();
    }

    /// Whether part of a frame waits for the socket to become writable.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends what is left of the last frame. True when nothing is left.
    pub(super) fn flush(&mut self) -> Result<bool, ConnectionError> {
        while !self.unsent.is_empty() {
            // SAFETY: pointer and length describe `unsent`, which the call only reads.
            let result = unsafe {
                libc::send(
                    self.stream.as_raw_fd(),
                    self.unsent.as_ptr().cast(),
                    self.unsent.len(),
                    libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
                )
            };
            match checked(result) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.unsent.shrink_to(0);
        Ok(true)
    }

    /// Sends a frame of at most [`MAX_FRAME`] bytes. What the socket takes only in part is finished by [`Self::flush`].
    pub(super) fn send(&mut self, frame: &mut Readable) -> Result<Sent, ConnectionError> {
        if !self.flush()? {
            return Ok(Sent::Full);
        }
        // Bounded by MAX_FRAME.
        let prefix = (frame.len() as u32).to_be_bytes();
        match frame.send_after(self.stream.as_fd(), &prefix) {
            Ok(sent) => {
                if sent < prefix.len() || !frame.is_empty() {
                    self.unsent.extend_from_slice(&prefix[sent.min(prefix.len())..]);
                    let at = self.unsent.len();
                    self.unsent.resize(at + frame.len(), 0);
                    frame.read(&mut self.unsent[at..]);
                }
                Ok(Sent::Done)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Sent::Full),
            Err(error) => Err(error.into()),
        }
    }
}

fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Finds frames in a stream of bytes.
struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl FrameBuffer {
    fn new() -> FrameBuffer {
        FrameBuffer {
            bytes: vec![0; BUFFER_SIZE],
            start: 0,
            end: 0,
        }
    }

    /// The first frame, if all of it is there. Frames too short to be one are passed over.
    fn frame(&mut self) -> Result<Option<&[u8]>, ConnectionError> {
        while let Some(length) = self.frame_length()? {
            if self.end - self.start < LENGTH_SIZE + length {
                return Ok(None);
            }
            if length >= MIN_FRAME {
                let at = self.start + LENGTH_SIZE;
                return Ok(Some(&self.bytes[at..at + length]));
            }
            self.start += LENGTH_SIZE + length;
        }
        Ok(None)
    }

    fn frame_length(&self) -> Result<Option<usize>, ConnectionError> {
        let Some(length) = self.bytes[self.start..self.end].first_chunk::<LENGTH_SIZE>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length);
        match usize::try_from(length) {
            Ok(fits) if fits <= MAX_FRAME => Ok(Some(fits)),
            _ => Err(ConnectionError::FrameLength(length)),
        }
    }

    /// Drops the frame that [`Self::frame`] returned.
    fn consume(&mut self) {
        if let Ok(Some(length)) = self.frame_length() {
            self.start = (self.start + LENGTH_SIZE + length).min(self.end);
        }
    }

    /// Reads what the socket has, without waiting. For when there is no whole frame: then there is room.
    fn fill(&mut self, stream: &UnixStream) -> io::Result<usize> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        loop {
            let room = &mut self.bytes[self.end..];
            // SAFETY: pointer and length describe `room`, which is ours to write.
            let result = unsafe {
                libc::recv(
                    stream.as_raw_fd(),
                    room.as_mut_ptr().cast(),
                    room.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            match checked(result) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(ours), theirs)
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes(), frame].concat()
    }

    #[test]
    fn frames_too_long_end_the_connection() {
        let (mut connection, mut theirs) = pair();
        theirs.write_all(&(MAX_FRAME as u32 + 1).to_be_bytes()).unwrap();
        let error = connection.next_frame().unwrap_err();
        assert!(matches!(error, ConnectionError::FrameLength(length) if length as usize == MAX_FRAME + 1));
    }

    #[test]
    fn the_end_of_the_stream_is_seen_after_the_last_frame() {
        let (mut connection, mut theirs) = pair();
        theirs.write_all(&framed(&[1; 60])).unwrap();
        theirs.write_all(&[0, 0]).unwrap();
        drop(theirs);
        assert_eq!(connection.next_frame().unwrap(), Some(&[1; 60][..]));
        connection.frame_done();
        assert!(matches!(connection.next_frame(), Err(ConnectionError::Closed)));
    }

    proptest! {
        /// However the stream is cut into pieces, the frames come out whole and in order.
        #[test]
        fn frames_survive_any_cut(
            lengths in prop::collection::vec(prop_oneof![0usize..100, 1400usize..1520, 60_000usize..=MAX_FRAME], 1..8),
            cuts in prop::collection::vec(1usize..70_000, 1..8),
        ) {
            let (mut connection, mut theirs) = pair();
            let frames: Vec<Vec<u8>> = lengths
                .iter()
                .enumerate()
                .map(|(which, length)| vec![which as u8; *length])
                .collect();
            let stream: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
            let mut cuts = cuts.iter().cycle();
            let mut rest: &[u8] = &stream;
            let mut got = Vec::new();
            while !rest.is_empty() {
                let (piece, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                theirs.write_all(piece).unwrap();
                rest = later;
                while let Some(frame) = connection.next_frame().unwrap() {
                    got.push(frame.to_vec());
                    connection.frame_done();
                }
            }
            let expected: Vec<Vec<u8>> = frames.into_iter().filter(|frame| frame.len() >= MIN_FRAME).collect();
            prop_assert!(got == expected);
        }

        /// Arbitrary bytes make frames within bounds, or an error, and never a panic.
        #[test]
        fn arbitrary_streams_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let (mut connection, mut theirs) = pair();
            theirs.write_all(&bytes).unwrap();
            drop(theirs);
            loop {
                match connection.next_frame() {
                    Ok(Some(frame)) => prop_assert!((MIN_FRAME..=MAX_FRAME).contains(&frame.len())),
                    Ok(None) => prop_assert!(false, "the stream has ended, so there is nothing to wait for"),
                    Err(_) => break,
                }
                connection.frame_done();
            }
        }
    }
}
